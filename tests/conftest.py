"""Fixtures for every test: where the repository is, its files, its Python as syntax trees, and data that may lie beside it."""

import ast
import atexit
import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# What a shell starts in the background ignores Ctrl-C, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Typer makes all of its commands anew for each call, of which tests make thousands.
typer.main.get_command = cache(typer.main.get_command)

# What a test converts or pulls lands in no folder of the person who runs it.
os.environ["BITNET_MODELS"] = tempfile.mkdtemp(prefix="bitnet-models-")
atexit.register(shutil.rmtree, os.environ["BITNET_MODELS"], ignore_errors=True)

# No deadline: an example that meets a kernel first also compiles it, which takes seconds. No database: a run leaves nothing behind.
settings.register_profile("bitnet", deadline=None, database=None, print_blob=True)
settings.load_profile("bitnet")


@cache
def _files() -> tuple[Path, ...]:
    """Relative to the root: what git tracks or would add. Without git (an unpacked archive): everything but caches and build products."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names: list[Path] = []
    if (ROOT / ".git").exists():
        listing = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        names = [Path(name) for name in listing.split("\0") if name]
    if not names:
        skipped = {".git", ".venv", "build", "dist", "bitnet_cli.egg-info", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
        names = [path for path in names if path.parts[0] not in skipped]
    return tuple(sorted(path for path in names if (ROOT / path).is_file()))


@cache
def _syntax_trees() -> dict[Path, ast.Module]:
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path)) for path in _files() if path.suffix == ".py"}


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> tuple[Path, ...]:
    """Every file of the project, relative to the root."""
    return _files()


@pytest.fixture(scope="session")
def python_files() -> dict[Path, ast.Module]:
    """Every Python file of the project, relative to the root, and its syntax tree."""
    return _syntax_trees()


@pytest.fixture(scope="session")
def shared_vocab() -> Path:
    """Folder of two real vocabularies with test vectors. It lies beside the repository, not in it: megabytes of other projects' data."""
    folder = ROOT.parent / "shared" / "data" / "vocab"
    if not folder.is_dir():
        pytest.skip("no shared/data/vocab beside the repository: the real vocabularies are not in it")
    return folder


@pytest.fixture(scope="session")
def models(repo_root: Path) -> ModuleType:
    """scripts/make_test_models.py, loaded by path: `scripts` is not importable where the package is installed."""
    spec = importlib.util.spec_from_file_location("make_test_models", repo_root / "scripts" / "make_test_models.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["make_test_models"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    made, kept = module.masters, {}

    def masters(shape: Any, seed: int = 0, exact: bool = True, kind: Any = module.KINDS["bitnet"]) -> dict[str, Any]:
        """Tests ask for few of them, hundreds of times."""
        key = shape, seed, exact, kind.tied, tuple(kind.norms.items())
        if key not in kept:
            kept[key] = made(shape, seed, exact, kind)
        return {name: value.copy() for name, value in kept[key].items()}

    module.masters = masters
    return module  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def arm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its I2_S weights as bitnet.cpp packs them on ARM: byte p of 16 holds weights p, p + 16, p + 32, p + 48."""
    import numpy as np

    from bitnet_cli.embedded import EMBEDDED_MODEL
    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.gguf_file.types import TensorType
    from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
    from bitnet_cli.ternary import i2_s

    path = tmp_path_factory.mktemp("arm") / "arm.gguf"
    with open_gguf(EMBEDDED_MODEL) as gguf:

        def produce(name: str) -> np.ndarray:
            raw, info = gguf.raw(name), gguf.tensors[name]
            if info.type is not TensorType.I2_S:
                return raw
            codes = (i2_s.unpack(raw, *info.shape)[0] + 1).astype(np.uint8).reshape(-1, 4, 16)
            weights = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
            return np.concatenate([weights.reshape(-1), raw[-i2_s.TAIL :]])

        tensors = [OutputTensor(i.name, i.type, i.shape, lambda name=i.name: produce(name)) for i in gguf.tensors.values()]
        write_gguf(path, gguf.require_str("general.architecture"), gguf.typed_metadata, tensors)
    return path


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file of tests leaves for good (modules, compiled kernels) is not looked through again by each collection of the garbage.

    After a thousand tests that would take a second, and some tests ask for it several times.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


_seconds: dict[str, float] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up where the time goes, by folder and file."""
    file = report.nodeid.partition("::")[0]
    for place in {file, file.rpartition("/")[0]}:
        _seconds[place] = _seconds.get(place, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where most of it went, if it was more than a minute."""
    folders = {place: seconds for place, seconds in _seconds.items() if not place.endswith(".py")}
    if sum(folders.values()) < 60:
        return
    for title, places in (("folder", folders), ("file", {place: _seconds[place] for place in _seconds.keys() - folders.keys()})):
        most = sorted(places.items(), key=lambda item: -item[1])[:20]
        terminalreporter.write_line(f"seconds by {title}: " + ", ".join(f"{place} {seconds:.0f}" for place, seconds in most))
