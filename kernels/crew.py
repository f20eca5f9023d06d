"""How many of a team's threads take part: fewer where they do not get cores. No Numba here.

Threads of a step wait for each other hundreds of times a token. With more of them than free cores, each wait lasts until the system has
let another thread run: a token takes ten times as long as with as many threads as there are cores. Threads that wait spin, so what the
process uses of the CPU in a while tells how many cores it had. Fewer than take part: so many are left out. From time to time one more is tried,
and stays if steps are quicker; the longer one after another fails, the rarer. A step's bits do not depend on how many threads compute it.
"""

import time

WINDOW = 0.02  # seconds of steps that are judged together: some slices of a scheduler
ENOUGH = 0.8  # of a core for each thread
QUICKER = 0.95  # of the time a token: what one thread more must bring to stay
FIRST, LAST = 0.2, 5.0  # seconds until one more is tried, at first and at last


class Crew:
    """threads: how many there are; active: how many the next step should have."""

    def __init__(self, threads: int):
        self.threads = self.active = threads
        self._wall = self._cpu = 0.0  # at the begin of the window
        self._busy = 0.0  # seconds of steps in the window
        self._work = 0.0
        self._before: float | None = None  # seconds of a unit of work with one thread less, while one more is tried
        self._pause, self._next = FIRST, 0.0

    def took(self, seconds: float, work: float) -> None:
        """A step of so much work took so long. work: in any unit, as long as it is always the same."""
        if self.threads == 1:
            return
        now = time.perf_counter()
        if not self._busy:
            self._wall, self._cpu, self._work = now - seconds, time.process_time(), 0.0
            self._busy = seconds
            return  # the window begins after this step, whose share of the CPU is not known
        self._busy += seconds
        self._work += work
        if self._busy >= WINDOW and self._work:
            self._judge(now)

    def _judge(self, now: float) -> None:
        cores = (time.process_time() - self._cpu) / max(now - self._wall, 1e-9)
        each = self._busy / self._work
        self._busy = 0.0
        if self._before is not None:
            self._tried(each, cores)
        elif cores < ENOUGH * self.active and self.active > 1:
            self.active = max(1, min(self.active - 1, round(cores)))
            self._next = now + self._pause
        elif self.active < self.threads and now >= self._next:
            self._before = each
            self.active += 1

    def _tried(self, each: float, cores: float) -> None:
        """One more was tried."""
        assert self._before is not None
        if each < QUICKER * self._before and cores >= ENOUGH * self.active:
            self._pause = FIRST
        else:
            self.active -= 1
            self._pause = min(2 * self._pause, LAST)
        self._next, self._before = time.perf_counter() + self._pause, None
