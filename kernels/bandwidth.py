"""The fastest read loop over an array: what memory can deliver to these threads. Decode is measured against it."""

import threading
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .frame import Frame
from .jit import entry
from .native import Call, Entry
from .simd import selected, vectors

WIDTH = selected.WIDTH
load, prefetch = selected.load, vectors.prefetch
add, zero, total = selected.add_bytes, selected.zero_bytes, selected.total_bytes


class Bytes(NamedTuple):
    """The frame of `read`."""

    data: NDArray[np.uint8]  # (bytes,)


@entry
def read(frame, first, last, ahead):
    """Sum (mod 256) of bytes first .. last - 1, in four streams as the decode kernels read."""
    data = frame.data
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


_READ = Entry("bandwidth", "read")


def reader(data: NDArray[np.uint8]) -> Call:
    """`read` over an array, compiled: a function of the other three."""
    return _READ.over(Frame(Bytes(data)), 3)


def read_rate(data: NDArray[np.uint8], threads: int, repeats: int = 5, ahead: int = 4096) -> list[float]:
    """Bytes/s of reading the whole array with `threads` threads, one figure a repeat."""
    edges = [len(data) * i // threads for i in range(threads + 1)]
    rates, read_data = [], reader(data)
    for _ in range(repeats):
        workers = [threading.Thread(target=read_data, args=(edges[i], edges[i + 1], ahead)) for i in range(1, threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        read_data(edges[0], edges[1], ahead)
        for worker in workers:
            worker.join()
        rates.append(len(data) / (time.perf_counter() - start))
    return rates
