"""The one thread that computes: jobs in, events out.

    submit(job, tell) ──> waiting, first come first served ──> the engine's scheduler ──> tokens ──> text, stop strings ──> tell(event)

At most `parallel` texts are with the scheduler at once; between two steps they join, and leave when they are done, cancelled or have
failed. What they begin with alike is computed once, but only where they have the same salt. `submit` and `read`: from any thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.completion import watch
from bitnet_cli.model.generate import Text, TextPlan, Timings
from bitnet_cli.model.logprobs import TokenLogprob, token_logprob
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.scheduler import Job as Work
from bitnet_cli.serving.jobs import Ended, Failed, Job, Prompted, Tell, Written
from bitnet_cli.text.stop import StopStrings
from bitnet_cli.text.stream import IncrementalDecoder

PATIENCE = 0.22  # seconds that a text which is being written waits for its next token, about (Scheduler.patience)


class Ticket:
    """A job that was submitted. `cancel` ends it between two steps; its last event is then Ended with `cancelled`."""

    def __init__(self) -> None:
        self.cancelled = False
        self.work: Work | None = None  # while it is with the scheduler

    def cancel(self) -> None:
        """The text is not wanted any more. From any thread."""
        self.cancelled = True
        if (work := self.work) is not None:
            work.cancelled = True


class Worker:
    """Owns an open model; `close` ends the thread and the model. parallel: texts that are computed together at most."""

    def __init__(self, opened: OpenModel, parallel: int = 8):
        self.opened, self._parallel = opened, parallel
        opened.scheduler.patience = PATIENCE
        self._arrived: queue.SimpleQueue[_Live | None] = queue.SimpleQueue()
        self._waiting: deque[_Live] = deque()
        self._live: list[_Live] = []
        self._closing = False
        self._tickets: set[Ticket] = set()
        self._thread = threading.Thread(target=self._run, name="bitnet-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job, tell: Tell) -> Ticket:
        """Write a text; `tell` hears of it."""
        return self._put(_Writing(self.opened, job, tell))

    def read(self, reading: Reading) -> Future[None]:
        """Read a text; the future is done when `reading` has got all that it wants."""
        live = _Read(reading)
        self._put(live)
        return live.future

    def _put(self, live: _Live) -> Ticket:
        self._tickets.add(live.ticket)
        self._arrived.put(live)
        return live.ticket

    def cancel_all(self) -> None:
        """No text is wanted any more."""
        for ticket in list(self._tickets):
            ticket.cancel()

    def close(self) -> None:
        """Finish what was submitted, and end."""
        self._arrived.put(None)
        self._thread.join()
        self.opened.scheduler.close()

    def _run(self) -> None:
        scheduler = self.opened.scheduler
        while self._collect():
            for live in self._live:
                self._next(live)
            try:
                with scheduler.alone():
                    scheduler.step()
            except Exception as error:  # of the step as a whole: nobody knows whose it was
                for live in self._live:
                    live.fail(error)
            for live in self._live:
                live.look()
            for live in [live for live in self._live if live.done]:
                self._live.remove(live)
                self._tickets.discard(live.ticket)

    def _collect(self) -> bool:
        """Take in what has arrived; wait where there is nothing to do. False: it is over."""
        with contextlib.suppress(queue.Empty):
            while True:
                idle = not (self._live or self._waiting)
                if idle and self._closing:
                    return False
                live = self._arrived.get(block=idle)
                if live is None:
                    self._closing = True
                else:
                    self._waiting.append(live)
        for live in [live for live in self._waiting if live.ticket.cancelled]:
            self._waiting.remove(live)
            self._tickets.discard(live.ticket)
            live.gone()
        while self._waiting and len(self._live) < self._parallel:
            self._live.append(self._waiting.popleft())
        return True

    def _next(self, live: _Live) -> None:
        """Give the scheduler what a job needs next."""
        if live.ticket.work is None and not live.done:
            try:
                work = live.ticket.work = live.begin()
            except Exception as error:
                live.fail(error)
                return
            work.cancelled = live.ticket.cancelled
            self.opened.scheduler.submit(work)


class _Live(ABC):
    """A job that is computed, or waits for it."""

    def __init__(self) -> None:
        self.ticket, self.done = Ticket(), False

    @abstractmethod
    def begin(self) -> Work:
        """What the scheduler is to do next."""

    @abstractmethod
    def look(self) -> None:
        """A step has been done: what has it brought?"""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """It ends like that."""

    @abstractmethod
    def gone(self) -> None:
        """It is not wanted any more."""

    def _end(self) -> None:
        self.done = True
        if self.ticket.work is not None:
            self.ticket.work.cancelled = True


class _Read(_Live):
    def __init__(self, reading: Reading):
        super().__init__()
        self._reading = reading
        self.future: Future[None] = Future()
        self.future.add_done_callback(lambda future: self.ticket.cancel() if future.cancelled() else None)

    def begin(self) -> Work:
        return self._reading

    def look(self) -> None:
        if not self._reading.done:
            return
        if self._reading.error is not None:
            self.fail(self._reading.error)
        elif self.ticket.cancelled:
            self.gone()
        else:
            self._end()
            self._settle(lambda: self.future.set_result(None))

    def fail(self, error: BaseException) -> None:
        self._end()
        self._settle(lambda: self.future.set_exception(error))

    def gone(self) -> None:
        self.fail(BitnetError("the server is shutting down"))

    def _settle(self, how: Callable[[], None]) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            how()


class _Writing(_Live):
    """First the prompt is read, where its log-probabilities are asked for; then the text is written."""

    def __init__(self, opened: OpenModel, job: Job, tell: Tell):
        super().__init__()
        self._opened, self._job, self._tell = opened, job, tell
        self._stops = StopStrings(job.stop)
        self._decoded = IncrementalDecoder(opened.tokenizer, at_start=False)
        self._logprobs: list[TokenLogprob] = []
        self._prompted: list[TokenLogprob] = []
        self._told = False  # of the prompt

    def begin(self) -> Work:
        job, opened = self._job, self._opened
        salt = job.salt.hex()
        if job.echo is not None and not self._told and len(job.prompt) > 1:
            return Reading(job.prompt[:-1] if job.limit == 0 else job.prompt, self._read, salt=salt)
        ends = frozenset(opened.tokenizer.eos_ids if job.ends is None else job.ends)
        sampler = Sampler(job.sampling, never=ends if job.ignore_eos else ())
        plan = TextPlan(
            job.limit,
            ends,
            watch=watch(self._logprobs, job.logprobs),
            watch_end=job.echo is not None,
            form=job.form,
            silent=opened.engine.silent,
        )
        return Text(job.prompt, sampler, plan, salt=salt)

    def _read(self, first: int, logits: NDArray[np.float32]) -> None:
        job, silent = self._job, self._opened.engine.silent
        for row, target in zip(logits, job.prompt[first + 1 : first + 1 + len(logits)], strict=False):
            row[silent] = -np.inf
            self._prompted.append(token_logprob(row, target, job.echo or 0))

    def look(self) -> None:
        work = self.ticket.work
        if work is None or self.done:
            return
        if isinstance(work, Text) and (work.ready or work.done):
            self._written(work)
        if not work.done or self.done:
            return
        if work.error is not None:
            self.fail(work.error)
        elif self.ticket.cancelled:
            self.gone()
        elif isinstance(work, Text):
            self._finish(work)
        else:
            self._prompt_is_read()

    def _prompt_is_read(self) -> None:
        self.ticket.work = None
        self._tell_prompt()
        if self._job.limit == 0:
            self._end()
            self._tell(Ended("length", Timings(len(self._job.prompt))))

    def _tell_prompt(self) -> None:
        if not self._told:
            self._told = True
            self._tell(Prompted(self._prompted))

    def _written(self, work: Text) -> None:
        self._tell_prompt()
        ids, text = [], ""
        while work.ready and self._stops.found is None:
            ids.append(work.ready.popleft())
            text += self._stops.push(self._decoded.push(ids[-1]))
        if ids:
            logprobs, self._logprobs[: len(ids)] = self._logprobs[: len(ids)], []
            self._tell(Written(text, ids, logprobs))
        if self._stops.found is not None:
            self._end()
            self._tell(Ended("stop", work.timings, self._stops.found))

    def _finish(self, work: Text) -> None:
        self._end()
        text = self._stops.push(self._decoded.finish()) + self._stops.finish()
        # With an echo the token that ends the text is told too, without text: lm-evaluation-harness takes the last one off.
        if text or self._logprobs:
            self._tell(Written(text, (), self._logprobs))
        self._tell(Ended("stop" if self._stops.found else work.timings.finish, work.timings, self._stops.found))

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._end()
            self._tell(Failed(error))

    def gone(self) -> None:
        if not self.done:
            self._end()
            self._tell(Ended("cancelled"))
