"""Memory that this process can still get, memory on huge pages, and pages of a mapped file given back."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be allocated without swapping, by the operating system's estimate; None where it does not say."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def zeros_on_huge_pages(size: int) -> NDArray[np.uint8]:
    """`size` bytes of zeros that begin at a huge page, where the system has them. Memory is taken when it is first written."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Private, said aloud: Python's default is shared memory, to which Linux gives no huge pages.
        region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_HUGEPAGE)
    else:
        region = mmap.mmap(-1, size + HUGE_PAGE)
    array = np.frombuffer(region, np.uint8)
    start = -array.ctypes.data % HUGE_PAGE
    return array[start : start + size]


def _map_of(data: NDArray[np.uint8]) -> mmap.mmap | None:
    """The memory map that an array shows, whole and read-only; None for other arrays."""
    source: Any = data.base
    if isinstance(source, memoryview):  # NumPy puts one between since 2.0
        source = source.obj
    return source if isinstance(source, mmap.mmap) and not data.flags.writeable and data.size == len(source) else None


def is_mapped_file(data: NDArray[np.uint8]) -> bool:
    """Whether the array is a file's memory map, whole."""
    return _map_of(data) is not None


def give_back(data: NDArray[np.uint8], begin: int, end: int) -> None:
    """Tell the system that bytes begin .. end - 1 of a mapped file need not stay in this process's memory. Nothing for other arrays."""
    source = _map_of(data)
    if source is None or not hasattr(mmap, "MADV_DONTNEED") or os.name == "nt":
        return
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        source.madvise(mmap.MADV_DONTNEED, first, last - first)
