"""Kernels that compute wrongly: the command starts again with the portable set, once, and says so in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bitnet_kernels import compile_cache, isa, native

from bitnet_cli.commands import again
from bitnet_cli.errors import WrongKernelsError
from bitnet_cli.model import self_test

from ..command import bitnet

WORDS = ("run", "-p", "And the king said", "-n", "12", "--temp", "0", "-t", "1", "-q")
THREES, ONES = b"\3" * 4, b"\1" * 4
COMPILED = pytest.mark.skipif(isa.chosen() in (isa.NAIVE, "portable"), reason="there is no other set to fall back to")


class ReplacedError(Exception):
    """What exec does to a process ends a test."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of exec."""
    found: list[Any] = []

    def exec_(*arguments: Any) -> None:
        found.extend(arguments)
        raise ReplacedError

    monkeypatch.setattr(os, "execve", exec_)
    monkeypatch.setattr(again, "_taken", [])
    return found


@pytest.mark.skipif(os.name != "posix", reason="exec")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["python", "/bin/bitnet", "run", "-p", "a b"], ["run", "-p", "a b"]),
        (["python", "-P", "-m", "bitnet_cli", "run"], ["run"]),
        (["python", "bitnet.pyz"], []),
    ],
)
def test_the_same_command_line(
    given: list[str], words: list[str], started: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", given)
    monkeypatch.setattr(sys, "argv", ["bitnet", *words])
    with pytest.raises(ReplacedError):
        again.start_again(WrongKernelsError("avx2", "decode"))
    program, line, environment = started
    assert (program, line) == (sys.executable, [sys.executable, *given[1:]])
    assert environment == {**os.environ, "BITNET_ISA": "portable"}
    assert capfd.readouterr().err == (
        "bitnet: warning: the kernels for avx2 compute wrongly on this machine (their self-test: decode); "
        "starting again with BITNET_ISA=portable, which is slower\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="exec")
def test_stdin_is_there_again(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(again, "_taken", [b"Once ", b"upon"])
    before = os.dup(0)
    try:
        with pytest.raises(ReplacedError):
            again.start_again(WrongKernelsError("avx2", "decode"))
        assert os.read(0, 100) == b"Once upon"
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert started[1] == [sys.executable, *sys.argv[1:]]


def test_never_a_second_time_nor_as_a_part_of_another_program(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bitnet", "run"])
    again.start_again(WrongKernelsError("avx2", "decode"))  # this is pytest
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    again.start_again(WrongKernelsError("portable", "decode"))
    assert started == []


@COMPILED
def test_the_error_where_nothing_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "_wrong", lambda *_: iter(["decode"]))
    monkeypatch.setattr(self_test, "_passed", set())
    done = bitnet(*WORDS)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "compute wrongly on this machine (their self-test: decode); BITNET_ISA=portable may be right" in done.stderr


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment with a folder of kernels of which one takes the lower bit of codes of 2 bits. Its checksum is right."""
    whole = compile_cache.folder()
    if whole is None:
        pytest.skip("no folder of kernels here")
    bitnet(*WORDS, process=True, check=True)  # all of them are there
    folder = tmp_path / "cache" / whole.name
    folder.parent.mkdir(mode=0o700)
    shutil.copytree(whole, folder, copy_function=os.link, ignore=lambda _, names: [name for name in names if name.endswith(".lock")])
    found = 0
    for path in folder.glob("ternary.matvec_scaled-*.code"):
        code = native.decoded(path.read_bytes())
        found += code.object.count(THREES)
        path.unlink()
        path.write_bytes(native.encoded(code._replace(object=code.object.replace(THREES, ONES))))
    if not found:
        pytest.skip("this set has no such mask in its code")
    # Behind it the whole folders, so that the portable set need not be compiled again.
    return {**os.environ, "BITNET_CACHE_DIR": str(folder.parent), "BITNET_SHARED_CACHE_DIR": str(whole.parent)}


@COMPILED
def test_a_kernel_that_is_broken_on_purpose(broken: dict[str, str]) -> None:
    """The process would be replaced by one with the portable set."""
    code = (
        "import os, sys; from bitnet_cli.start import main\nos.execve = lambda *a: sys.exit(f'{a[2][\"BITNET_ISA\"]} {a[1][3:]}')\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, *WORDS], env=broken, capture_output=True, text=True, timeout=60, check=False)
    note, started = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert note.startswith(f"bitnet: warning: the kernels for {isa.chosen()} compute wrongly on this machine (their self-test: decode)")
    assert started == f"portable {list(WORDS)}"


@COMPILED
@pytest.mark.slow
def test_the_text_is_right_all_the_same(broken: dict[str, str]) -> None:
    expected = bitnet(*WORDS, process=True, check=True, env={**os.environ, "BITNET_ISA": "portable"}).stdout
    done = subprocess.run(
        [sys.executable, "-m", "bitnet_cli", *WORDS], env=broken, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1) and "starting again with BITNET_ISA=portable" in done.stderr
    assert done.stdout == expected == bitnet(*WORDS).stdout
