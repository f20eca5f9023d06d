"""Cores and control-group limits, from folders made to look like those of the kernel."""

import math
import os
from pathlib import Path

import pytest

from bitnet_cli.machine import threads
from bitnet_cli.machine.threads import physical_cores


def topology(folder: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(text + "\n")
    return folder


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """allow(cpus, quota): what the process may use."""

    def set_to(cpus: set[int], quota: float = math.inf) -> None:
        monkeypatch.setattr(threads, "_allowed_cpus", lambda: cpus)
        monkeypatch.setattr(threads, "_quota", lambda: quota)

    return set_to


def test_hyper_threads_count_once(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    allow({0, 1, 2, 3})
    assert physical_cores(topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})) == 2


def test_cores_without_hyper_threads(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    allow({0, 1, 2})
    assert physical_cores(topology(tmp_path, {0: "0", 1: "1", 2: "2"})) == 3


def test_only_the_cpus_of_this_process_count(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    """taskset -c 0,4,5 on 4 cores of two threads: core 0 once, core 1 by its second thread."""
    folder = topology(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
    allow({0, 4, 5})
    assert physical_cores(folder) == 2
    allow({6})
    assert physical_cores(folder) == 1


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    allow({0, 1, 2, 3, 4})
    assert physical_cores(tmp_path / "none") == 5


@pytest.mark.parametrize(
    ("quota", "cores"), [(0.5, 1), (1.0, 1), (1.5, 1), (2.0, 2), (3.9, 3), (100.0, 4), (0.0, 1), (-1.0, 1), (math.inf, 4)]
)
def test_a_control_group_lowers_it(tmp_path: Path, allow, quota: float, cores: int) -> None:  # type: ignore[no-untyped-def]
    allow({0, 1, 2, 3}, quota)
    assert physical_cores(topology(tmp_path, {cpu: str(cpu) for cpu in range(4)})) == cores


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", math.inf),
        ("150000 100000\n", 1.5),
        ("50000 100000", 0.5),
        ("0 100000", 0.0),
        ("100000 0", math.inf),
        ("", math.inf),
        ("100000", math.inf),
        ("many 100000", math.inf),
        ("1 2 3", math.inf),
    ],
)
def test_the_quota_file(tmp_path: Path, text: str, quota: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert threads._quota(tmp_path) == quota


def test_no_quota_file(tmp_path: Path) -> None:
    assert threads._quota(tmp_path) == math.inf


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_quota_of_its_own_group(tmp_path: Path) -> None:
    """cgroup v2: of a service inside a slice, the least of both counts."""
    write(tmp_path / "proc", "0::/system.slice/bitnet.service\n")
    root = tmp_path / "cgroup"
    write(root / "system.slice" / "bitnet.service" / "cpu.max", "300000 100000\n")
    assert threads._quota(root, tmp_path / "proc") == 3.0
    write(root / "system.slice" / "cpu.max", "150000 100000\n")
    assert threads._quota(root, tmp_path / "proc") == 1.5
    write(root / "other.slice" / "cpu.max", "50000 100000\n")
    assert threads._quota(root, tmp_path / "proc") == 1.5


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_the_first_version(tmp_path: Path, folder: str) -> None:
    write(tmp_path / "proc", "5:memory:/a\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/b\nnonsense\n")
    group = tmp_path / "cgroup" / folder / "docker" / "x"
    write(group / "cpu.cfs_quota_us", "-1\n")
    write(group / "cpu.cfs_period_us", "100000\n")
    assert threads._quota(tmp_path / "cgroup", tmp_path / "proc") == math.inf
    write(group / "cpu.cfs_quota_us", "250000\n")
    assert threads._quota(tmp_path / "cgroup", tmp_path / "proc") == 2.5


def test_hybrid_cpus(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    """Two performance cores of two threads each, and four others."""
    allow(set(range(8)))
    folder = topology(tmp_path / "system" / "cpu", {cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 4 else str(cpu) for cpu in range(8)})
    assert physical_cores(folder) == 6
    write(tmp_path / "cpu_core" / "cpus", "0-3\n")
    assert physical_cores(folder) == 2
    allow({5, 6, 7})
    assert physical_cores(folder) == 3


def test_big_and_little_cpus(tmp_path: Path, allow) -> None:  # type: ignore[no-untyped-def]
    allow(set(range(6)))
    folder = topology(tmp_path / "system" / "cpu", {cpu: str(cpu) for cpu in range(6)})
    for cpu in range(6):
        write(folder / f"cpu{cpu}" / "cpu_capacity", "1024\n" if cpu > 3 else "446\n")
    assert physical_cores(folder) == 2


def test_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert threads._allowed_cpus() == set(range(6))
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads._allowed_cpus() == {0}


def test_this_machine() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
