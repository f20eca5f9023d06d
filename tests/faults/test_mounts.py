"""Real file systems that are full or read-only, mounted in a namespace of the test's own; and what only an administrator could set up."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL

ALONE = ("unshare", "--user", "--map-root-user", "--mount")
QUANTIZE = ("quantize", EMBEDDED_MODEL, "there/m.gguf", "tq2_0", "-q")
RUN = ("run", "-p", "And the king", "-n", "2", "--temp", "0", "-t", "1", "-q", "--prompt-cache", "there/a.cache")


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    probe = [*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make mounts of his own")


def mounted(options: str, words: tuple[str | Path, ...], folder: Path) -> tuple[int, str, list[str]]:
    """Exit code and stderr of a command, in whose folder `there` is a file system; and what is in that afterwards."""
    (folder / "there").mkdir()
    script = f'mount -t tmpfs -o {options} none there && "$@"; code=$?; ls there > left; exit $code'
    command = [*ALONE, "sh", "-c", script, "sh", sys.executable, "-m", "bitnet_cli", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr, (folder / "left").read_text().split()


@pytest.mark.parametrize(("words", "size"), [(QUANTIZE, "1m"), (RUN, "4k")])
def test_a_full_file_system(words: tuple[str | Path, ...], size: str, tmp_path: Path) -> None:
    code, errors, left = mounted(f"size={size}", words, tmp_path)
    assert (code, errors.count("\n"), left) == (1, 1, []), errors
    assert errors.startswith("bitnet: error: there/") and (
        "its disk has 1048576 free" in errors or "full" in errors or "No space left" in errors
    ), errors


@pytest.mark.parametrize("words", [QUANTIZE, RUN])
def test_a_read_only_file_system(words: tuple[str | Path, ...], tmp_path: Path) -> None:
    code, errors, left = mounted("ro", words, tmp_path)
    assert (code, errors.count("\n"), left) == (1, 1, []), errors
    assert "Read-only file system" in errors


@pytest.mark.skip(reason="disk quotas need the administrator, and a file system that has them; a full one stands in for them")
def test_a_disk_quota() -> None:
    """EDQUOT in place of ENOSPC."""


@pytest.mark.skip(reason="setting the clock back needs the administrator, and is seen by all programs; the dates of files stand in for it")
def test_a_clock_that_is_set_back() -> None:
    """While a text is written, and between two starts."""
