"""Which texts go into the next step: those that decode first, then prompts in chunks up to the step's budget, first come, first served.

    job = Text(prompt, ...)              a text to be computed: its tokens, and what becomes of their logits
    scheduler.submit(job)                from any thread
    scheduler.step()                     by one thread at a time: all texts that fit go on
    for token in scheduler.run(job)      submits, and steps whenever it has to wait for a token

A text leaves between two steps, when it is done, fails or is cancelled; others never notice. Where pages run out, the youngest text gives
its own back and waits; later it is computed again, and goes on as if nothing had happened. So does a text of `run` that nobody takes from:
an exception may have left it behind, and it shall cost others neither time nor room.

Ctrl-C may come between any two instructions of the main thread, which also computes texts of others. So a text is in one list as long as it
is not done, says itself whether it runs, and the next step tidies up before all else: what was cut off half done is done again.
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
from bitnet_kernels.interrupts import interrupted_later
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.pages import NoPagesError, common_prefix
from bitnet_cli.model.sequence import Sequence

Again = Callable[[int], NDArray[np.float32]]  # all logits of one of the tokens that wanted some


class Job(ABC):
    """A text to be computed. What its logits are for, a kind of job says: generate.Text writes.

    ids        its tokens, so far as they are known; known: those that may be taken over from texts that begin alike
    sequence   what of them is computed, a Sequence, while it is its turn
    running    whether it is its turn
    ready      what it has for whoever waits for it
    done       whether it is; error: what ended it, if anything did
    cancelled  set by anybody, at any time: it leaves before the next step
    ahead      how much may be ready before it rests; None: any number. rests: until all of that is taken
    """

    ahead: int | None = None
    rests = False

    def __init__(self, ids: Ids[int], salt: str = ""):
        self.ids, self.salt = list(ids), salt
        self.sequence: Any = None
        self.ready: deque[Any] = deque()
        self.running = self.done = self.cancelled = False
        self.error: BaseException | None = None

    @property
    def pending(self) -> int:
        """Known tokens that are not computed."""
        return len(self.ids) - int(self.sequence.position)

    @property
    def known(self) -> Ids[int]:
        """Tokens that may be taken over from texts that begin alike: of them, all but the last."""
        return self.ids

    def begin(self, engine: Engine) -> None:
        """It is its turn, for the first time or again. UsageError: it cannot be computed."""
        engine.check(self.ids)
        self.sequence = Sequence(engine, self.salt)
        self.sequence.begin(self.known)
        self.running = True

    @abstractmethod
    def row(self, most: int) -> Row:
        """What of it goes into the next step: at most so many tokens."""

    @abstractmethod
    def took(self, row: Row, found: NDArray[np.float32], again: Again, seconds: float) -> None:
        """A step has computed `row`: what it wanted, and how long all of the step took."""

    def leave(self) -> None:
        """Give all pages back."""
        self.running = False
        if self.sequence is not None:
            self.sequence.release()
            self.sequence = None


CLOSED, INTERRUPTED, NO_ROOM = "this model is closed", "interrupted by another thread", "the KV cache is full"
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
        self._jobs: list[Job] = []  # in the order in which they arrived; any thread adds to it, those that have the turn remove
        self._unanswered: dict[Job, int] = {}  # texts of a step that have not got yet what they wanted, and their positions before it
        self._closed = False

    def submit(self, job: Job) -> None:
        """Compute it, after those that were here before. From any thread. BitnetError: the scheduler is closed."""
        self._jobs.append(job)
        if self._closed:  # asked last: what arrives after `close` has looked finds it closed
            raise BitnetError(CLOSED)

    def run(self, job: Job) -> Iterator[Any]:
        """Submit a job and yield what it has ready until it is done. Raises what ended it; it is cancelled where the caller stops."""
        job.ahead = AHEAD
        try:
            self.submit(job)
            while True:
                while job.ready:
                    yield job.ready.popleft()
                if job.done:
                    break
                with self.alone():
                    if not job.ready and not job.done and not self.step(job) and not job.done:
                        raise BitnetError(NO_ROOM)
        finally:
            job.cancelled = True  # whatever cuts `cancel` off
            self.cancel([job])
        if job.error is not None:
            raise job.error

    def cancel(self, jobs: Iterable[Job]) -> None:
        """They are not wanted any more, from any thread: they leave now, or after the step that is in progress."""
        for job in jobs:
            job.cancelled = True
        with interrupted_later():  # between `acquire` and `try` it would leave the lock held
            if self._turn.acquire(blocking=False):
                try:
                    self._tidy()
                finally:
                    self._turn.release()

    def finish(self, jobs: Iterable[Job], progress: Callable[[Job], None] | None = None) -> None:
        """Submit jobs and step until all are done, with as many of them in a step as fit. progress: called with each as it is done.

        What ends one of them ends all, and is raised.
        """
        left = list(jobs)
        try:
            for job in left:
                self.submit(job)
            while left:
                with self.alone():
                    if not (any(job.done for job in left) or self.step() or any(job.done for job in left)):
                        raise BitnetError(NO_ROOM)
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

    def step(self, own: Job | None = None) -> bool:
        """One step of all texts that fit; False: there is nothing to do. For one thread at a time (`alone`).

        own: the text of the one who asks, which Ctrl-C may end.
        """
        self._owner = threading.get_ident()
        try:
            self._tidy()
            rows = self._choose() or self._choose()  # the last one that gave its pages back may begin again
            if rows:
                self._compute(rows, own)
            return bool(rows)
        finally:
            self._owner = 0

    def _compute(self, rows: dict[Job, Row], own: Job | None) -> None:
        """The step. Whatever ends it early, Ctrl-C before all others: each text goes on, or is computed again, as if it had not been."""
        self._unanswered = {job: row.sequence.position for job, row in rows.items()}
        try:
            start = time.perf_counter()
            found = self.engine.step(list(rows.values()))
            seconds = time.perf_counter() - start
            with nullcontext() if own in rows and len(rows) == 1 else interrupted_later():  # others' texts are none of its business
                self._hand_out(rows, found, seconds)
        finally:
            self._rewind()
        self._dismiss()

    def _hand_out(self, rows: dict[Job, Row], found: list[NDArray[np.float32]], seconds: float) -> None:
        """Each text gets what it wanted."""
        if (count := sum(len(row.ids) for row in rows.values())) == len(rows):
            self._decoding = seconds
        elif count > MANY:
            self._pace = seconds / count
        first = place = 0
        for (job, row), logits in zip(rows.items(), found, strict=True):
            try:
                job.took(row, logits, self._again(row, first, place), seconds)
                del self._unanswered[job]
            except BaseException as error:
                job.error, job.done = error if isinstance(error, Exception) else BitnetError(INTERRUPTED), True
                if not isinstance(error, Exception):
                    raise
            first, place = first + len(row.ids), place + (0 if row.states else len(row.wanted))

    def _again(self, row: Row, first: int, place: int) -> Again:
        return lambda i: self.engine.all_logits(first + row.wanted[i], place + i)

    def _choose(self) -> dict[Job, Row]:
        """Who goes into the next step, with what: texts that have one token to compute come first."""
        rows: dict[Job, Row] = {}
        running = [job for job in self._jobs if job.running]
        budget, decoding = self.engine.batch, sum(job.pending == 1 for job in running)
        if decoding and self.patience is not None:
            fit = int((self.patience - self._decoding) / self._pace) if self._pace else 0
            budget = min(budget, decoding + max(LEAST, fit))
        for job in sorted(running, key=lambda job: job.pending > 1):
            if budget and job.running:
                budget -= self._add(job, budget, rows)
        while budget and (first := self._next([job for job in running if job.running])):
            with interrupted_later():
                try:
                    first.begin(self.engine)
                except Exception as error:
                    first.error, first.done = error, True
                    first.leave()
                    continue
            running.append(first)
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
                youngest = [job for job in self._jobs if job.running][-1]
                youngest.leave()
                self.given_back += 1
                rows.pop(youngest, None)
                if youngest is job:
                    return 0
            else:
                rows[job] = row
                return len(row.ids)

    def _may_begin(self, job: Job, running: list[Job]) -> bool:
        """Whether it is worth it now: there are pages for all of its tokens, and nobody is about to compute some that it begins with."""
        pages = self.engine.pages
        if not running:
            return True
        needed = -(-(len(job.ids) + 1) // pages.size) + len(running)
        found = pages.find(job.ids, job.salt)
        if needed - sum(bool(page.users) for page in found.pages) > pages.count - pages.used:
            return False
        alike = (common_prefix(job.ids, other.ids) for other in running if other.pending > 1 and other.salt == job.salt)
        return max(alike, default=0) <= found.tokens

    def _tidy(self) -> None:
        """Before a step: of one that was cut off nothing is left, and those leave that are done, cancelled, or not taken from."""
        self._rewind()
        self._dismiss()
        for job in self._jobs:
            if job.running and job.ahead is not None and len(job.ready) >= job.ahead:
                job.rests, job.running = True, False
            if job.sequence is not None and not job.running:
                job.leave()  # now, or where that was cut off

    def _rewind(self) -> None:
        """Texts that a step has not answered go back to where they were before it."""
        for job, position in list(self._unanswered.items()):
            if job.running and not job.done and job.sequence.position >= position:
                job.sequence.rewind(position)
            del self._unanswered[job]

    def _dismiss(self) -> None:
        """Those that are done or cancelled leave."""
        for job in [job for job in self._jobs if job.done or job.cancelled]:
            job.done = True
            job.leave()
            self._jobs.remove(job)

    def _next(self, running: list[Job]) -> Job | None:
        """The first that waits for its turn, and may begin."""
        for job in self._jobs:
            job.rests = job.rests and bool(job.ready)
            if not (job.running or job.done or job.rests):
                return job if self._may_begin(job, running) else None
        return None

    def close(self) -> None:
        """End the engine's threads, after the step that is in progress. Texts that are not done end with a BitnetError."""
        with self.alone():
            self._closed = True
            self._tidy()
            for job in list(self._jobs):
                job.error, job.done = BitnetError(CLOSED), True
            self._tidy()
            self.engine.close()
