"""Which texts go into the next step: those that decode first, then prompts in chunks up to the step's budget, first come, first served.

    job = Text(prompt, ...)              a text to be computed: its tokens, and what becomes of their logits
    scheduler.submit(job)                from any thread
    scheduler.step()                     by one thread at a time: all texts that fit go on
    for token in scheduler.run(job)      submits, and steps whenever it has to wait for a token

A text leaves between two steps, when it is done, fails or is cancelled; others never notice. Where pages run out, the youngest text gives
its own back and waits; later it is computed again, and goes on as if nothing had happened. So does a text of `run` that nobody takes from:
an exception may have left it behind, and it shall cost others neither time nor room.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Ids
from contextlib import nullcontext
from typing import Any

import numpy as np
from bitnet_kernels.native import interrupted_later
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.pages import NoPagesError, common_prefix
from bitnet_cli.model.sequence import Sequence

Again = Callable[[int], NDArray[np.float32]]  # all logits of one of the tokens that wanted some


class Job(ABC):
    """A text to be computed. What its logits are for, a kind of job says: generate.Text writes.

    ids        its tokens, so far as they are known
    sequence   what of them is computed, while it is its turn
    ready      what it has for whoever waits for it
    done       whether it is; error: what ended it, if anything did
    cancelled  set by anybody, at any time: it leaves before the next step
    ahead      how much may be ready before it rests; None: any number. rests: until all of that is taken
    """

    ahead: int | None = None
    rests = False

    def __init__(self, ids: Ids[int], salt: str = ""):
        self.ids, self.salt = list(ids), salt
        self.sequence: Sequence | None = None
        self.ready: deque[Any] = deque()
        self.done = self.cancelled = False
        self.error: BaseException | None = None

    @property
    def pending(self) -> int:
        """Known tokens that are not computed."""
        return len(self.ids) - (self.sequence.position if self.sequence else 0)

    def begin(self, sequence: Sequence) -> None:
        """It is its turn, for the first time or again. UsageError: it cannot be computed."""
        sequence.engine.check(self.ids)
        sequence.begin(self.ids)
        self.sequence = sequence

    @abstractmethod
    def row(self, most: int) -> Row:
        """What of it goes into the next step: at most so many tokens."""

    @abstractmethod
    def took(self, row: Row, found: NDArray[np.float32], again: Again, seconds: float) -> None:
        """A step has computed `row`: what it wanted, and how long all of the step took."""

    def leave(self) -> None:
        """Give all pages back."""
        if self.sequence is not None:
            self.sequence.release()
            self.sequence = None


CLOSED, INTERRUPTED = "this model is closed", "interrupted by another thread"
MANY = 16  # tokens from which on a step's time tells how long one of a prompt takes: fewer share the time of reading the weights
LEAST = 8  # tokens of prompts that go into a step in any case: what kernels of few rows take together
AHEAD = 16  # tokens of a text that nobody has taken: a reader who is that far behind is slower than the model, or gone


class Scheduler:
    """given_back: how often a text had to give its pages back.

    patience: seconds that a step takes, about, while texts decode and others' prompts are read; None: as long as it takes for all that fit.
    Smaller chunks cost prompts a part of their speed, so it is for those who watch texts as they come.
    """

    def __init__(self, engine: Engine, patience: float | None = None):
        self.engine, self.given_back, self.patience = engine, 0, patience
        self._pace = 0.0  # seconds for a token of a prompt, of late
        self._decoding = 0.0  # seconds for a step of texts that decode, of late
        self._turn, self._owner = threading.Lock(), 0  # the thread that steps
        self._arrived: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # in the order in which they arrived
        self._closed = False

    def submit(self, job: Job) -> None:
        """Compute it, after those that were here before. From any thread. BitnetError: the scheduler is closed."""
        self._arrived.append(job)
        if self._closed:  # asked last: what arrives after `close` has looked finds it closed
            raise BitnetError(CLOSED)

    def run(self, job: Job) -> Iterator[Any]:
        """Submit a job and yield what it has ready until it is done. Raises what ended it; it is cancelled where the caller stops."""
        job.ahead = AHEAD
        self.submit(job)
        try:
            while True:
                while job.ready:
                    yield job.ready.popleft()
                if job.done:
                    break
                with self.alone():
                    if not job.ready and not job.done and not self.step() and not job.done:
                        raise BitnetError(INTERRUPTED)
        finally:
            self.cancel([job])
        if job.error is not None:
            raise job.error

    def cancel(self, jobs: Iterable[Job]) -> None:
        """They are not wanted any more, from any thread: they leave now, or after the step that is in progress."""
        for job in jobs:
            job.cancelled = True
        if not self._stepping() and self._turn.acquire(blocking=False):
            try:
                self._admit_and_dismiss()
            finally:
                self._turn.release()

    def finish(self, jobs: Iterable[Job], progress: Callable[[Job], None] | None = None) -> None:
        """Submit jobs and step until all are done, with as many of them in a step as fit. progress: called with each as it is done.

        What ends one of them ends all, and is raised.
        """
        left = list(jobs)
        for job in left:
            self.submit(job)
        try:
            while left:
                with self.alone():
                    if not any(job.done for job in left):
                        self.step()
                for job in [job for job in left if job.done]:
                    if job.error is not None:
                        raise job.error
                    left.remove(job)
                    if progress:
                        progress(job)
        finally:
            self.cancel(left)

    def alone(self) -> threading.Lock:
        """A context in which nobody else uses the engine. BitnetError: within a step.

        A lock, and nothing around it in Python: Ctrl-C may come between any two of its instructions, and would leave the lock held.
        """
        if self._stepping():
            raise BitnetError("this model is in the middle of a step, which called the one who asks")
        return self._turn

    def _stepping(self) -> bool:
        return self._owner == threading.get_ident() and self._turn.locked()

    def step(self) -> bool:
        """One step of all texts that fit; False: there is nothing to do. For one thread at a time (`alone`)."""
        self._owner = threading.get_ident()
        try:
            self._admit_and_dismiss()
            rows = self._choose()
            if rows:
                self._compute(rows)
            return bool(rows)
        finally:
            self._owner = 0

    def _compute(self, rows: dict[Job, Row]) -> None:
        """The step. Whatever ends it early, Ctrl-C before all others: each text goes on, or is computed again, as if it had not been."""
        left = {job: row.sequence.position for job, row in rows.items()}
        try:
            start = time.perf_counter()
            found = self.engine.step(list(rows.values()))
            seconds = time.perf_counter() - start
            with interrupted_later() if len(rows) > 1 else nullcontext():  # others' texts are none of its business
                self._hand_out(rows, found, seconds, left)
        finally:
            for job, position in left.items():
                if job.sequence is not None and job.sequence.position > position and not job.done:
                    job.sequence.rewind(position)
        self._dismiss()

    def _hand_out(self, rows: dict[Job, Row], found: list[NDArray[np.float32]], seconds: float, left: dict[Job, int]) -> None:
        """Each text gets what it wanted, and is then none of `left`."""
        if (count := sum(len(row.ids) for row in rows.values())) == len(rows):
            self._decoding = seconds
        elif count > MANY:
            self._pace = seconds / count
        first = place = 0
        for (job, row), logits in zip(rows.items(), found, strict=True):
            try:
                job.took(row, logits, self._again(row, first, place), seconds)
                del left[job]
            except BaseException as error:
                _fail(job, error if isinstance(error, Exception) else BitnetError(INTERRUPTED))
                if not isinstance(error, Exception):
                    raise
            first, place = first + len(row.ids), place + (0 if row.states else len(row.wanted))

    def _again(self, row: Row, first: int, place: int) -> Again:
        return lambda i: self.engine.all_logits(first + row.wanted[i], place + i)

    def _choose(self) -> dict[Job, Row]:
        """Who goes into the next step, with what: texts that have one token to compute come first."""
        rows: dict[Job, Row] = {}
        budget, decoding = self.engine.batch, sum(job.pending == 1 for job in self._running)
        if decoding and self.patience is not None:
            fit = int((self.patience - self._decoding) / self._pace) if self._pace else 0
            budget = min(budget, decoding + max(LEAST, fit))
        for job in sorted(self._running, key=lambda job: job.pending > 1):
            if budget and job in self._running:
                budget -= self._add(job, budget, rows)
        while budget and (first := self._next()):
            self._waiting.remove(first)
            try:
                first.begin(Sequence(self.engine, first.salt))
            except Exception as error:
                _fail(first, error)
                continue
            self._running.append(first)
            budget -= self._add(first, budget, rows)
            if first not in rows:
                break  # it waits again
        return rows

    def _add(self, job: Job, budget: int, rows: dict[Job, Row]) -> int:
        """Put a job's next tokens into the step; returns how many. Where there are no pages for them, the youngest gives its own back."""
        row = job.row(budget)
        while True:
            try:
                row.sequence.reserve(len(row.ids))
            except NoPagesError:
                youngest = self._running.pop()
                youngest.leave()
                self._waiting.appendleft(youngest)
                self.given_back += 1
                rows.pop(youngest, None)
                if youngest is job:
                    return 0
            else:
                rows[job] = row
                return len(row.ids)

    def _may_begin(self, job: Job) -> bool:
        """Whether it is worth it now: there are pages for all of its tokens, and nobody is about to compute some that it begins with."""
        if not self._running:
            return True
        pages = self.engine.pages
        needed = -(-(len(job.ids) + 1) // pages.size) + len(self._running)
        found = pages.find(job.ids, job.salt)
        if needed - sum(page.users > 0 for page in found.pages) > pages.count - pages.used:
            return False
        alike = (common_prefix(job.ids, other.ids) for other in self._running if other.pending > 1 and other.salt == job.salt)
        return max(alike, default=0) <= found.tokens

    def _admit_and_dismiss(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        for job in self._running:
            if job.ahead is not None and len(job.ready) >= job.ahead and not job.rests:
                job.leave()
                job.rests = True
                self._waiting.append(job)
        self._dismiss()

    def _dismiss(self) -> None:
        """Those that are done or cancelled leave."""
        for job in [*self._running, *self._waiting]:
            if job.done or job.cancelled:
                job.done = True
                job.leave()
        self._running = [job for job in self._running if not (job.done or job.rests)]
        self._waiting = deque(job for job in self._waiting if not job.done)

    def _next(self) -> Job | None:
        """The first that waits for its turn, and may begin."""
        for job in self._waiting:
            job.rests = job.rests and bool(job.ready)
            if not job.rests:
                return job if self._may_begin(job) else None
        return None

    def close(self) -> None:
        """End the engine's threads, after the step that is in progress. Texts that are not done end with a BitnetError."""
        with self.alone():
            self._closed = True
            self._admit_and_dismiss()
            for job in [*self._running, *self._waiting]:
                _fail(job, BitnetError(CLOSED))
            self._dismiss()
            self.engine.close()


def _fail(job: Job, error: BaseException) -> None:
    job.error, job.done = error, True
