"""TQ1_0, TQ2_0 and Q2_0 projections become I2_S rows in memory: the decoder runs every layout to the same integers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.checks import check_model
from bitnet_cli.model.config import read_config
from bitnet_cli.model.projections import PROJECTIONS, load_projections
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.ternary import i2_s
from bitnet_cli.ternary.layouts import LAYOUTS

from .builder import Model, Sizes, f32, random_model, write_model

Open = Callable[[Path], GGUFFile]
SIZES = Sizes(hidden=256, feed_forward=768, head_dim=64)
IDS = [256, *b"text"]


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(SIZES, seed=4)


def as_kind(model: Model, kind: TensorType, in_blocks: float | None = None) -> dict[str, Any]:
    """All projections in another layout: scale 1 in the blocks and a tensor of its own, or `in_blocks` and no such tensor."""
    tensors: dict[str, Any] = {}
    layout = LAYOUTS[kind]
    for name, values in model.ternary.items():
        blocks = layout.pack_rows(values).reshape(-1, layout.BLOCK_BYTES).copy()
        if in_blocks is not None:
            blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = np.array([in_blocks], "<f2").view(np.uint8)
        else:
            tensors[f"{name}.scale"] = f32(f"{name}.scale", [model.scales[name]])
        weight = f"{name}.weight"
        tensors[weight] = OutputTensor(weight, kind, values.shape, lambda blocks=blocks: blocks)  # type: ignore[misc]
    return tensors


@pytest.mark.parametrize("kind", [TensorType.TQ1_0, TensorType.TQ2_0, TensorType.Q2_0])
def test_rows_and_scales_are_those_of_an_i2_s_file(kind: TensorType, model: Model, tmp_path: Path, opened: Open) -> None:
    file = opened(write_model(tmp_path / "m.gguf", model, tensors=as_kind(model, kind)))
    loaded = load_projections(file, check_model(file))
    for layer in range(SIZES.layers):
        for which, name in enumerate(PROJECTIONS):
            values = model.ternary[f"blk.{layer}.{name}"]
            at = int(loaded.offsets[layer, which])
            assert np.array_equal(loaded.packed[at : at + values.size // 4], i2_s.pack_rows(values))
            assert loaded.scales[layer, which] == model.scales[f"blk.{layer}.{name}"]
    # Compiled kernels are for read-only arrays, as the memory map is one; a second compilation would take 15 s.
    assert not loaded.packed.flags.writeable and loaded.packed.nbytes == read_config(file).ternary_weights // 4


@pytest.mark.parametrize("kind", [TensorType.TQ1_0, TensorType.TQ2_0, TensorType.Q2_0])
def test_same_logits_as_i2_s(kind: TensorType, model: Model, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    expected = text_of(write_model(tmp_path / "i2_s.gguf", model)).feed_all(IDS)
    other = text_of(write_model(tmp_path / "other.gguf", model, tensors=as_kind(model, kind)))
    assert np.array_equal(other.feed_all(IDS), expected)


def test_layouts_may_be_mixed(model: Model, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    expected = text_of(write_model(tmp_path / "i2_s.gguf", model)).feed_all(IDS)
    tensors: dict[str, Any] = {}
    for kind, part in ((TensorType.TQ1_0, "attn_"), (TensorType.Q2_0, "ffn_down")):
        tensors |= {name: tensor for name, tensor in as_kind(model, kind).items() if part in name}
    assert np.array_equal(text_of(write_model(tmp_path / "mixed.gguf", model, tensors=tensors)).feed_all(IDS), expected)


def test_scale_in_the_blocks_as_llama_cpp_writes_it(model: Model, tmp_path: Path, opened: Open) -> None:
    file = opened(write_model(tmp_path / "m.gguf", model, tensors=as_kind(model, TensorType.TQ2_0, in_blocks=0.0371)))
    assert (load_projections(file, check_model(file)).scales == np.float32(np.float16(0.0371))).all()


def test_a_scale_tensor_multiplies_i2_s_too(model: Model, tmp_path: Path, opened: Open) -> None:
    name = "blk.1.ffn_up"
    file = opened(write_model(tmp_path / "m.gguf", model, tensors={f"{name}.scale": f32(f"{name}.scale", [3])}))
    scales = load_projections(file, check_model(file)).scales
    assert scales[1, PROJECTIONS.index("ffn_up")] == np.float32(3) * model.scales[name]
    assert scales[0, PROJECTIONS.index("ffn_up")] == model.scales["blk.0.ffn_up"]


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (f32("blk.0.attn_q.scale", [1, 2]), UnsupportedError, r"attn_q.scale: F32 \[2\]; one float scale"),
        (f32("blk.0.attn_q.scale", [0]), BadFileError, r"attn_q.scale: is 0.0, expected a positive number \(byte"),
        (f32("blk.0.attn_q.scale", [np.inf]), BadFileError, "attn_q.scale: is inf"),
        (f32("blk.0.attn_q.scale", [3e38]), BadFileError, "attn_q.weight: has the scale inf"),
    ],
)
def test_scale_tensors_that_are_refused(
    scale: OutputTensor, error: type[Exception], message: str, model: Model, tmp_path: Path, opened: Open
) -> None:
    tensors: dict[str, Any] = {scale.name: scale}
    if "has the scale" in message:
        weight = "blk.0.attn_q.weight"
        tensors[weight] = OutputTensor(weight, TensorType.I2_S, (256, 256), lambda: i2_s.pack(model.ternary["blk.0.attn_q"], 2.0))
    file = opened(write_model(tmp_path / "m.gguf", model, tensors=tensors))
    with pytest.raises(error, match=message):
        load_projections(file, check_model(file))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of pages")
def test_pages_of_a_repacked_tensor_are_given_back(tmp_path: Path) -> None:
    """Only the pages that lie wholly inside the tensor: what is beside it stays."""
    model = random_model(Sizes(layers=1, hidden=1024, head_dim=256, feed_forward=4096), seed=5)
    path = write_model(tmp_path / "m.gguf", model, tensors=as_kind(model, TensorType.TQ2_0))
    with open_gguf(path) as file:
        load_projections(file, check_model(file))
        mapped = resident(path)
    total = sum(values.size for values in model.ternary.values()) * 66 // 256
    assert total > 3_000_000 and mapped < 500_000


def resident(path: Path) -> int:
    """Bytes of the file that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(os.fspath(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
