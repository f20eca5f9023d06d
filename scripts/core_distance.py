"""Nanoseconds until one of the first two cores sees what the other has written, twice a second, beside whatever else runs.

    python scripts/core_distance.py [seconds]

About 30 behind one L3 cache, 160 where each core has its own (AMD's EPYC). A host may move the cores of a virtual machine about meanwhile:
then figures of prefill are of two machines (docs/log.md#own-tokens). Each line: time.monotonic(), nanoseconds.
"""

import os
import sys
import threading
import time

import numpy as np
from bitnet_kernels.jit import kernel
from bitnet_kernels.simd.atomics import atomic_add, atomic_load
from numpy.typing import NDArray


@kernel
def take_turns(words, me, rounds):
    """Add 1 to words[0] whenever it is even (me = 0) or odd (1)."""
    for _ in range(rounds):
        while (atomic_load(words, 0) & 1) != me:
            pass
        atomic_add(words, 0, 1)


def _play(core: int, words: NDArray[np.int64], me: int) -> None:
    os.sched_setaffinity(0, {core})
    take_turns(words, me, 10)  # until both are here
    start = time.perf_counter()
    take_turns(words, me, 2000)
    if me:
        print(f"{time.monotonic():.2f} {1e9 * (time.perf_counter() - start) / 4000:.0f}", flush=True)


cores, last = sorted(os.sched_getaffinity(0)), time.monotonic() + float((*sys.argv, "10")[1])
while time.monotonic() < last:
    words = np.zeros(8, np.int64)
    other = threading.Thread(target=_play, args=(cores[0], words, 0))
    other.start()
    _play(cores[1], words, 1)
    other.join()
    time.sleep(0.5)
