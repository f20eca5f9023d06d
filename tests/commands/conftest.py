"""Ways to call the command, and the tiny models of scripts/make_test_models.py, loaded by path: `scripts` is not importable where the
package is installed.
"""

import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def models(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_test_models", repo_root / "scripts" / "make_test_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_test_models"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One read-only folder for each flavour, all of the same model."""
    base = tmp_path_factory.mktemp("flavours")
    return {flavour[0]: models.write_folder(base / flavour, flavour) for flavour in models.FLAVOURS}


@pytest.fixture(scope="session")
def bitnet() -> Callable[..., Done]:
    """bitnet("convert", folder, ...): the command in a process of its own."""

    def run(*arguments: str | Path, check: bool = False, **options: Any) -> Done:
        command = [sys.executable, "-m", "bitnet_cli", *map(str, arguments)]
        return subprocess.run(command, check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)

    return run


class Ended(NamedTuple):
    """As subprocess.CompletedProcess names it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """inside("run", ...): the command in this process, which is quicker by its start; terminal: what stdin and stdout are."""
    from bitnet_cli.cli import app

    def run(*arguments: str | Path, stdin: str | bytes = b"", terminal: bool = False, stdin_terminal: bool | None = None) -> Ended:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for name in ("stdout", "stderr")}
        streams["stdin"] = io.TextIOWrapper(io.BytesIO(data), "utf-8")
        for name, stream in streams.items():
            at = stdin_terminal if name == "stdin" and stdin_terminal is not None else terminal and name != "stderr"
            stream.isatty = lambda at=at: at  # type: ignore[method-assign]
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            for name, stream in streams.items():
                patched.setattr(sys, name, stream)
            app([str(argument) for argument in arguments], prog_name="bitnet")
        texts = []
        for name in ("stdout", "stderr"):
            streams[name].flush()
            buffer = streams[name].buffer
            assert isinstance(buffer, io.BytesIO)
            texts.append(buffer.getvalue().decode("utf-8", "replace"))
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *texts)

    return run


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """refused(done, code, *words): one line on stderr with these words, nothing on stdout, no traceback, and this exit code."""

    def check(done: Done | Ended, code: int, *words: str) -> None:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
        assert done.stderr.startswith("bitnet: error: ") and all(word in done.stderr for word in words), done.stderr

    return check
