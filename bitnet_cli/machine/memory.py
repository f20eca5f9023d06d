"""Memory that this process can still get, memory on huge pages, and pages of a mapped file given back."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20


def available_bytes() -> int | None:
    """Bytes that can be allocated without swapping and within the control group's limit; None where nobody says."""
    known = [size for size in (system_bytes(), group_bytes()) if size is not None]
    return min(known) if known else None


def group_bytes(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limits of this process's control group (Linux, v1 and v2), and of those above it, leave; None where there are none.

    Pages of files that nobody uses can be given back, so they count as free.
    """
    free: list[int] = []
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    for _, names, path in (line for line in lines if len(line) == 3):
        if names in ("", "memory"):
            base = root / names
            home, limit, used = base / path.strip("/"), *(V1 if names else V2)
            free += [size for folder in (home, *home.parents) if folder.is_relative_to(base) for size in _room(folder, limit, used)]
    return max(0, min(free)) if free else None


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
NO_LIMIT = 1 << 60  # v1 writes a number near 2^63


def _room(folder: Path, limit: str, used: str) -> list[int]:
    """Free bytes of one group; none where it has no limit."""
    try:
        most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [most - now + int(stat.get("inactive_file", 0))] if most < NO_LIMIT else []
    except (OSError, ValueError):  # `max` is no number
        return []


def system_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
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
