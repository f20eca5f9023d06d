"""`bitnet quantize`: float GGUF files of every kind that other converters write, and our own, to I2_S."""

import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize as quantize_by_gguf

from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.tensors.dequantise import READABLE
from bitnet_cli.ternary import absmean, i2_s

from ..model.quantised import forged

ODD_METADATA = {  # types that a plain Python value would not bring back
    "test.u8": Typed(7, ValueType.UINT8),
    "test.i64": Typed(-5, ValueType.INT64),
    "test.f64": Typed(0.1, ValueType.FLOAT64),
    "test.empty": Typed([], ValueType.ARRAY, ValueType.STRING),
    "test.u16s": Typed(array("H", [1, 2]), ValueType.ARRAY, ValueType.UINT16),
    "test.not_utf8": Typed(["a\udcff"], ValueType.ARRAY, ValueType.STRING),
    "general.file_type": Typed(1, ValueType.UINT32),
}
STORED: dict[TensorType, Callable[[ModuleType, Any], Any]] = {
    TensorType.F32: lambda models, value: value,
    TensorType.F16: lambda models, value: value.astype(np.float16),
    TensorType.BF16: lambda models, value: models.to_bf16(value),
}


def write(path: Path, tensors: dict[str, tuple[TensorType, tuple[int, ...], Any]], **metadata: Any) -> Path:
    outputs = [OutputTensor(name, kind, shape, lambda data=data: data) for name, (kind, shape, data) in tensors.items()]
    write_gguf(path, "bitnet-b1.58", ODD_METADATA | metadata, outputs)
    return path


def small_model(models: ModuleType, kind: TensorType, projection: Any, embedding: TensorType = TensorType.F32) -> dict[str, Any]:
    """An embedding, a norm, and two projections: one (256, 128), the other its negative."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(64, 128)).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, 128).astype(np.float32)
    return {
        "token_embd.weight": (embedding, table.shape, STORED[embedding](models, table)),
        "blk.0.attn_norm.weight": (TensorType.F32, (128,), norm),
        "blk.0.ffn_up.weight": (kind, projection.shape, STORED[kind](models, projection)),
        "blk.0.ffn_gate.weight": (kind, projection.shape, STORED[kind](models, -projection)),
        "output.weight": (TensorType.F16, table.shape, (2 * table).astype(np.float16)),
    }


def read(path: Path, name: str) -> tuple[Any, np.float32]:
    with open_gguf(path) as gguf:
        info = gguf.tensors[name]
        assert info.type is TensorType.I2_S
        return i2_s.unpack(gguf.raw(name), *info.shape)


def raw(path: Path, name: str) -> tuple[TensorType, bytes]:
    with open_gguf(path) as gguf:
        return gguf.tensors[name].type, gguf.raw(name).tobytes()


@pytest.mark.parametrize("kind", STORED)
def test_ternary_floats_keep_sign_and_scale(
    kind: TensorType, models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """absmean of {-s, 0, s} would give s times the share of non-zeros."""
    values = np.random.default_rng(1).integers(-1, 2, (256, 128)).astype(np.int8)
    scale = np.float32(0.0371)
    source = write(tmp_path / "in.gguf", small_model(models, kind, values * scale))
    stored = {TensorType.F32: scale, TensorType.F16: np.float32(np.float16(scale))}
    stored[TensorType.BF16] = models.from_bf16(models.to_bf16(np.array([scale], np.float32)))[0]
    quantize(source, tmp_path / "out.gguf")
    for name, sign in (("up", 1), ("gate", -1)):
        found, found_scale = read(tmp_path / "out.gguf", f"blk.0.ffn_{name}.weight")
        assert np.array_equal(found, sign * values) and found_scale == stored[kind]
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 2 and "`bitnet run` refuses the file" in told.err  # it has two projections only
    assert "bitnet-b1.58, 5 tensors, projections: 2 ternary already, 0 by absmean, 0 packed before" in told.err


@pytest.mark.parametrize("kind", STORED)
def test_masters_are_rounded_and_that_is_said(
    kind: TensorType, models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = models.from_bf16(models.to_bf16(np.random.default_rng(2).normal(0, 0.02, (256, 128)).astype(np.float32)))
    source = write(tmp_path / "in.gguf", small_model(models, kind, weight))
    quantize(source, tmp_path / "out.gguf")
    kept = weight.astype(np.float16).astype(np.float32) if kind is TensorType.F16 else weight
    values, scale = absmean.ternarise(kept)
    found, found_scale = read(tmp_path / "out.gguf", "blk.0.ffn_up.weight")
    assert np.array_equal(found, values) and found_scale == scale
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "2 projections were not ternary and were rounded by absmean" in lines[0]
    assert "blk.0.ffn_up.weight" in lines[0] and "0 ternary already, 2 by absmean" in lines[2]
    assert "`bitnet run` refuses the file: bitnet-b1.58.attention.head_count: is missing" in lines[1]


def test_everything_else_is_copied(models: ModuleType, tmp_path: Path) -> None:
    weight = np.random.default_rng(3).integers(-1, 2, (256, 128)).astype(np.float32)
    source = write(tmp_path / "in.gguf", small_model(models, TensorType.F16, weight))
    quantize(source, tmp_path / "out.gguf", quiet=True)
    for name in ("token_embd.weight", "blk.0.attn_norm.weight", "output.weight"):
        assert raw(tmp_path / "out.gguf", name) == raw(source, name)
    with open_gguf(source) as before, open_gguf(tmp_path / "out.gguf") as after:
        assert list(after.tensors) == list(before.tensors)
        changed = {"general.file_type": Typed(40, ValueType.UINT32), "general.quantization_version": Typed(2, ValueType.UINT32)}
        assert after.typed_metadata == before.typed_metadata | changed


@pytest.mark.parametrize("kind", STORED)
def test_embedding_and_head_are_retyped(kind: TensorType, models: ModuleType, tmp_path: Path) -> None:
    weight = np.ones((256, 128), np.float32)
    source = write(tmp_path / "in.gguf", small_model(models, TensorType.F32, weight, embedding=kind))
    with open_gguf(source) as gguf:
        stored = gguf.raw("token_embd.weight")
        table = {
            TensorType.F32: lambda: stored.view(np.float32),
            TensorType.F16: lambda: stored.view(np.float16).astype(np.float32),
            TensorType.BF16: lambda: models.from_bf16(stored.view(np.uint16)),
        }[kind]().reshape(64, 128)
    for name, target in (("q8_0", TensorType.Q8_0), ("f16", TensorType.F16)):
        quantize(source, tmp_path / f"{name}.gguf", embedding_type=name, quiet=True)
        expected = quantize_by_gguf(table, GGMLQuantizationType.Q8_0) if name == "q8_0" else table.astype(np.float16)
        assert raw(tmp_path / f"{name}.gguf", "token_embd.weight") == (target, expected.tobytes())
        assert raw(tmp_path / f"{name}.gguf", "output.weight")[0] is target


@pytest.mark.parametrize("kind", READABLE)
def test_embedding_and_head_of_any_type_are_retyped(kind: TensorType, tmp_path: Path) -> None:
    """The result is that of quantising the values, which are exact in float32."""
    shape, weight = (64, 256), np.ones((256, 256), np.float32)
    stored, values = forged(kind, *shape, seed=1)
    dense = dict.fromkeys(("token_embd.weight", "output.weight"), (kind, shape, stored))
    source = write(tmp_path / "in.gguf", {"blk.0.attn_q.weight": (TensorType.F32, weight.shape, weight)} | dense)
    floats = dict.fromkeys(dense, (TensorType.F32, shape, values))
    exact = write(tmp_path / "exact.gguf", {"blk.0.attn_q.weight": (TensorType.F32, weight.shape, weight)} | floats)
    for name in ("f32", "bf16", "q8_0", "q6_k"):
        quantize(source, tmp_path / f"{name}.gguf", embedding_type=name, quiet=True)
        quantize(exact, tmp_path / f"{name}-exact.gguf", embedding_type=name, quiet=True)
        for tensor in dense:
            expected = (kind, stored.tobytes()) if kind.name == name.upper() else raw(tmp_path / f"{name}-exact.gguf", tensor)
            assert raw(tmp_path / f"{name}.gguf", tensor) == expected
    assert raw(tmp_path / "f32.gguf", "output.weight")[1] == values.tobytes()
    assert raw(tmp_path / "q8_0-exact.gguf", "output.weight")[1] == quantize_by_gguf(values, GGMLQuantizationType.Q8_0).tobytes()
    bits = quantize_by_gguf(values, GGMLQuantizationType.BF16)
    assert raw(tmp_path / "bf16-exact.gguf", "output.weight")[1] == bits.tobytes()


def test_our_own_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """Only the embedding changes; the result is what convert writes with that type, to the byte."""
    convert(folders["C"], tmp_path / "f16.gguf", quiet=True)
    convert(folders["C"], tmp_path / "q8_0.gguf", embedding_type="q8_0", quiet=True)
    quantize(tmp_path / "f16.gguf", tmp_path / "out.gguf", embedding_type="q8_0", quiet=True)
    # bfloat16 -> float16 loses what lies below 2^-24 only; this embedding has nothing there.
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "q8_0.gguf").read_bytes()
    quantize(tmp_path / "f16.gguf", tmp_path / "same.gguf", quiet=True)
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "f16.gguf").read_bytes()
    quantize(tmp_path / "q8_0.gguf", tmp_path / "back.gguf", embedding_type="f32", quiet=True)
    quantize(tmp_path / "back.gguf", tmp_path / "again.gguf", embedding_type="q8_0", quiet=True)
    assert raw(tmp_path / "again.gguf", "token_embd.weight") == raw(tmp_path / "q8_0.gguf", "token_embd.weight")


def i2_s_model(change: Callable[[Any], None]) -> dict[str, Any]:
    data = i2_s.pack(np.ones((4, 128), np.int8), 0.5).copy()
    change(data)
    return {"blk.0.attn_q.weight": (TensorType.I2_S, (4, 128), data)}


def set_scale(value: float) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        data[128:132] = np.frombuffer(struct.pack("<f", value), np.uint8)

    return change


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (i2_s_model(lambda data: data.__setitem__(17, 0xC0)), BadFileError, "attn_q.weight: a 2-bit code is 3"),
        (i2_s_model(set_scale(float("nan"))), BadFileError, "attn_q.weight: scale is nan"),
        (i2_s_model(set_scale(float("inf"))), BadFileError, "attn_q.weight: scale is inf"),
        (i2_s_model(set_scale(0.0)), BadFileError, "attn_q.weight: scale is 0.0"),
        (i2_s_model(set_scale(-1.0)), BadFileError, "attn_q.weight: scale is -1.0"),
        ({"blk.0.attn_q.weight": (TensorType.I2_S, (2, 64), np.zeros(64, np.uint8))}, BadFileError, "rows of 64 weights"),
        ({"blk.0.attn_q.weight": (TensorType.F32, (128,), np.ones(128, "f4"))}, BadFileError, r"shape \[128\], expected rows and columns"),
        ({"blk.0.attn_q.weight": (TensorType.Q8_0, (1, 128), np.zeros(136, "u1"))}, UnsupportedError, "type Q8_0 cannot be re-typed"),
        ({"blk.0.attn_q.weight": (TensorType.F32, (1, 128), np.full((1, 128), np.nan, "f4"))}, BadFileError, r"\|W\| is nan"),
        ({"blk.0.attn_q.scale": (TensorType.F32, (1,), np.ones(1, "f4"))}, BadFileError, "no projection among them"),
        ({"blk.0.attn_norm.weight": (TensorType.F32, (4,), np.ones(4, "f4"))}, BadFileError, "no projection among them"),
    ],
)
def test_refused(tensors: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.gguf", tensors)
    with pytest.raises(error, match=message):
        quantize(source, tmp_path / "out.gguf", quiet=True)
    assert list(tmp_path.iterdir()) == [source]


def test_paths(folders: dict[str, Path], tmp_path: Path, bitnet: Callable[..., Any], refused: Callable[..., None]) -> None:
    source, link = tmp_path / "in.gguf", tmp_path / "link.gguf"
    convert(folders["C"], source, quiet=True)
    link.symlink_to(source.name)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(UsageError, match="is the input file"):
            quantize(source, target, force=True)
    refused(bitnet("quantize", source, tmp_path / "no" / "out.gguf", "i2_s"), 2, "does not exist")
    refused(bitnet("quantize", tmp_path / "no.gguf", tmp_path / "out.gguf", "i2_s"), 2, "no.gguf", "No such file")
    (tmp_path / "old.gguf").write_bytes(b"old")
    refused(bitnet("quantize", source, tmp_path / "old.gguf", "i2_s"), 2, "exists already")
    assert (tmp_path / "old.gguf").read_bytes() == b"old" and source.read_bytes() == before
    done = bitnet("quantize", source, tmp_path / "old.gguf", "i2_s", "--embedding-type", "q8_0", "--force", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert raw(tmp_path / "old.gguf", "token_embd.weight")[0] is TensorType.Q8_0


def test_bytes_after_the_last_tensor_are_noted(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(folders["C"], tmp_path / "in.gguf", quiet=True)
    with (tmp_path / "in.gguf").open("ab") as file:
        file.write(bytes(64))
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf")
    assert "64 bytes after the last tensor were left out" in capsys.readouterr().err
    with open_gguf(tmp_path / "out.gguf") as gguf:
        assert gguf.trailing == 0
