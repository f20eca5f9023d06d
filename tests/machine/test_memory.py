"""Free memory, from files made to look like /proc/meminfo; huge pages; and pages of a mapped file given back."""

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.machine import memory
from bitnet_cli.machine.memory import available_bytes, give_back, group_bytes, is_mapped_file, system_bytes, zeros_on_huge_pages

MEMINFO = "MemTotal:       16316412 kB\nMemFree:          123456 kB\nMemAvailable:    8000000 kB\nBuffers:           1 kB\n"


def pages(count: int, size: int):  # type: ignore[no-untyped-def]
    return lambda name: {"SC_AVPHYS_PAGES": count, "SC_PAGE_SIZE": size}[name]


def test_the_estimate_of_linux(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert system_bytes(tmp_path / "meminfo") == 8000000 * 1024


@pytest.mark.parametrize("text", ["", "MemFree: 5 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n", "MemAvailable"])
def test_a_file_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(os, "sysconf", pages(1000, 4096), raising=False)
    assert system_bytes(tmp_path / "meminfo") == 4096000


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", pages(10, 16384), raising=False)
    assert system_bytes(tmp_path / "none") == 163840


def test_nothing_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no sysconf, macOS no SC_AVPHYS_PAGES."""
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert system_bytes(tmp_path / "none") is None

    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert system_bytes(tmp_path / "none") is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_this_machine() -> None:
    assert 1 << 20 < (available_bytes() or 0) < 1 << 60


def test_zeros_on_huge_pages_begin_at_one() -> None:
    array = zeros_on_huge_pages(5 << 20)
    assert array.shape == (5 << 20,)
    assert array.ctypes.data % (2 << 20) == 0
    assert array.flags.writeable
    assert not array.any()
    array[:] = 7


def resident(data: NDArray[np.uint8]) -> int:
    """KiB of the mapped file that this process has in memory."""
    start, found = f"{data.ctypes.data:x}-", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = found or line.startswith(start)
        if found and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("no such mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is in memory")
def test_pages_of_a_mapped_file_are_given_back(tmp_path: Path) -> None:
    """And come again from the file when they are read."""
    path, size = tmp_path / "data", 4 << 20
    path.write_bytes(bytes(range(256)) * (size // 256))
    with path.open("rb") as source:
        region = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(region, np.uint8)
    assert is_mapped_file(data)
    total = int(data.sum(dtype=np.int64))
    assert resident(data) == size >> 10
    give_back(data, 1, size // 2 + 1)  # whole pages only
    assert size >> 11 <= resident(data) <= (size >> 11) + 8
    assert int(data.sum(dtype=np.int64)) == total


def test_other_arrays_are_left_alone() -> None:
    array = np.ones(1 << 16, np.uint8)
    assert not is_mapped_file(array)
    assert not is_mapped_file(zeros_on_huge_pages(1 << 16))
    give_back(array, 0, len(array))
    assert array.all()


def group(folder: Path, limit: tuple[str, str], most: object, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit[0]).write_text(f"{most}\n")
    (folder / limit[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """The tightest of a group and those above it; pages of files that nobody uses are free. v1 and v2, alone and together."""
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("0::/system/job\n")
    assert group_bytes(own, root) is None and group_bytes(tmp_path / "none", root) is None
    group(root / "system/job", memory.V2, "max", 10, 0)
    assert group_bytes(own, root) is None
    group(root / "system/job", memory.V2, 1000, 600, 50)
    assert group_bytes(own, root) == 450
    group(root / "system", memory.V2, 900, 700, 10)
    assert group_bytes(own, root) == 210
    own.write_text("5:cpu:/a\n4:memory:/job\n0::/\n")
    group(root / "memory/job", memory.V1, 1 << 63, 10, 0)
    assert group_bytes(own, root) is None
    group(root / "memory/job", memory.V1, 500, 600, 0)
    assert group_bytes(own, root) == 0
