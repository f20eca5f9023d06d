"""The tiny models of scripts/make_test_models.py, loaded by path: `scripts` is not importable where the package is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


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


@pytest.fixture
def folder(models: ModuleType, tmp_path: Path) -> Path:
    """A BitNet of its own, to be changed."""
    written: Path = models.write_folder(tmp_path / "model", "C_packed")
    return written
