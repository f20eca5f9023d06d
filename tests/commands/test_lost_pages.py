"""A model file that becomes shorter while it is mapped: one line, where the system would end the process without a word."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet_cli import load
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError, BitnetError
from bitnet_cli.gguf_file import reader
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.machine import memory

from ..command import bitnet
from ..gguf_file.splitting import split

POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows keeps a mapped file from being shortened")
SENTENCE = "became shorter, or could not be read, while it was in use"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(EMBEDDED_MODEL, tmp_path / "a model.gguf"))


def shortened(model: Path, *options: str) -> tuple[int, str]:
    """Exit code and stderr of a text without an end, whose model loses all but a page when its first words are there."""
    words = ["run", "-m", str(model), "-p", "And", "-n", "-1", "-c", "0", "--ignore-eos", "-q", "-t", "2", "--temp", "0", *options]
    command = [sys.executable, "-m", "bitnet_cli", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        os.truncate(model, 4096)
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors.decode()


@POSIX
@pytest.mark.parametrize("isa", ["", "naive"])
def test_while_kernels_or_numpy_read_it(model: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy reads with Python's lock held, so no other thread of Python could say anything."""
    monkeypatch.setenv("BITNET_ISA", isa)
    assert shortened(model) == (1, f"bitnet: error: {model}: {SENTENCE}\n")


@POSIX
def test_in_memory_it_does_not_matter(model: Path) -> None:
    assert shortened(model, "--no-mmap") == (0, "")


@POSIX
@pytest.mark.parametrize("command", ["inspect", "quantize"])
def test_while_a_file_is_read_once(model: Path, command: str, tmp_path: Path) -> None:
    """Shortened between the reading of the table and that of the tensors."""
    code = (
        "import os, sys; from bitnet_cli.gguf_file.reader import GGUFFile; from bitnet_cli.start import main; raw = GGUFFile.file_bytes;"
        f"GGUFFile.file_bytes = lambda self: (os.truncate({str(model)!r}, 4096), raw(self))[1]; main()"
    )
    words = {"inspect": ["inspect", str(model), "--check"], "quantize": ["quantize", str(model), str(tmp_path / "q.gguf"), "tq2_0"]}[
        command
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, f"bitnet: error: {model}: {SENTENCE}\n")
    assert not (tmp_path / "q.gguf").exists()


@POSIX
def test_somebody_elses_handler_stays(model: Path) -> None:
    """A program that loads a model as a library, or a user of faulthandler, has the last word."""
    code = (
        "import faulthandler, signal, sys; from bitnet_kernels import lost_pages\n"
        "faulthandler.enable(); print(lost_pages.announce('a')); faulthandler.disable()\n"
        "signal.signal(signal.SIGBUS, print); print(lost_pages.announce('a')); signal.signal(signal.SIGBUS, signal.SIG_DFL)\n"
        "print(lost_pages.announce('a'), lost_pages.announce('b' * 9000)); sys.stdout.flush()\n"
        "signal.raise_signal(signal.SIGBUS)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False", "True", "True"]
    assert (done.returncode, done.stderr) == (1, "b" * 4095 + "\n")


def test_the_same_text_from_memory(model: Path) -> None:
    """Also of a split model, and not a byte is read from the file afterwards."""
    options = {"max_tokens": 12, "temperature": 0}
    with load(model) as whole:
        expected = list(whole.generate("And the king", **options))
    (model.parent / "parts").mkdir()
    parts = split(model, model.parent / "parts", [9, 20], "tiny")
    for path, files in ((model, [model]), (parts[1], parts)):
        with load(path, mapped=False) as loaded:
            for file in files:
                os.truncate(file, 100)
            assert list(loaded.generate("And the king", **options)) == expected


def test_what_is_read_into_memory(model: Path) -> None:
    with open_gguf(model) as mapped, open_gguf(model, mapped=False) as read:
        assert np.array_equal(mapped.file_bytes(), read.file_bytes()[: mapped.size])
        assert not read.file_bytes().flags.writeable and read.file_bytes().ctypes.data % 4096 == 0
        assert read.descriptor(next(iter(read.tensors.values()))) is None


def test_too_large_for_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    with pytest.raises(BitnetError, match=r"a model.gguf: needs 0.0 GiB of memory, 0.0 are free"):
        open_gguf(model, mapped=False)


@POSIX
def test_shorter_while_it_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[..., object] = reader.join
    monkeypatch.setattr(reader, "join", lambda parts: (whole(parts), os.truncate(model, 5000))[0])
    with pytest.raises(BadFileError, match=r"a model.gguf: file: became shorter while it was read \(byte 5000\)"):
        open_gguf(model, mapped=False)


def test_the_option_is_there() -> None:
    assert "--no-mmap" in bitnet("run", "--help").stdout and "--no-mmap" in bitnet("perplexity", "--help").stdout


@POSIX
def test_a_file_that_takes_its_place_is_no_loss(model: Path) -> None:
    """As every writer here does it: the map keeps the old one."""
    with load(model) as loaded:
        shutil.copy(EMBEDDED_MODEL, model.with_suffix(".new"))
        model.with_suffix(".new").replace(model)
        assert list(loaded.generate("And", max_tokens=3))
