"""Any JSON value in any place of any file of a folder: an answer or a BitnetError, never another exception."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_cli.checkpoint.config import read_config
from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.checkpoint.to_gguf import model_metadata, model_tensors
from bitnet_cli.checkpoint.tokenizer import tokenizer_metadata
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.metadata import with_type
from bitnet_cli.gguf_file.types import TensorType

VALUES = [
    None,
    True,
    0,
    -1,
    3,
    10**30,
    1.5,
    1e300,
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    [],
    [1],
    ["x", "y"],
    [[]],
    [{}],
    {},
    {"type": "x"},
    {"": []},
]
EXTRA = {
    "config.json": {"head_dim": 64, "rope_theta": 1e4, "rope_scaling": None, "attention_bias": False, "auto_map": {}},
    "tokenizer_config.json": {"add_bos_token": True, "add_eos_token": False, "pad_token": None, "added_tokens_decoder": {}},
    "tokenizer.json": {},
    "generation_config.json": {"eos_token_id": [1]},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value, but only the first two of a long list or object."""
    yield path
    children = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, child in children[:2] if len(children) > 20 else children:
        yield from places(child, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    result = copy.copy(value)
    result[path[0]] = replaced(value[path[0]], path[1:], new)
    return result


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name == "tokenizer.json" else []) for name in EXTRA])
def test_any_value_anywhere(name: str, models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path, "C_packed", models.Shape(layers=1))
    path = folder / name
    good = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | EXTRA[name]
    config = None if name == "config.json" else read_config(folder)
    refused = accepted = 0
    for place in places(good):
        for value in VALUES:
            path.write_text(json.dumps(replaced(good, place, value)), encoding="utf-8")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    metadata = tokenizer_metadata(folder, config).values if config else all_metadata(folder)
            except BitnetError as error:
                refused += 1
                assert "\x1b" not in str(error) and "\n" not in str(error) and len(str(error)) < 1500
            else:
                accepted += 1
                json.dumps({key: list(v) if hasattr(v, "typecode") else v for key, v in metadata.items()}, ensure_ascii=False).encode()
                for item in metadata.values():
                    if item != []:
                        with_type(item)
    assert refused and accepted


def all_metadata(folder: Path) -> dict[str, Any]:
    """All that is decided before weights are read."""
    checkpoint = open_checkpoint(folder)
    model_tensors(checkpoint, TensorType.F16)
    return model_metadata(checkpoint) | tokenizer_metadata(folder, checkpoint.config).values
