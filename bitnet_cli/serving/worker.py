"""The one thread that computes: jobs in, events out, first come first served.

`submit` and `call` may be used from any thread. What a job finds in the cache of an earlier one is not computed again, but only where both
have the same salt: elsewhere the cache is forgotten first, so that neither an answer nor its time tells what others have asked.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from bitnet_cli.model.completion import Completion, Request
from bitnet_cli.model.logprobs import TokenLogprob, token_logprob
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.serving.jobs import Ended, Failed, Job, Prompted, Tell, Written

T = TypeVar("T")


class _CancelledError(Exception):
    pass


class Ticket:
    """A job that was submitted. `cancel` ends it between two steps; its last event is then Ended with `cancelled`."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """The text is not wanted any more."""
        self._cancelled.set()


class Worker:
    """Owns an open model; `close` ends the thread and the model."""

    def __init__(self, opened: OpenModel):
        self.opened = opened
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._salt = b""
        self._tickets: set[Ticket] = set()
        self.used = time.monotonic()  # when a job ended last
        self._thread = threading.Thread(target=self._run, name="bitnet-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job, tell: Tell) -> Ticket:
        """Write a text; `tell` hears of it."""
        ticket = Ticket()
        self._tickets.add(ticket)
        self._work.put(lambda: self._write(job, ticket, tell))
        return ticket

    def call(self, work: Callable[[OpenModel], T]) -> Future[T]:
        """Do something else with the model, alone; the session holds nothing afterwards."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self.opened.session.emptied()
                future.set_result(work(self.opened))
            except BaseException as error:
                future.set_exception(error)
            finally:
                self.opened.session.emptied()

        self._work.put(run)
        return future

    def cancel_all(self) -> None:
        """No text is wanted any more."""
        for ticket in list(self._tickets):
            ticket.cancel()

    def close(self) -> None:
        """Finish what was submitted, and end."""
        self._work.put(None)
        self._thread.join()
        self.opened.session.close()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            self.used = time.monotonic()

    def _write(self, job: Job, ticket: Ticket, tell: Tell) -> None:
        try:
            if job.salt != self._salt:
                self.opened.session.emptied()
                self._salt = job.salt
            self._written(job, ticket, tell)
        except _CancelledError:
            tell(Ended("cancelled"))
        except BaseException as error:
            self.opened.session.emptied()
            tell(Failed(error))
        finally:
            self._tickets.discard(ticket)

    def _written(self, job: Job, ticket: Ticket, tell: Tell) -> None:
        def progress(_done: int, _all: int) -> None:
            if ticket.cancelled:
                raise _CancelledError

        progress(0, 0)
        tell(Prompted([] if job.echo is None else prompt_logprobs(self.opened, job.prompt, job.echo, progress)))
        if job.limit == 0:
            tell(Ended("length"))
            return
        request = Request(job.limit, job.stop, job.ends, job.ignore_eos, job.logprobs, grammar=job.grammar)
        completion = Completion(self.opened, job.prompt, job.sampling, request, progress)
        seen = 0
        try:
            for text in completion:
                now = len(completion.ids)
                tell(Written(text, completion.ids[seen:now], completion.logprobs[seen:now]))
                seen = now
                progress(0, 0)
        finally:
            completion.close()
        if seen < len(completion.ids):
            tell(Written("", completion.ids[seen:], completion.logprobs[seen:]))
        tell(Ended(completion.timings.finish, completion.timings, completion.stopped_by))


def prompt_logprobs(opened: OpenModel, ids: Any, count: int, progress: Callable[[int, int], None]) -> list[TokenLogprob]:
    """Of every token but the first, given those before it. progress may raise."""
    decoder, silent = opened.session.emptied(), opened.decoder.silent
    found: list[TokenLogprob] = []
    for start in range(0, len(ids) - 1, decoder.batch):
        part = ids[start : start + decoder.batch]
        decoder.feed_batch(part)
        for row, target in enumerate(ids[start + 1 : start + 1 + len(part)]):
            logits = decoder.logits_of(row).copy()
            logits[silent] = float("-inf")
            found.append(token_logprob(logits, target, count))
        progress(start, len(ids))
    decoder.rewind(0)
    return found
