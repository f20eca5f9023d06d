"""What this machine can do at most, measured in the same run: bytes/s of a read loop, operations/s of arithmetic in registers."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from bitnet_kernels import isa
from numpy.typing import NDArray

from bitnet_cli.machine.threads import split

READ = 256 << 20  # bytes
AHEAD = 4096  # bytes that the read loop prefetches ahead, as kernels/bandwidth.py does by default
SECONDS = 0.15  # of each timing
TIMINGS = 3


class Peak(NamedTuple):
    """Operations/s; a multiplication and an addition are two."""

    products: float  # of bytes, by the instructions of the ternary matmul
    floats: float  # float32, as attention's


def kernels_run() -> bool:
    """Whether compiled kernels run: the naive ones say nothing about a machine."""
    return isa.chosen() != isa.NAIVE


def read_rates(data: NDArray[np.uint8], threads: int, passes: int = 3) -> list[float]:
    """Bytes/s of reading these bytes, one figure a pass of READ bytes or more; a first pass, which maps the pages, is left out."""
    if not kernels_run():
        return []
    from bitnet_kernels.bandwidth import reader

    read, rounds = reader(data), -(-READ // len(data))  # a small array several times: starting threads takes as long as reading 10 MB

    def work(first: int, last: int) -> None:
        for _ in range(rounds):
            read(first, last, AHEAD)

    rates = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        split(work, len(data), threads)
        rates.append(len(data) * rounds / (time.perf_counter() - start))
    return rates[1:]


def compile_loops() -> None:
    """Compile what is timed here, or load it."""
    if kernels_run():
        from bitnet_kernels import peak

        peak.multiply_bytes(1)
        peak.multiply_floats(1)
        read_rates(np.zeros(1 << 16, np.uint8), 1)


def _rate(multiply: Callable[[int], object], each: int, threads: int) -> float:
    """Operations/s of `threads` threads that each call multiply(rounds), of `each` operations a round: best of TIMINGS."""
    rounds, seconds = 1, 0.0
    while seconds < SECONDS / 20:  # a first measurement in which starting the clock does not count
        rounds *= 4
        start = time.perf_counter()
        multiply(rounds)
        seconds = time.perf_counter() - start
    rounds = max(rounds, int(rounds * SECONDS / seconds))
    best = 0.0
    for _ in range(TIMINGS):
        start = time.perf_counter()
        split(lambda _first, _last: multiply(rounds), threads, threads)
        best = max(best, each * rounds * threads / (time.perf_counter() - start))
    return best


def peak_rates(threads: int) -> Peak:
    """What arithmetic alone can do, in registers, without loads; zeros without compiled kernels."""
    if not kernels_run():
        return Peak(0.0, 0.0)
    from bitnet_kernels import peak

    products = _rate(peak.multiply_bytes, 2 * peak.STEPS * peak.PRODUCTS, threads)
    return Peak(products, _rate(peak.multiply_floats, 2 * peak.STEPS * peak.FLOATS, threads))
