"""How many of a team's threads take part: fewer where they do not get cores. No Numba here.

Threads of a step wait for each other hundreds of times a token. With more of them than free cores, each wait lasts until the system has
let another thread run: a token takes ten times as long as with as many threads as there are cores. Threads that wait spin, so what the
process uses of the CPU in a while tells how many cores it had; where these are fewer than threads take part, some are left out. From time
to time one more is tried, and stays if steps are quicker; the more trials fail, the rarer they are. The bits that a step computes do not
depend on how many threads do it.
"""

import time

WINDOW = 0.05  # seconds of steps that are judged together: some slices of a scheduler, some ticks of its clock
GAP, SHARE = 0.002, 0.1  # seconds between two steps of a window, or that share of a step: threads spin as long (control.py)
ENOUGH = 0.8  # of a core for each thread
QUICKER = 0.95  # of the time a unit of work: what one thread more must bring to stay
FIRST, LAST = 0.2, 5.0  # seconds of steps until one more is tried, at first and at last


class Crew:
    """threads: how many there are; active: how many the next step should have."""

    def __init__(self, threads: int):
        self.threads = self.active = threads
        self._kind = 0  # of the window's steps
        self._begin = self._end = self._cpu = self._work = 0.0  # of the window, seconds, and what was done in it
        self._before: float | None = None  # seconds of a unit of work with one thread less, while one more is tried
        self._pause, self._wait = FIRST, FIRST  # seconds of steps between trials, and until the next

    def took(self, tokens: int, work: float, start: float, end: float) -> None:
        """A step of some tokens began and ended, by perf_counter. work: in any unit, if always the same."""
        kind, gap, self._end = tokens.bit_length(), start - self._end, end
        if kind != self._kind:  # a token of a long prompt costs a tenth of one that is decoded
            self._end_trial(False)
        elif gap <= GAP or gap <= SHARE * (end - start):
            self._work += work
            if end - self._begin < WINDOW:
                return
            self._judge(end - self._begin, time.process_time() - self._cpu)
        # This step's own share of the CPU is not known: the window begins behind it.
        self._kind, self._begin, self._cpu, self._work = kind, end, time.process_time(), 0.0

    def _judge(self, wall: float, cpu: float) -> None:
        cores, each = cpu / wall, wall / self._work
        self._wait -= wall
        if self._before is not None:
            self._end_trial(each < QUICKER * self._before and cores >= ENOUGH * self.active)
        elif cores < ENOUGH * self.active and self.active > 1:
            self.active = max(1, min(self.active - 1, round(cores)))
            self._wait = self._pause
        elif self.active < self.threads and self._wait <= 0:
            self._before = each
            self.active += 1

    def _end_trial(self, stays: bool) -> None:
        if self._before is not None:
            self.active -= not stays
            self._pause = FIRST if stays else min(2 * self._pause, LAST)
            self._wait, self._before = self._pause, None
