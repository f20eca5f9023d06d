"""Checkpoint folders, and `bitnet` with what it said."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .. import command
from ..command import Done


@pytest.fixture(scope="session")
def folders(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One read-only folder for each flavour, all of the same model."""
    base = tmp_path_factory.mktemp("flavours")
    return {flavour[0]: models.write_folder(base / flavour, flavour) for flavour in models.FLAVOURS}


@pytest.fixture(scope="session")
def bitnet() -> Callable[..., Done]:
    """bitnet("convert", folder, ...): see ../command.py."""
    return command.bitnet


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """refused(done, code, *words): one line on stderr with these words, nothing on stdout, no traceback, and this exit code."""

    def check(done: Done, code: int, *words: str) -> None:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
        assert done.stderr.startswith("bitnet: error: ") and all(word in done.stderr for word in words), done.stderr

    return check
