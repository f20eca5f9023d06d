"""Fixtures: transformers, the script that makes checkpoints, small models, written once a session, and files that are closed again."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence

from .builder import Model, Sizes, random_model, write_model


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else five functions are compiled with g++, which takes half a minute
    reason = "PyTorch and transformers are not installed (extra `train`)"
    pytest.importorskip("torch", reason=reason).set_num_threads(1)
    pytest.importorskip("accelerate", reason=reason)
    module: ModuleType = pytest.importorskip("transformers", reason=reason)
    return module


@pytest.fixture(scope="session")
def small() -> Model:
    """Two layers, context 64, relu2, tied float16 embedding."""
    return random_model(seed=2)


@pytest.fixture(scope="session")
def small_file(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small") / "small.gguf", small)


@pytest.fixture(scope="session")
def long_model() -> Model:
    """One layer and a context of several chunks."""
    return random_model(Sizes(layers=1, context=400), seed=3)


@pytest.fixture(scope="session")
def long_file(long_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("long") / "long.gguf", long_model)


@pytest.fixture
def opened() -> Iterator[Callable[[Path], GGUFFile]]:
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(open_gguf(path))


@pytest.fixture
def text_of(opened: Callable[[Path], GGUFFile]) -> Iterator[Callable[..., Sequence]]:
    """text_of(path, context=.., threads=..): its threads end with the test."""
    with ExitStack() as stack:

        def make(path: Path, **options: Any) -> Sequence:
            text = Sequence(Engine(opened(path), **options))
            stack.callback(text.engine.close)
            return text

        yield make
