"""Fixtures for every test: where the repository is, its files, its Python as syntax trees, and data that may lie beside it."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

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
