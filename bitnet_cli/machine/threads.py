"""How many threads to run: the physical cores that this process may use. And work that is split between some."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that a control group grants; infinity where there is no limit (Linux, cgroup v2)."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores this process may use, hyper-threads counted once: two threads of one core share the units that the kernels fill."""
    cpus = _allowed_cpus()
    cores = set()
    for cpu in cpus:
        try:
            cores.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), math.ceil(_quota())) if math.isfinite(_quota()) else len(cores))


def split(work: Callable[[int, int], object], count: int, threads: int) -> None:
    """work(first, last) for parts of 0 .. count - 1, each in a thread of its own, the caller's among them; returns when all are done.

    For work that releases the GIL. It must not raise: an exception in another thread would be printed and lost.
    """
    edges = [count * i // threads for i in range(threads + 1)]
    helpers = [threading.Thread(target=work, args=edges[i : i + 2]) for i in range(1, threads)]
    for helper in helpers:
        helper.start()
    work(edges[0], edges[1])
    for helper in helpers:
        helper.join()
