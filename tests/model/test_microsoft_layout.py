"""A file laid out as microsoft/bitnet-b1.58-2B-4T-gguf, scaled down: it loads, runs, and its logits are those of the formulas.

332 tensors, 121 F32 + 1 F16 + 210 I2_S; architecture `bitnet-b1.58`, file type 40; no head of its own, no `tokenizer.ggml.pre`, no
`hidden_activation`, none of the optional attention keys (key names as in the published file; tests/model/builder.py writes the rest).
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.config import read_config
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import check_tensors

from .builder import Model, Sizes, random_model, write_model
from .reference import assert_agree, forward

# 30 layers and one KV head for four, as the original's 30 and 5 for 20. The seed is one whose activations keep away from rounding
# boundaries for all of IDS, so that no float error can move an integer.
SIZES = Sizes(layers=30, hidden=128, feed_forward=384, heads=4, kv_heads=1, context=4096, theta=500000.0)
IDS = [256, *b"Hello"]
ABSENT = ("tokenizer.ggml.pre", "hidden_activation", "attention.key_length", "attention.value_length")


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(SIZES, seed=71)


@pytest.fixture(scope="module")
def path(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys: dict[str, Any] = dict.fromkeys(ABSENT)
    keys |= {"general.name": "bitnet2b", "general.quantization_version": 2, "tokenizer.ggml.scores": [0.0] * SIZES.vocab}
    return write_model(tmp_path_factory.mktemp("microsoft") / "ggml-model-i2_s.gguf", model, metadata=keys)


def test_the_layout(path: Path, opened: Callable[[Path], GGUFFile]) -> None:
    file = opened(path)
    assert Counter(info.type for info in file.tensors.values()) == {TensorType.I2_S: 210, TensorType.F32: 121, TensorType.F16: 1}
    assert len(file.tensors) == 332
    assert file.require_int("general.file_type", 0, 100) == 40
    assert not [key for key in file.metadata if key.endswith(ABSENT)]
    assert all(info.nbytes == info.shape[0] * info.shape[1] // 4 + 32 for info in file.tensors.values() if info.type == TensorType.I2_S)


def test_it_is_understood(path: Path, opened: Callable[[Path], GGUFFile]) -> None:
    c = read_config(opened(path))
    assert (c.layers, c.heads, c.kv_heads, c.head_dim, c.vocab, c.context) == (30, 4, 1, 32, 260, 4096)
    assert (c.activation, c.has, c.tied, c.kinds[0].rope.theta) == ("relu2", {"sub_norms"}, True, 500000.0)
    assert check_tensors(opened(path), c) == []


def test_logits_are_those_of_the_formulas(model: Model, path: Path, text_of: Callable[..., Sequence]) -> None:
    want = forward(model, IDS)
    assert want.margin.min() > 1
    decoder = text_of(path)
    assert assert_agree(decoder.feed_all(IDS), want.logits, want.margin) == len(IDS)
    decoder.rewind(0)
    last = decoder.feed(IDS)[None]
    assert assert_agree(last, want.logits[-1:], want.margin[-1:]) == 1


def test_it_runs(model: Model, path: Path) -> None:
    """The first new token of the command is the likeliest by the formulas."""
    command = [sys.executable, "-m", "bitnet_cli", "run", "-m", str(path), "-p", "Hello", "-n", "1", "--temp", "0", "-t", "1"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    token = int(forward(model, IDS).logits[-1].argmax())
    expected = bytes([token]).decode("utf-8", "replace") if token < 256 else ""
    assert done.stdout.decode() == expected + "\n", json.dumps([token, done.stderr.decode()])
    assert b"prompt 6 tokens" in done.stderr
