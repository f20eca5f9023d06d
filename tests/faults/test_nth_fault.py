"""Every allocation and every write that can fail, failing once: one line, an exit code, the old file as it was, and nothing left behind."""

import errno
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.chat import files
from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BitnetError
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.text.chat.templates import Message

from ..command import Done, bitnet
from ..model.builder import Sizes, random_model, write_model

resource = pytest.importorskip("resource", reason="limits of POSIX")
NAIVE = {"BITNET_ISA": "naive"}
IDS = list(range(16))


class Countdown:
    """Functions that work until the n-th call of any of them, which raises; 0: they only count."""

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException, places: list[tuple[Any, str]]):
        self.left = self.calls = 0
        for owner, name in places:
            patch.setattr(owner, name, self._wrapped(getattr(owner, name), error))

    def _wrapped(self, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            self.left -= 1
            if self.left == 0:
                raise type(error)(*error.args)  # a new one: an error keeps what the frames that it went through held
            return function(*arguments, **options)

        return call

    def every(self, action: Callable[[], Any]) -> Iterator[int]:
        """Runs the action once whole; then n, with the n-th call set to fail, for every n."""
        self.left = self.calls = 0
        action()
        count = self.calls
        assert count > 3
        for n in range(1, count + 1):
            self.left = n
            yield n
            assert self.left <= 0
        self.left = 0


def descriptors() -> int:
    gc.collect()
    gc.freeze()  # what is there now (Numba, if this file compiles first) need not be looked through again
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("faults") / "m.gguf", random_model(Sizes(layers=1), seed=7, tied=False))


@pytest.fixture
def opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenModel]:
    result = open_model(model, Options(context=32, threads=1))
    text = Sequence(result.engine)
    text.feed(IDS)
    yield result
    text.release()
    result.scheduler.close()


ALLOCATIONS = [(np, name) for name in ("empty", "zeros", "ones", "full", "concatenate", "stack", "arange", "array")]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Countdown:
    """NumPy's arrays: all of the program's memory whose size a file or a user decides."""
    return Countdown(monkeypatch, MemoryError("Unable to allocate 9 GiB"), ALLOCATIONS)


def out_of_memory(done: Done) -> None:
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr == "bitnet: error: not enough memory (Unable to allocate 9 GiB); a smaller -c needs less\n"


def test_every_allocation_of_a_load(model: Path, memory: Countdown) -> None:
    def load() -> None:
        open_model(model, Options(context=32, threads=1)).scheduler.close()

    load()  # what is imported and kept for good
    before = descriptors()
    for _ in memory.every(load):
        with pytest.raises(MemoryError):
            load()
    assert descriptors() == before
    load()


def test_what_the_command_says(model: Path, memory: Countdown) -> None:
    words = ("run", "-m", model, "-p", "a", "-n", "1", "-t", "1", "-q")
    env = {**os.environ, **NAIVE}
    assert bitnet(*words, env=env).returncode == 0
    memory.calls = 0
    bitnet(*words, env=env)
    for n in range(1, memory.calls, max(memory.calls // 20, 1)):
        memory.left = n
        out_of_memory(bitnet(*words, env=env))
    memory.left = 0


@pytest.fixture(scope="module")
def folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written: Path = models.write_folder(tmp_path_factory.mktemp("checkpoint") / "model", "C_packed", models.Shape(layers=1))
    return written


@pytest.fixture(scope="module")
def saves(
    model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, OpenModel], tuple[Path, Callable[[], Any]]]:
    """What writes a file: the file, which is there already, and a function that writes it anew."""

    def make(what: str, opened: OpenModel) -> tuple[Path, Callable[[], Any]]:
        base = tmp_path_factory.mktemp(what)
        path = base / {"convert": "m.gguf", "quantize": "m.gguf", "embed": "m.npy", "chat": "m.json", "cache": "m.cache"}[what]
        known: dict[str, Any] = {
            "model": "m",
            "template": "t",
            "sampling": Sampling(),
            "messages": [Message("user", "x" * 9000)],
            "first": 0,
        }
        from bitnet_cli.commands.quantize import quantize

        actions: dict[str, Callable[[], Any]] = {
            "convert": lambda: convert(folder, path, force=True, quiet=True),
            "quantize": lambda: quantize(model, path, "i2_s", force=True, quiet=True),
            "chat": lambda: files.save(path, opened.tokenizer, **known),
            "cache": lambda: prompt_cache.save(opened, IDS, path),
        }
        actions[what]()
        return path, actions[what]

    return make


WRITERS = ["convert", "quantize", "chat", "cache"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow past it: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_that_is_full_at_any_byte(what: str, saves: Any, opened: OpenModel) -> None:
    path, save = saves(what, opened)
    size, old = path.stat().st_size, path.read_bytes()
    limits = sorted({0, 1, size - 1, *(size * n // 60 for n in range(60)), *range(0, min(size, 2048), 128)})
    before = descriptors()
    for limit in limits:
        with files_of_at_most(limit), pytest.raises(BitnetError, match=r"full|too large|cannot be written"):
            save()
        assert path.read_bytes() == old and list(path.parent.iterdir()) == [path], limit
    assert descriptors() == before
    with files_of_at_most(size):
        save()


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_call_of_the_system_that_writes(what: str, code: int, saves: Any, opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, syncing and renaming, as on a disk that fails."""
    path, save = saves(what, opened)
    old = path.read_bytes()
    places = [(os, "fsync"), (Path, "replace"), (os, "open")]
    calls = Countdown(monkeypatch, OSError(code, os.strerror(code)), places)
    before = descriptors()
    for n in calls.every(save):
        try:
            save()
        except BitnetError:
            assert path.read_bytes() == old
        # Where no folder can be opened to be synced, or a stale part to be removed, the file is as good without.
        assert list(path.parent.iterdir()) == [path], n
    assert descriptors() == before


@pytest.mark.parametrize("what", ["convert", "quantize"])
def test_every_allocation_of_what_is_written(what: str, saves: Any, opened: OpenModel, memory: Countdown) -> None:
    path, save = saves(what, opened)
    old = path.read_bytes()
    before = descriptors()
    for n in memory.every(save):
        with pytest.raises(MemoryError):
            save()
        assert path.read_bytes() == old and list(path.parent.iterdir()) == [path], n
    assert descriptors() == before


def test_a_disk_that_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO at every read of a checkpoint's weights."""
    out = tmp_path / "m.gguf"
    reads = Countdown(
        monkeypatch, OSError(errno.EIO, os.strerror(errno.EIO)), [(os, name) for name in ("pread", "preadv") if hasattr(os, name)]
    )
    for _ in reads.every(lambda: convert(folder, out, force=True, quiet=True)):
        out.unlink(missing_ok=True)
        done = bitnet("convert", folder, "-o", out, "-q")
        assert (done.returncode, done.stderr.count("\n")) in ((1, 1), (3, 1)) and "Input/output error" in done.stderr, done.stderr
        assert list(tmp_path.iterdir()) == []
