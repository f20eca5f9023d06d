"""Weights folded with a Hadamard transform (`prism.hadamard.*`): logits are those of the model that a float64 product unfolds."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.sequence import Sequence

from .builder import Model, Sizes
from .group_models import BONSAI, write_grouped
from .reference import FLOAT, forward
from .test_float_activations import relative_rms
from .test_groups import BOUND, IDS

Doubles = NDArray[np.float64]
Make = Callable[..., Sequence]
ATTENTION, FEED_FORWARD = ("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")
WIDE = Sizes(layers=1, hidden=1024, feed_forward=2048, heads=16, kv_heads=2, head_dim=64, vocab=260, context=96)


@cache
def sylvester(n: int) -> Doubles:
    """H[i, j] = (-1)^popcount(i & j)."""
    return np.array([[1.0 - 2.0 * (bin(i & j).count("1") % 2) for j in range(n)] for i in range(n)])


def unfolded(weights: NDArray[Any], block: int, signs: Doubles) -> Doubles:
    """(rows, cols): what multiplies x, where the weights multiply H (signs x) / sqrt(n). Of the embedding's rows the same."""
    blocks = weights.astype(np.float64).reshape(-1, block) @ sylvester(block) / np.sqrt(block)
    return blocks.reshape(weights.shape) * signs


def metadata(block: int, names: list[str], signs: dict[int, Doubles], *, embedding: bool, floats: bool = False) -> dict[str, Any]:
    """signs: none for the mode `identity`; floats: the type of their values."""
    keys: dict[str, Any] = {
        "version": 1,
        "block_size": block,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit" if signs else "identity",
        "weight_names": names,
        "gdn_v_grouped": False,
    }
    if embedding:
        keys["inverse_weight_names"] = ["token_embd.weight"]
    if signs:
        keys["sign_widths"] = list(signs)
        keys["sign_values"] = [float(v) if floats else int(v) for values in signs.values() for v in values]
    return {f"prism.hadamard.{key}": value for key, value in keys.items()}


def write(
    path: Path, block: int, folded: set[str], *, explicit: bool, sizes: Sizes = BONSAI, floats: bool = False, **options: Any
) -> Model:
    """A file in which the projections of these names are folded, and the embedding and head if `token_embd`; its model unfolded."""
    rng = np.random.default_rng(1)
    widths = sorted({cols for _, cols in sizes.projections().values()})
    signs = {width: rng.choice([-1.0, 1.0], width) for width in widths} if explicit else {}
    names = [f"blk.{layer}.{name}.weight" for layer in range(sizes.layers) for name in sizes.projections() if name in folded]
    if "token_embd" in folded:
        names.append("output.weight" if options.get("tied") is False else "token_embd.weight")
    keys = metadata(block, names, signs, embedding="token_embd" in folded, floats=floats) | {"activation_type": "float"}
    model = write_grouped(path, TensorType.PQ2_0, sizes=sizes, metadata=keys, **options)
    for name, weights in model.ternary.items():
        if name.split(".")[-1] in folded:
            model.ternary[name] = unfolded(weights, block, signs.get(weights.shape[1], np.ones(1)))  # type: ignore[assignment]
    if "token_embd" in folded:
        for field in ("embedding", *(["head"] if model.head is not None else [])):
            setattr(model, field, unfolded(getattr(model, field), block, signs.get(sizes.hidden, np.ones(1))))
    return model


ALL = {*ATTENTION, *FEED_FORWARD, "attn_output", "ffn_down", "token_embd"}


@pytest.mark.parametrize(
    ("folded", "explicit", "options"),
    [
        (ALL, True, {"embedding": TensorType.PQ2_0}),
        (ALL, False, {}),
        (ALL, True, {"tied": False, "floats": True}),
        ({*ATTENTION, "ffn_down"}, True, {}),
        ({*FEED_FORWARD, "attn_output"}, False, {}),
        ({"token_embd"}, True, {}),
    ],
)
def test_logits_are_those_of_the_unfolded_model(
    folded: set[str], explicit: bool, options: dict[str, Any], tmp_path: Path, text_of: Make
) -> None:
    model = write(tmp_path / "m.gguf", 64, folded, explicit=explicit, **options)
    want, text = forward(model, IDS, FLOAT).logits, text_of(tmp_path / "m.gguf", threads=2)
    assert relative_rms(text.feed_all(IDS), want) < BOUND
    text.rewind(0)
    stepped = np.stack([text.feed([token]).copy() for token in IDS])
    assert relative_rms(stepped, want) < BOUND
    text.rewind(0)
    assert np.array_equal(text.feed(IDS), stepped[-1])


def test_blocks_of_1024(tmp_path: Path, text_of: Make) -> None:
    model = write(tmp_path / "m.gguf", 1024, ALL, explicit=True, sizes=WIDE)
    want, text = forward(model, IDS[:12], FLOAT).logits, text_of(tmp_path / "m.gguf")
    assert relative_rms(text.feed_all(IDS[:12]), want) < BOUND


def test_int8_and_another_type(tmp_path: Path, text_of: Make) -> None:
    """What is rounded is the transformed input; `quantize` keeps the keys and so the logits."""
    write(tmp_path / "a.gguf", 64, ALL, explicit=True)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q2_0", quiet=True)
    one, other = text_of(tmp_path / "a.gguf").feed(IDS).copy(), text_of(tmp_path / "b.gguf").feed(IDS)
    assert np.array_equal(one, other)


REFUSED: list[tuple[dict[str, Any], type[BitnetError], str]] = [
    ({"version": 2}, UnsupportedError, "version: 2 is not supported; 1 is"),
    ({"transform": "dct"}, UnsupportedError, "transform: 'dct' is not supported"),
    ({"axis": "output"}, UnsupportedError, "axis: 'output' is not supported"),
    ({"gdn_v_grouped": True}, UnsupportedError, "gdn_v_grouped: true is not supported"),
    ({"rotation": 3}, UnsupportedError, "rotation: is not known"),
    ({"block_size": 48}, BadFileError, "block_size: is 48, expected a power of two"),
    ({"block_size": 1024}, UnsupportedError, "block_size: 1024 does not divide the 256 inputs of blk.0.attn_q.weight"),
    ({"sign_mode": "random"}, BadFileError, "sign_mode: is 'random'"),
    ({"sign_widths": [256, 640]}, BadFileError, "sign_values: has 768 items, expected 896"),
    ({"sign_widths": [256, 128, 384]}, BadFileError, "sign_widths: has no 512"),
    ({"sign_values": [1] * 767 + [0]}, BadFileError, "sign_values: has values other than 1 and -1"),
    ({"weight_names": ["blk.0.attn_q.weight"]}, UnsupportedError, "blk.0.attn_q.weight is among them and blk.0.attn_k.weight is not"),
    ({"weight_names": ["blk.0.ssm.weight"]}, UnsupportedError, "blk.0.ssm.weight: no projection of this model, nor its head"),
    ({"weight_names": ["output.weight"]}, UnsupportedError, "output.weight: no projection of this model, nor its head"),
    ({"inverse_weight_names": ["output.weight"]}, UnsupportedError, "inverse_weight_names: output.weight is not supported"),
    ({"weight_names": None}, BadFileError, "weight_names: is missing"),
    ({"version": None}, BadFileError, "version: is missing"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED, ids=[next(iter(changes)) for changes, _, _ in REFUSED])
def test_what_is_not_applied_is_refused(
    changes: dict[str, Any], kind: type[BitnetError], message: str, tmp_path: Path, text_of: Make
) -> None:
    rng = np.random.default_rng(1)
    names = [f"blk.{layer}.{name}.weight" for layer in range(2) for name in BONSAI.projections()]
    keys = metadata(64, names, {256: rng.choice([-1.0, 1.0], 256), 512: rng.choice([-1.0, 1.0], 512)}, embedding=True)
    keys |= {f"prism.hadamard.{name}": value for name, value in changes.items()}
    write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, metadata=keys)
    with pytest.raises(kind) as caught:
        text_of(tmp_path / "m.gguf")
    assert message in str(caught.value)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert str(caught.value) == f"{file.path}: {why_not(file).reason}"


def test_relu2_is_refused(tmp_path: Path, text_of: Make) -> None:
    write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, metadata=metadata(64, ["a"], {}, embedding=True) | {"hidden_activation": "relu2"})
    with pytest.raises(UnsupportedError, match="folded weights are not supported with ReLU²"):
        text_of(tmp_path / "m.gguf")
