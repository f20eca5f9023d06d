"""How many threads to run: the physical cores that this process may really use. And work that is split between some."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


CGROUPS, CPUS = Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


def _numbers(path: Path) -> list[float]:
    """Numbers of a file, `max` and negative ones as infinity; none where it is not there, or holds something else."""
    try:
        found = [math.inf if word == "max" else float(word) for word in path.read_text().split()]
        return [number if number >= 0 else math.inf for number in found]
    except (OSError, ValueError):
        return []


def _quota(root: Path = CGROUPS, groups: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs that control groups grant this process: the least of its own group and those around it; infinity where there is no limit.

    Linux: cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`. In a container its own group may be seen as the root.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        lines = []
    places = [root]
    for parts in lines:
        if len(parts) == 3 and (parts[1] == "" or "cpu" in parts[1].split(",")):
            bases = [root] if parts[1] == "" else [root / "cpu", root / parts[1]]
            inner = Path(parts[2].lstrip("/"))
            places += [base / group for base in bases for group in (inner, *inner.parents)]
    least = math.inf
    for place in places:
        limit = _numbers(place / "cpu.max") or [*_numbers(place / "cpu.cfs_quota_us"), *_numbers(place / "cpu.cfs_period_us")]
        if len(limit) == 2 and limit[0] < math.inf and 0 < limit[1] < math.inf:
            least = min(least, limit[0] / limit[1])
    return least


def _listed(text: str) -> set[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _quick(cpus: set[int], topology: Path) -> set[int]:
    """Of some CPUs, those that are not of a slower kind: on hybrid CPUs the performance cores, where the system tells them apart."""
    try:  # Intel: a performance counter unit for each kind
        fast = cpus & _listed((topology.parent.parent / "cpu_core" / "cpus").read_text())
        return fast or cpus
    except (OSError, ValueError):
        pass
    sizes = {cpu: (_numbers(topology / f"cpu{cpu}" / "cpu_capacity") or [0.0])[0] for cpu in cpus}  # ARM: of 1,024 for the quickest
    return {cpu for cpu in cpus if sizes[cpu] >= 0.8 * max(sizes.values())}


def physical_cores(topology: Path = CPUS) -> int:
    """Cores this process may use, hyper-threads counted once: two threads of one core share the units that the kernels fill.

    Of hybrid CPUs the performance cores only: all threads of a step wait for the slowest. A control group's quota is rounded down: a thread
    that runs out of it stops for the rest of the period, and all others wait for it.
    """
    cores = set()
    for cpu in _quick(_allowed_cpus(), topology):
        try:
            cores.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    quota = _quota()
    return max(1, min(len(cores), math.floor(quota)) if math.isfinite(quota) else len(cores))


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
