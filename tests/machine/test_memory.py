"""Free memory, from files made to look like /proc/meminfo."""

import os
from pathlib import Path

import pytest

from bitnet_cli.machine.memory import available_bytes

MEMINFO = "MemTotal:       16316412 kB\nMemFree:          123456 kB\nMemAvailable:    8000000 kB\nBuffers:           1 kB\n"


def pages(count: int, size: int):  # type: ignore[no-untyped-def]
    return lambda name: {"SC_AVPHYS_PAGES": count, "SC_PAGE_SIZE": size}[name]


def test_the_estimate_of_linux(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert available_bytes(tmp_path / "meminfo") == 8000000 * 1024


@pytest.mark.parametrize("text", ["", "MemFree: 5 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n", "MemAvailable"])
def test_a_file_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(os, "sysconf", pages(1000, 4096), raising=False)
    assert available_bytes(tmp_path / "meminfo") == 4096000


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", pages(10, 16384), raising=False)
    assert available_bytes(tmp_path / "none") == 163840


def test_nothing_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no sysconf, macOS no SC_AVPHYS_PAGES."""
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert available_bytes(tmp_path / "none") is None

    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert available_bytes(tmp_path / "none") is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux only")
def test_this_machine() -> None:
    assert 1 << 20 < (available_bytes() or 0) < 1 << 60
