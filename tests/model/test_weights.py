"""Tensors -> arrays: what the kernels will read is what was written, and every tensor that they must not read is refused before."""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import arrays

from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.checks import check_model
from bitnet_cli.model.config import read_config
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import PROJECTIONS, check_tensors, embedding_info, head_info, load_weights, sizes_of
from bitnet_cli.tensors.dequantise import READABLE
from bitnet_cli.ternary import i2_s

from .builder import NORMS, Model, Sizes, dense, f32, packed, random_model, write_model
from .reference import assert_agree, forward

Open = Callable[[Path], GGUFFile]
ANGLES = np.zeros((1, 16), np.float32)
RUN = "I2_S, TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0, Q1_0, IQ1_BN, IQ2_BN, IQ2_BN_R4"
IDS = [256, 84, 104, 101, 32, 255, 0, 66]


def load(file: GGUFFile) -> arrays.Weights:
    return load_weights(file, check_model(file), ANGLES, ANGLES)


def refused(folder: Path, kind: type[BitnetError], tensors: dict[str, Any], model: Model | None = None, **metadata: Any) -> str:
    """The message of loading a file with these tensors changed, without the file's name."""
    path = write_model(folder / "m.gguf", model, tensors=tensors, metadata=metadata)
    with open_gguf(path) as file, pytest.raises(kind) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def of_zeros(name: str, kind: TensorType, shape: tuple[int, ...]) -> OutputTensor:
    return OutputTensor(name, kind, shape, lambda: np.zeros(nbytes(kind, shape), np.uint8))


@pytest.mark.parametrize("embedding", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
def test_arrays_hold_what_was_written(tmp_path: Path, opened: Open, embedding: TensorType) -> None:
    z = Sizes(layers=3, hidden=256, feed_forward=384, kv_heads=1)
    model = random_model(z, seed=5, embedding=embedding, tied=False)
    file = opened(write_model(tmp_path / "m.gguf", model))
    w, sizes = load(file), sizes_of(file, read_config(file))
    for layer in range(z.layers):
        for which, name in enumerate(PROJECTIONS):
            rows, cols = z.projections()[name]
            at = int(w.offsets[layer, which])
            ternary, scale = i2_s.unpack(w.packed[at : at + i2_s.nbytes(rows, cols)], rows, cols)
            assert np.array_equal(ternary, model.ternary[f"blk.{layer}.{name}"])
            assert w.scales[layer, which] == scale == model.scales[f"blk.{layer}.{name}"]
        for place, name in enumerate(NORMS):
            at = int(w.norm_offsets[layer, place])
            assert np.array_equal(w.norms[at : at + z.norms()[name]], model.norms[f"blk.{layer}.{name}"])
    at = int(w.norm_offsets[z.layers, 0])
    assert np.array_equal(w.norms[at:], model.norms["output_norm"])
    assert int(w.head_offset[0]) == head_info(file).offset == file.tensors["output.weight"].offset
    assert embedding_info(file).offset == file.tensors["token_embd.weight"].offset
    kind = {TensorType.F32: arrays.HEAD_F32, TensorType.F16: arrays.HEAD_F16, TensorType.Q8_0: arrays.HEAD_Q8_0}[embedding]
    assert sizes == arrays.Sizes(3, 256, 4, 1, 32, 384, 260, arrays.RELU2, np.float32(1e-5), kind)


def test_nothing_is_copied_but_norms_and_scales(small_file: Path, opened: Open) -> None:
    w = load(opened(small_file))
    assert not w.packed.flags.owndata
    assert not w.packed.flags.writeable
    assert w.head.ctypes.data == w.packed.ctypes.data


def test_names_of_missing_tensors(tmp_path: Path) -> None:
    assert refused(tmp_path, BadFileError, {"blk.1.ffn_sub_norm.weight": None}) == "tensors: missing blk.1.ffn_sub_norm.weight"
    whole_layer = {f"blk.1.{name}.weight": None for name in (*PROJECTIONS, *NORMS)}
    message = refused(tmp_path, BadFileError, whole_layer)
    first = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_sub_norm")
    assert message == "tensors: missing " + ", ".join(f"blk.1.{name}.weight" for name in first) + " and 6 more"


@pytest.mark.parametrize("name", ["output_norm", *(f"blk.0.{name}" for name in (*PROJECTIONS, *NORMS))])
def test_each_tensor_is_needed(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, BadFileError, {f"{name}.weight": None}) == f"tensors: missing {name}.weight"


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    assert "missing blk.2.attn_norm.weight" in refused(tmp_path, BadFileError, {}, block_count=3)


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("change", [(128, 0), (-4, 0), (0, 128)], ids=["more rows", "fewer rows", "longer rows"])
def test_a_projection_of_another_shape(tmp_path: Path, name: str, change: tuple[int, int]) -> None:
    rows, cols = Sizes().projections()[name]
    shape = (rows + change[0], cols + change[1])
    wrong = packed(f"blk.1.{name}.weight", np.zeros(shape, np.int8), 1.0)
    message = refused(tmp_path, BadFileError, {f"blk.1.{name}.weight": wrong})
    assert message == f"tensor blk.1.{name}.weight: has shape {shape}, expected {(rows, cols)}"


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(127,), (512,), (1, 128)])
def test_a_norm_of_another_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    full = f"blk.0.{name}.weight"
    message = refused(tmp_path, BadFileError, {full: np.ones(shape, np.float32)})
    assert message == f"tensor {full}: has shape {shape}, expected ({Sizes().norms()[name]},)"


@pytest.mark.parametrize(
    ("name", "shape"), [("token_embd.weight", (260, 256)), ("output.weight", (259, 128)), ("output.weight", (260, 256))]
)
def test_an_embedding_or_head_of_another_shape(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    """The embedding's rows are the vocabulary: fewer than the tokenizer's are another matter (test_config.py)."""
    message = refused(tmp_path, BadFileError, {name: f32(name, np.zeros(shape))})
    assert message == f"tensor {name}: has shape {shape}, expected (260, 128)"


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16, TensorType.BF16])
def test_float_projections_name_the_command_that_packs_them(tmp_path: Path, kind: TensorType) -> None:
    name = "blk.0.attn_k.weight"
    message = refused(tmp_path, UnsupportedError, {name: of_zeros(name, kind, (64, 128))})
    assert message == f"tensor {name}: {kind.name} projections are not run, only {RUN}; `bitnet quantize IN OUT i2_s` packs it"


@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.Q6_K, TensorType.Q4_0])
def test_projections_of_other_types(tmp_path: Path, kind: TensorType) -> None:
    name = "blk.0.attn_k.weight"
    model = random_model(Sizes(hidden=256, head_dim=64))
    message = refused(tmp_path, UnsupportedError, {name: of_zeros(name, kind, (128, 256))}, model)
    assert message == f"tensor {name}: {kind.name} projections are not run, only {RUN}"


@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.I2_S])
def test_norms_of_other_types(tmp_path: Path, kind: TensorType) -> None:
    name = "blk.1.ffn_norm.weight"
    message = refused(tmp_path, UnsupportedError, {name: of_zeros(name, kind, (128,))})
    assert message == f"tensor {name}: norms of type {kind.name} are not read; F32, F16, BF16 are"


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_embeddings_and_heads_of_i2_s(tmp_path: Path, name: str) -> None:
    """The one type that is no matter of rows; all others are read (test_dense_types.py)."""
    path = write_model(tmp_path / "m.gguf", tensors={name: of_zeros(name, TensorType.I2_S, (260, 128))})
    with open_gguf(path) as file, pytest.raises(UnsupportedError) as caught:
        Sequence(Engine(file))
    runs = ", ".join(known.name for known in READABLE)
    assert str(caught.value) == f"{path}: tensor {name}: type I2_S is not run; {runs} are"
    assert "F32, F16, BF16, Q4_0" in runs


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-40, -1e-40])
def test_a_scale_that_is_no_positive_number(tmp_path: Path, scale: float) -> None:
    """1e-40 is a denormal: it has lost digits, and no weights of a trained model are that small."""
    name = "blk.1.ffn_down.weight"
    path = tmp_path / "m.gguf"
    message = refused(tmp_path, BadFileError, {name: packed(name, np.zeros((128, 256), np.int8), scale)})
    assert message.startswith(f"tensor {name}: has the scale {np.float32(scale)}, expected a positive number (byte ")
    at = int(message.split()[-1].rstrip(")"))
    assert path.read_bytes()[at : at + 4] == struct.pack("<f", scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_sub_norm.weight"])
def test_a_norm_that_is_not_finite(tmp_path: Path, name: str, value: float) -> None:
    weights = np.ones(128, np.float32)
    weights[77] = value
    message = refused(tmp_path, BadFileError, {name: weights})
    assert message.startswith(f"tensor {name}: holds values that are not finite (byte ")


def test_norms_in_float16(tmp_path: Path, small: Model, opened: Open) -> None:
    """As in Microsoft's embedding models."""
    halves = {name: values.astype(np.float16) for name, values in small.norms.items()}
    tensors = {f"{n}.weight": dense(f"{n}.weight", v.astype(np.float32), TensorType.F16) for n, v in halves.items()}
    w = load(opened(write_model(tmp_path / "m.gguf", small, tensors=tensors)))
    assert w.norms.dtype == np.float32
    assert np.array_equal(w.norms[-128:], halves["output_norm"].astype(np.float32))


def test_extra_tensors_are_named_and_do_no_harm(tmp_path: Path, small: Model, opened: Open) -> None:
    names = ("blk.0.attn_q.input_scale", "more", "blk.0.attn_q.scale")
    extra = {name: np.ones(1, np.float32) for name in names}
    file = opened(write_model(tmp_path / "m.gguf", small, tensors=extra))
    assert check_tensors(file, read_config(file)) == ["blk.0.attn_q.input_scale", "more"]
    assert_agree(Sequence(Engine(file)).feed_all(IDS), *run(small))


def run(model: Model) -> tuple[Any, Any]:
    result = forward(model, IDS)
    return result.logits, result.margin


@pytest.mark.parametrize("activation", ["relu2", "silu"])
@pytest.mark.parametrize("embedding", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_every_kind_of_file(
    tmp_path: Path, text_of: Callable[..., Sequence], activation: str, embedding: TensorType, tied: bool
) -> None:
    model = random_model(seed=11, activation=activation, embedding=embedding, tied=tied)
    arch = "bitnet" if activation == "silu" else "bitnet-b1.58"
    path = write_model(tmp_path / "m.gguf", model, arch=arch, metadata={"hidden_activation": None})
    assert_agree(text_of(path).feed_all(IDS), *run(model))


def test_the_activation_key_is_stronger_than_the_architecture(tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    model = random_model(seed=11, activation="silu")
    path = write_model(tmp_path / "m.gguf", model, arch="bitnet-b1.58")
    assert_agree(text_of(path).feed_all(IDS), *run(model))


def test_bitnet_25_stores_the_embedding_twice(tmp_path: Path, small: Model, text_of: Callable[..., Sequence]) -> None:
    copy = dataclasses.replace(small, head=small.embedding)
    path = write_model(tmp_path / "m.gguf", copy, arch="bitnet-25", metadata={"hidden_activation": None})
    decoder = text_of(path)
    assert not decoder.engine.config.tied
    assert_agree(decoder.feed_all(IDS), *run(small))


def test_a_head_of_its_own_is_not_the_embedding(tmp_path: Path, small: Model, text_of: Callable[..., Sequence]) -> None:
    """The embedding in one type, the head in another, as mainline's quantiser writes them."""
    other = random_model(seed=12, embedding=TensorType.Q8_0).embedding
    model = dataclasses.replace(small, head=other)
    head = dense("output.weight", other, TensorType.Q8_0)
    decoder = text_of(write_model(tmp_path / "m.gguf", model, tensors={"output.weight": head}))
    assert_agree(decoder.feed_all(IDS), *run(model))


@pytest.mark.parametrize(("kv_heads", "heads", "head_dim"), [(1, 4, 32), (4, 4, 32), (2, 2, 128), (1, 1, 128), (2, 8, 16), (3, 6, 64)])
def test_logits_of_every_grouping_of_heads(
    tmp_path: Path, text_of: Callable[..., Sequence], kv_heads: int, heads: int, head_dim: int
) -> None:
    """2 heads of 128 and 6 of 64 are wider than the hidden size."""
    model = random_model(Sizes(layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim), seed=13)
    assert_agree(text_of(write_model(tmp_path / "m.gguf", model)).feed_all(IDS), *run(model))


def test_code_3_means_2(tmp_path: Path, small: Model, text_of: Callable[..., Sequence]) -> None:
    """No packer writes it. The kernels multiply by code - 1, whatever the code is: a defined result, and no read out of bounds."""
    name = "blk.0.ffn_up"
    values = small.ternary[name].copy()
    values[::7] = 2
    model = dataclasses.replace(small, ternary=small.ternary | {name: values})
    assert_agree(text_of(write_model(tmp_path / "m.gguf", model)).feed_all(IDS), *run(model))


LEFT_OUT = [
    "blk.0.attn_q.bias",
    "rope_freqs.weight",
    "output.scale",
    "blk.0.ffn_norm.scale",
    "blk.9.attn_q.weight",
    "token_embd_norm.weight",
]
LEFT_OUT += ["blk.0.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "output_norm.bias", "dense_2.weight"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_tensors_that_would_change_the_result(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path, UnsupportedError, {name: of_zeros(name, TensorType.F32, (128,))})
    assert message == f"tensor {name}: changes the result and is not supported by bitnet-b1.58 here"
