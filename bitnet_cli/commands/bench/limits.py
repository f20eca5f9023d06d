"""What this machine can do at most, measured in the same run: bytes/s of a read loop, operations/s of the matmul kernel."""

import time

import numpy as np
from bitnet_kernels import arrays, isa
from numpy.typing import NDArray

from bitnet_cli.machine.threads import split

# Rows of weights and tokens that stay in a core's caches: 80 KiB packed and 320 KiB of activations.
ROWS, COLS, TOKENS = 128, 2560, 128
READ = 256 << 20  # bytes
AHEAD = 4096  # bytes that the read loop prefetches ahead, as kernels/bandwidth.py does by default
SECONDS = 0.15  # of each timing
TIMINGS = 3


def kernels_run() -> bool:
    """Whether compiled kernels run: the naive ones say nothing about a machine."""
    return isa.chosen() != isa.NAIVE


def read_rates(data: NDArray[np.uint8], threads: int, passes: int = 3) -> list[float]:
    """Bytes/s of reading these bytes, one figure a pass of READ bytes or more; a first pass, which maps the pages, is left out."""
    if not kernels_run():
        return []
    from bitnet_kernels.bandwidth import read

    rounds = -(-READ // len(data))  # a small array several times: starting threads takes as long as reading 10 MB

    def work(first: int, last: int) -> None:
        for _ in range(rounds):
            read(data, first, last, AHEAD)

    rates = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        split(work, len(data), threads)
        rates.append(len(data) * rounds / (time.perf_counter() - start))
    return rates[1:]


def _multiply(rounds: int) -> None:
    from bitnet_kernels.ternary import matmul

    # Bytes 0b01_01_01_01: four weights of 0. Speed does not depend on values.
    packed, codes = np.full(ROWS * COLS // 4, 0x55, np.uint8), np.ones((TOKENS, arrays.padded(COLS) + 256), np.int8)
    out, tile = np.zeros((TOKENS, ROWS), np.int32), np.zeros(arrays.TILE_BYTES, np.uint8)
    sums = np.zeros(TOKENS * arrays.BLOCK_ROWS, np.int32)
    for _ in range(rounds):
        matmul(packed, np.int64(0), COLS, codes, TOKENS, out, tile, sums, 0, ROWS)


def compile_loops() -> None:
    """Compile what is timed here, or load it."""
    if kernels_run():
        _multiply(1)
        read_rates(np.zeros(1 << 16, np.uint8), 1)


def matmul_rate(threads: int) -> float:
    """Operations/s of the ternary matmul kernel where memory does not hold it up, best of TIMINGS; 0.0 without compiled kernels."""
    if not kernels_run():
        return 0.0
    _multiply(2)
    start = time.perf_counter()
    _multiply(10)
    rounds = max(10, int(10 * SECONDS / (time.perf_counter() - start)))
    best = 0.0
    for _ in range(TIMINGS):
        start = time.perf_counter()
        split(lambda _first, _last: _multiply(rounds), threads, threads)
        best = max(best, 2.0 * ROWS * COLS * TOKENS * rounds * threads / (time.perf_counter() - start))
    return best
