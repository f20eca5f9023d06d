"""Threads that run each step of the decoder together: ordinary Python threads inside kernels that have released the GIL.

The caller's thread is number 0; the others spin inside `serve` between the steps of a token stream and sleep on a semaphore when none
comes for about 2 ms. Compared with Numba's parallel loops this needs no OpenMP or TBB on the machine, starts a region in a tenth of the
time, survives several callers and fork, and compiles in a fraction of the time (docs/log.md#team). Not all of them take part in
every step: crew.py says how many.
"""

import os
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isa
from .arrays import Scratch, Sizes, Weights
from .control import CREW, DONE, FIRST_LAYER, LAST_LAYER, MAX_THREADS, STEP, STOP, TEXTS, TOKENS, WANTED, Shared, Text, Wanted, new_control
from .crew import Crew
from .frame import Frame
from .kv_cache import AnyCache
from .native import Call, Entry

_SERVE, _ANNOUNCE = Entry("step", "serve", large=True), Entry("barrier", "announce")


def compile_for_several() -> None:
    """Compile what threads need who work together, besides `serve`."""
    _ANNOUNCE.over(Frame(Shared(new_control())), 2)


class Step(NamedTuple):
    """The frame of step.serve."""

    sizes: Sizes
    weights: Weights
    cache: AnyCache
    scratch: Scratch
    control: NDArray[np.int64]


class Team:
    """`run` does one step; `close` ends the threads. One step at a time: a lock keeps a second caller waiting."""

    def __init__(self, sizes: Sizes, weights: Weights, cache: AnyCache, scratch: Scratch, threads: int):
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads must be 1 to {MAX_THREADS}, not {threads}")
        self._naive = isa.chosen() == isa.NAIVE
        self._threads = 1 if self._naive else threads
        self.crew = Crew(self._threads)
        self._control = new_control()
        self._arrays = Step(sizes, weights, cache, scratch, self._control)
        self._serve: Call = int  # until it is started
        self._announce_step: Call = int
        self._lock = threading.Lock()
        self._step = 0
        self._wake = [threading.Semaphore(0) for _ in range(self._threads)]
        self._workers: list[threading.Thread] = []
        self._forgotten: weakref.finalize[Any, Team] | None = None
        self._started = False

    def _announce(self, step: int, threads: int) -> None:
        if self._threads > 1:
            _announce(self._announce_step, self._wake, step, threads)

    def run(self, texts: Sequence[Text], first_layer: int, last_layer: int, wanted: Sequence[Wanted] = ()) -> None:
        """One step (see step.py); returns when it is done. `top` of what is wanted needs the planes of the head (arrays.Planes) built.

        texts: in the order of their rows; scratch.tables has their pages. On Ctrl-C the step is finished first: the team is always whole.
        """
        if first_layer >= last_layer and not wanted:
            return  # nothing to do, and no barrier after which no thread reads this step's parameters any more
        with self._lock:
            self._compile_and_start()
            c, s = self._control, self._arrays.scratch
            tokens = texts[-1].row + texts[-1].tokens
            c[TOKENS], c[TEXTS], c[FIRST_LAYER], c[LAST_LAYER], c[WANTED] = tokens, len(texts), first_layer, last_layer, len(wanted)
            for number, text in enumerate(texts):
                row, count, position = text
                s.texts[number] = text
                if count == 1:  # a microsecond, where slices take five
                    s.positions[row, 0], s.positions[row, 1] = position, number
                else:
                    s.positions[row : row + count, 0] = np.arange(position, position + count)
                    s.positions[row : row + count, 1] = number
            for i, asked in enumerate(wanted):
                s.wanted[i] = asked
            active = self.crew.active
            self._step += 1
            start = time.perf_counter()
            try:
                self._announce(self._step * CREW + active, active)
                self._serve(0, active, 0, False)
            except KeyboardInterrupt:
                self._finish(active)
                raise
            if self._threads > 1 and last_layer > first_layer:
                self.crew.took(tokens, tokens * (last_layer - first_layer), start, time.perf_counter())

    def start(self) -> None:
        """Compile the kernels, or load them from the cache, and start the threads. `run` does so by itself; this says when."""
        with self._lock:
            self._compile_and_start()

    def _compile_and_start(self) -> None:
        """Compile before any thread starts: a failure or Ctrl-C meanwhile must not leave others waiting at a barrier."""
        if self._started:
            return
        if self._naive:
            from .naive.step import run_step

            self._serve, self._started = partial(run_step, *self._arrays), True
            return
        self._serve = _SERVE.over(Frame(self._arrays), 4)
        if self._threads > 1:
            self._announce_step = _ANNOUNCE.over(Frame(Shared(self._control)), 2)
        self._control[:], self._step = 0, 0
        self._started = True
        for number in range(1, self._threads):
            work = (number, self._threads, self._serve, self._wake[number])  # not the team, which then ends with whoever holds it
            worker = threading.Thread(target=_work, args=work, name=f"bitnet-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)
        if self._workers:
            self._forgotten = weakref.finalize(self, _forget, os.getpid(), self._announce_step, self._wake, self._threads)
            self._forgotten.atexit = False

    def _finish(self, active: int) -> None:
        """The exception came from Python between two calls: do what was left undone, however often it is interrupted again."""
        word = self._step * CREW + active
        while self._threads > 1 and self._control[DONE] != word and self._control[STEP] == word:
            try:
                for semaphore in self._wake[1:active]:
                    semaphore.release()
                self._serve(0, active, 0, False)
            except KeyboardInterrupt:
                continue

    def close(self) -> None:
        """End the worker threads; the team can be used again afterwards."""
        with self._lock:
            if self._workers and self._forgotten is not None:
                self._forgotten.detach()
                self._announce(STOP, self._threads)
                for worker in self._workers:
                    worker.join()
                self._workers.clear()
                self._control[STEP] = self._step = 0
            self._started = False


def _work(number: int, threads: int, serve: Call, wake: threading.Semaphore) -> None:
    """What worker `number` does until the team is closed, or nobody holds it any more."""
    done, slept = 0, False
    while done != STOP:
        done = serve(number, threads, done, slept)
        if done != STOP:
            wake.acquire()
            slept = True


def _announce(announce: Call, wake: Sequence[threading.Semaphore], step: int, threads: int) -> None:
    if announce(step, threads):
        for semaphore in wake[1:threads]:
            semaphore.release()


def _forget(process: int, announce: Call, wake: Sequence[threading.Semaphore], threads: int) -> None:
    """Nobody holds the team: its threads end by themselves. It may be one of them that finds out, so nobody waits for them."""
    if process == os.getpid():  # after a fork there are none
        _announce(announce, wake, STOP, threads)
