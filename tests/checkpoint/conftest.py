"""Checkpoint folders of the tiny models, and what is written to one."""

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def folders(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One read-only folder for each flavour, all of the same model."""
    base = tmp_path_factory.mktemp("flavours")
    return {flavour[0]: models.write_folder(base / flavour, flavour) for flavour in models.FLAVOURS}


@pytest.fixture
def folder(models: ModuleType, tmp_path: Path) -> Path:
    """A BitNet of its own, to be changed."""
    written: Path = models.write_folder(tmp_path / "model", "C_packed")
    return written
