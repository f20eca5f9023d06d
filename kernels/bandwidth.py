"""The fastest read loop over an array: what memory can deliver to these threads. Decode is measured against it."""

import threading
import time

import numpy as np
from numpy.typing import NDArray

from .jit import kernel
from .simd import selected, vectors

WIDTH = selected.WIDTH
load, prefetch = selected.load, vectors.prefetch
add, zero, total = selected.add_bytes, selected.zero_bytes, selected.total_bytes


@kernel
def read(data, first, last, ahead):  # type: ignore[no-untyped-def]
    """Sum (mod 256) of bytes first .. last - 1 of a (bytes,) uint8 array, in four streams as the decode kernels read."""
    quarter = (last - first) // 4 // WIDTH * WIDTH
    a, b, c, d = zero(), zero(), zero(), zero()
    for i in range(first, first + quarter, WIDTH):
        prefetch(data, i + ahead)
        prefetch(data, i + quarter + ahead)
        prefetch(data, i + 2 * quarter + ahead)
        prefetch(data, i + 3 * quarter + ahead)
        a, b = add(a, load(data, i)), add(b, load(data, i + quarter))
        c, d = add(c, load(data, i + 2 * quarter)), add(d, load(data, i + 3 * quarter))
    return total(add(add(a, b), add(c, d)))


def read_rate(data: NDArray[np.uint8], threads: int, repeats: int = 5, ahead: int = 4096) -> list[float]:
    """Bytes/s of reading the whole array with `threads` threads, one figure a repeat."""
    edges = [len(data) * i // threads for i in range(threads + 1)]
    read(data, 0, 4 * WIDTH, ahead)  # compiles
    rates = []
    for _ in range(repeats):
        workers = [threading.Thread(target=read, args=(data, edges[i], edges[i + 1], ahead)) for i in range(1, threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        read(data, edges[0], edges[1], ahead)
        for worker in workers:
            worker.join()
        rates.append(len(data) / (time.perf_counter() - start))
    return rates
