"""Models that are ternary in their weights only (TriLM): several scales a tensor, by rows in most and by columns in the output and down
projections, and activations that are not rounded to int8.

The two int8 digits of an activation stand for steps of at most max|x| / (127 * 254). Like the bound of test_llama_cpp.py: that adds an
error of relative size e = (max / rms) / (127 * 254 * sqrt(12)), with max / rms at most 8: 7.2e-5. Every one of the 7 L matrices adds it, so
logits are off by at most sqrt(7 L) e = 2.7e-4 of their rms for 2 layers if no error cancels. Seen: 4.3e-5 to 4.9e-5 (transformers in
float16: 5.3e-4). Where float32 is rounded does not matter beside that: nothing is discontinuous.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.ternary.layouts import LAYOUTS

from .builder import Model, Sizes, random_model, write_model
from .families import write
from .test_llama_cpp_llama import side_by_side
from .test_oracle import oracle_of, prompts

SIZES = Sizes(hidden=256, feed_forward=768, heads=2, kv_heads=2, head_dim=128, theta=500000.0)
BOUND = np.sqrt(7 * SIZES.layers) * 8 / (127 * 254 * np.sqrt(12))
IDS = [256, *b"The quick brown fox"]


def relative_rms(got: NDArray[Any], want: NDArray[Any]) -> float:
    difference = got.astype(np.float64) - want
    return float(np.sqrt((difference**2).mean() / (want.astype(np.float64) ** 2).mean()))


@pytest.fixture(scope="module")
def folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(models, tmp_path_factory.mktemp("trilm") / "hf", "trilm", "D_dequantised")


@pytest.mark.live
@pytest.mark.parametrize("outtype", ["i2_s", "tq1_0", "q2_0"])
def test_logits_are_those_of_transformers(
    outtype: str, folder: Path, transformers: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]
) -> None:
    import torch

    convert(folder, tmp_path / "m.gguf", outtype=outtype, quiet=True)
    oracle = oracle_of(transformers, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    decoder = text_of(tmp_path / "m.gguf", threads=2)
    for ids in prompts(282)[:5]:
        want = oracle(ids)
        decoder.rewind(0)
        assert relative_rms(decoder.feed_all(ids), want) < BOUND
        decoder.rewind(0)
        assert relative_rms(np.stack([decoder.feed([token]).copy() for token in ids]), want) < BOUND


def several(model: Model, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """TQ2_0 tensors with a scale for each third of the rows, or for each block of columns; and the weights that they stand for."""
    tensors: dict[str, Any] = {}
    weights = {}
    layout = LAYOUTS[TensorType.TQ2_0]
    for name, values in model.ternary.items():
        rows, cols = values.shape
        if name.endswith(("attn_output", "ffn_down")):
            table = np.tile(rng.uniform(0.5, 1.5, cols // 256), (rows, 1))
        else:
            table = np.tile(np.repeat(rng.uniform(0.5, 1.5, 2), rows // 2)[:, None], (1, cols // 256))
        table = (table / np.sqrt(cols)).astype(np.float16)
        weights[name] = values * np.repeat(table.astype(np.float64), 256, axis=1)
        stored = side_by_side(values, SIZES.head_dim) if name.endswith(("attn_q", "attn_k")) else values
        blocks = layout.pack_rows(stored).reshape(-1, 66).copy()
        blocks[:, 64:] = table.reshape(-1, 1).view(np.uint8)
        weight = f"{name}.weight"
        tensors[weight] = OutputTensor(weight, TensorType.TQ2_0, values.shape, lambda blocks=blocks: blocks)  # type: ignore[misc]
    return tensors, weights


def float_logits(model: Model, weights: dict[str, NDArray[np.float64]], ids: list[int]) -> NDArray[np.float64]:
    """A Llama in float64 NumPy."""
    z, x, tokens = model.sizes, model.embedding[ids].astype(np.float64), len(ids)
    angles = np.arange(tokens)[:, None] * z.theta ** (-np.arange(0, z.head_dim, 2) / z.head_dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(name: str) -> NDArray[np.float64]:
        normed: NDArray[np.float64] = model.norms[name] * x / np.sqrt((x * x).mean(-1, keepdims=True) + z.eps)
        return normed

    def heads(value: NDArray[np.float64], rotate: bool) -> NDArray[np.float64]:
        split = value.reshape(tokens, -1, z.head_dim)
        low, high = np.split(split, 2, -1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1) if rotate else split

    for b in (f"blk.{layer}" for layer in range(z.layers)):
        h = norm(f"{b}.attn_norm")
        q, k, v = (heads(h @ weights[f"{b}.attn_{name}"].T, name != "v") for name in "qkv")
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(z.head_dim) + np.triu(np.full((tokens, tokens), -np.inf), 1)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", share / share.sum(-1, keepdims=True), v).reshape(tokens, -1)
        x = x + mixed @ weights[f"{b}.attn_output"].T
        h = norm(f"{b}.ffn_norm")
        gate, up = h @ weights[f"{b}.ffn_gate"].T, h @ weights[f"{b}.ffn_up"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{b}.ffn_down"].T
    logits: NDArray[np.float64] = norm("output_norm") @ model.embedding.T.astype(np.float64)
    return logits


@pytest.fixture(scope="module")
def model() -> Model:
    made = random_model(SIZES, seed=8, activation="silu", embedding=TensorType.F32)
    made.norms = {name: weight for name, weight in made.norms.items() if "sub_norm" not in name}
    return made


@pytest.mark.parametrize("key", [None, "float"])
def test_logits_are_those_of_the_formulas(key: str | None, model: Model, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Also of a file of another tool, which does not say that activations are float: only such models have several scales a tensor."""
    tensors, weights = several(model, np.random.default_rng(1))
    path = write_model(tmp_path / "m.gguf", model, arch="llama", tensors=tensors, metadata={"activation_type": key})
    want = float_logits(model, weights, IDS)
    decoder = text_of(path)
    assert relative_rms(decoder.feed_all(IDS), want) < BOUND
    decoder.rewind(0)
    got = np.stack([decoder.feed([token]).copy() for token in IDS])
    assert relative_rms(got, want) < BOUND
    # The bound sees the second digit: int8 alone, or a scale in the wrong place, is far outside.
    rows = {name: tensor for name, tensor in tensors.items() if "output" not in name and "down" not in name}
    int8 = write_model(tmp_path / "int8.gguf", model, arch="llama", tensors=rows, metadata={"activation_type": "int8"})
    both = write_model(tmp_path / "float.gguf", model, arch="llama", tensors=rows, metadata={"activation_type": "float"})
    difference = relative_rms(text_of(int8).feed_all(IDS), text_of(both).feed_all(IDS))
    assert 20 * BOUND < difference < 0.1


def test_one_scale_and_float_activations(models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Small models of the family were trained on one GPU each: nothing in their weights says what they are, so the user does."""
    folder = write(models, tmp_path / "hf", "llama", "D_dequantised")
    convert(folder, tmp_path / "int8.gguf", quiet=True)
    convert(folder, tmp_path / "float.gguf", activations="float", quiet=True)
    with open_gguf(tmp_path / "float.gguf") as file:
        assert file.metadata["llama.activation_type"] == "float"
        assert file.tensors["blk.0.attn_q.weight"].type is TensorType.I2_S
    ours = text_of(tmp_path / "float.gguf").feed_all(IDS[1:])
    assert BOUND < relative_rms(text_of(tmp_path / "int8.gguf").feed_all(IDS[1:]), ours) < 0.2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation_type": 8}, BadFileError, "llama.activation_type"),
        ({"activation_type": "int8"}, UnsupportedError, "differ between the columns of a projection need float activations"),
        ({"hidden_activation": "relu2"}, UnsupportedError, "not supported with ReLU²"),
    ],
)
def test_refused(
    change: dict[str, Any], error: type[Exception], message: str, model: Model, tmp_path: Path, text_of: Callable[..., Sequence]
) -> None:
    tensors, _ = several(model, np.random.default_rng(1))
    path = write_model(tmp_path / "m.gguf", model, arch="llama", tensors=tensors, metadata=change)
    with pytest.raises(error, match=message):
        text_of(path)


def test_scales_by_column_where_the_input_is_shared(model: Model, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    wide = random_model(Sizes(hidden=512, heads=2, kv_heads=2, head_dim=128), seed=1, activation="silu")
    blocks = LAYOUTS[TensorType.TQ2_0].pack_rows(wide.ternary["blk.0.ffn_up"]).reshape(-1, 66).copy()
    blocks[:, 64:] = np.tile(np.array([1, 2], np.float16), len(blocks) // 2).reshape(-1, 1).view(np.uint8)
    name = "blk.0.ffn_up.weight"
    tensor = OutputTensor(name, TensorType.TQ2_0, wide.ternary["blk.0.ffn_up"].shape, lambda: blocks)
    path = write_model(
        tmp_path / "m.gguf", wide, arch="llama", tensors={name: tensor, **{f"{n}.weight": None for n in wide.norms if "sub" in n}}
    )
    with pytest.raises(UnsupportedError, match="are supported in attn_output and ffn_down only"):
        text_of(path)
