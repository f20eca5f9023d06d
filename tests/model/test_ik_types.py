"""Models in ik_llama.cpp's IQ1_BN, IQ2_BN and IQ2_BN_R4, written as its quantiser writes them: run as I2_S, converted without loss."""

import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.config import read_config
from bitnet_cli.model.projections import load_projections
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.tensors.contents import check, sample_zeros
from bitnet_cli.ternary import iq2_bn
from bitnet_cli.ternary.layouts import LAYOUTS, PackedTensor

from .builder import Model, Sizes, random_model, write_model

Open = Callable[[Path], GGUFFile]
KINDS = (TensorType.IQ1_BN, TensorType.IQ2_BN, TensorType.IQ2_BN_R4, TensorType.IQ2_BN_UNSCALED)
SCALED = KINDS[:3]
SIZES = Sizes(hidden=256, feed_forward=640, head_dim=64)  # 640: no multiple of 256
IDS = [256, *b"text"]
QUARTER = 0.0625  # a scale that float16 has


def by_their_quantiser(weights: NDArray[np.float32], kind: TensorType) -> bytes:
    """(rows, cols) floats -> bytes, weight by weight, as quantize_one_row_1bn and _2bn of iqk_quantize.cpp describe it.

    A row's scale is its largest size; a weight is a zero below half of that, which in a row of zeros none is: codes 2, scale 0. Without
    scales of rows, below 1e-6.
    """
    rows = []
    for row in weights:
        largest = np.abs(row).max()
        zero = 1e-6 if kind is TensorType.IQ2_BN_UNSCALED else 0.5 * largest
        codes = np.where(np.abs(row) < zero, 1, np.where(row < 0, 0, 2))
        blocks = b""
        for block in codes.reshape(-1, 4, 16):
            if kind is TensorType.IQ1_BN:
                fives = [*block[:, :15].reshape(12, 5), block[:, 15]]
                blocks += bytes((256 * sum(int(c) * 3**j for j, c in enumerate(five)) + 242) // 243 for five in fives)
            else:
                blocks += sum(block[part] << 2 * part for part in range(4)).astype(np.uint8).tobytes()
        scale = b"" if kind is TensorType.IQ2_BN_UNSCALED else struct.pack("<e" if kind is TensorType.IQ1_BN else "<f", largest)
        rows.append((scale, blocks))
    if kind is not TensorType.IQ2_BN_R4:
        return b"".join(scale + blocks for scale, blocks in rows)
    out = b""
    for first in range(0, len(rows), 4):
        four = [np.frombuffer(blocks, np.uint8) for _, blocks in rows[first : first + 4]]
        out += b"".join(scale for scale, _ in rows[first : first + 4])
        for start in range(0, len(four[0]), 16):
            for part in range(4):  # of the bits
                for row in four:
                    fields = row[start : start + 16].reshape(4, 4) >> 2 * part & 3
                    out += (fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6).tobytes()
    return out


@pytest.fixture(scope="module")
def model() -> Model:
    """Scales that float16 has, and a row of zeros in most matrices."""
    made = random_model(SIZES, seed=4)
    for number, (name, values) in enumerate(made.ternary.items()):
        made.scales[name] = np.float32(np.float16(made.scales[name]))
        if number % 3:
            values[number] = 0
    return made


@cache
def bytes_of(model: Model, kind: TensorType) -> dict[str, NDArray[np.uint8]]:
    """Matrix by matrix; a second to write, weight by weight, and most tests of this file ask."""
    written = {name: by_their_quantiser(values * model.scales[name], kind) for name, values in model.ternary.items()}
    return {name: np.frombuffer(raw, np.uint8) for name, raw in written.items()}


def as_kind(model: Model, kind: TensorType) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for (name, values), raw in zip(model.ternary.items(), bytes_of(model, kind).values(), strict=True):
        weight = f"{name}.weight"
        # What a file says is 135.
        tensors[weight] = OutputTensor(weight, kind, values.shape, lambda raw=raw: raw)  # type: ignore[misc]
        if kind is TensorType.IQ2_BN_UNSCALED:
            scale = np.array([model.scales[name]], "<f4")
            tensors[f"{name}.scale"] = OutputTensor(f"{name}.scale", TensorType.F32, (1,), lambda scale=scale: scale)  # type: ignore[misc]
    return tensors


@pytest.fixture
def as_135(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer has no business with files of 2024: here it writes their number."""
    from gguf import gguf_writer

    real = gguf_writer.TensorInfo

    def info(shape: Any, dtype: Any, nbytes: int) -> Any:
        return real(shape=shape, dtype=dtype % 2**32, nbytes=nbytes)

    monkeypatch.setattr(gguf_writer, "TensorInfo", info)


@pytest.fixture
def written(model: Model, tmp_path: Path, as_135: None) -> Callable[[TensorType], Path]:
    return lambda kind: write_model(tmp_path / f"{kind.name}.gguf", model, tensors=as_kind(model, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_as_i2_s(
    kind: TensorType, model: Model, tmp_path: Path, written: Callable[[TensorType], Path], text_of: Callable[..., Sequence]
) -> None:
    expected = text_of(write_model(tmp_path / "i2_s.gguf", model)).feed_all(IDS)
    path = written(kind)
    with open_gguf(path) as file:
        assert why_not(file) == why_not(file, full=True) == (None, False)
    assert np.array_equal(text_of(path).feed_all(IDS), expected)
    quantize(path, tmp_path / "back.gguf", "i2_s", quiet=True)
    assert np.array_equal(text_of(tmp_path / "back.gguf").feed_all(IDS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_pack_rows_writes_is_what_their_quantiser_writes(kind: TensorType) -> None:
    """But for rows of zeros, in which no code matters."""
    values = np.random.default_rng(1).integers(-1, 2, (8, 192)).astype(np.int8)
    scales = () if kind is TensorType.IQ2_BN_UNSCALED else (QUARTER,)
    assert LAYOUTS[kind].pack_rows(values, *scales).tobytes() == by_their_quantiser(values * np.float32(QUARTER), kind)


@pytest.mark.parametrize("target", ["i2_s", "tq1_0", "tq2_0", "q2_0", "f16", "iq2_bn"])
@pytest.mark.parametrize("kind", KINDS)
def test_converted_without_loss(
    kind: TensorType, target: str, model: Model, tmp_path: Path, written: Callable[[TensorType], Path], opened: Open
) -> None:
    """To each type and from there to I2_S: the same bytes as the model written in I2_S, but for the order of the tensors."""
    quantize(written(kind), tmp_path / "there.gguf", target, quiet=True)
    quantize(tmp_path / "there.gguf", tmp_path / "back.gguf", "i2_s", quiet=True)
    expected, found = opened(write_model(tmp_path / "i2_s.gguf", model)), opened(tmp_path / "back.gguf")
    assert found.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        assert np.array_equal(found.raw(name), expected.raw(name)), name
    if target == "iq2_bn":
        assert opened(tmp_path / "there.gguf").metadata["general.file_type"] == 137


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_counts_zeros_and_finds_nothing_wrong(kind: TensorType, written: Callable[[TensorType], Path], model: Model) -> None:
    with open_gguf(written(kind)) as file:
        found, sampled = check(file), sample_zeros(file)
    assert found.problems == []
    weights = sum(v.size for v in model.ternary.values())
    empty = [v.shape[1] for v in model.ternary.values() for row in v if not row.any() and kind in SCALED]
    # Codes are counted, and those of a row of zeros are 2.
    assert found.zeros == (weights, weights, sum(int((v == 0).sum()) for v in model.ternary.values()) - sum(empty))
    assert sampled.weights == weights and abs(sampled.zeros / sampled.seen - 1 / 3) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_whole_rows(kind: TensorType) -> None:
    """Of four that lie together all, in their order, with their scales."""
    values = np.random.default_rng(2).integers(-1, 2, (64, 128)).astype(np.int8)
    scales = () if kind is TensorType.IQ2_BN_UNSCALED else (np.arange(1, 65) / 64,)
    raw = LAYOUTS[kind].pack_rows(values, *scales)
    sample = PackedTensor(kind, (64, 128), raw, "f", "t").some_rows(10)
    if kind is TensorType.IQ2_BN_UNSCALED:
        found, chunks = sample.read()
        assert found == 1 and sample.shape == (4, 128)
        chosen = np.linspace(0, 63, 4).astype(int)
    else:
        several = sample.several()
        assert several is not None
        chosen, chunks = (several[0] * 64).astype(int) - 1, several[2]
        assert {0, 63} <= set(chosen) and len(chosen) == (16 if kind is TensorType.IQ2_BN_R4 else 4)
    assert np.array_equal(np.concatenate(list(chunks())), values[chosen])


def one_changed(model: Model, kind: TensorType, change: Callable[[NDArray[np.uint8]], None], **other: Any) -> dict[str, Any]:
    """blk.1.attn_k, of 128 rows of 256, with bytes of its own."""
    tensors, name = as_kind(model, kind), "blk.1.attn_k.weight"
    raw = np.array(tensors[name].produce())
    change(raw)
    tensors[name] = OutputTensor(name, kind, (128, 256), lambda: raw)
    return tensors | other


def row_scale(kind: TensorType, row: int, value: float) -> Callable[[NDArray[np.uint8]], None]:
    def change(raw: NDArray[np.uint8]) -> None:
        code, size = ("<e", 2 + 52) if kind is TensorType.IQ1_BN else ("<f", 4 + 64)
        at = row // 4 * 4 * size + row % 4 * 4 if kind is TensorType.IQ2_BN_R4 else row * size
        data = np.frombuffer(struct.pack(code, value), np.uint8)
        raw[at : at + len(data)] = data

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("kind", SCALED)
def test_scales_that_are_damage(kind: TensorType, value: float, model: Model, tmp_path: Path, opened: Open) -> None:
    file = opened(write_model(tmp_path / "m.gguf", model, tensors=one_changed(model, kind, row_scale(kind, 5, value))))
    problem = "the scale of a row is (not finite|negative)"
    with pytest.raises(BadFileError, match=f"attn_k.weight: {problem}"):
        load_projections(file, read_config(file))
    with pytest.raises(BadFileError, match=f"attn_k.weight: {problem}"):
        quantize(file.path, tmp_path / "out.gguf", "i2_s", quiet=True)
    problems = check(file).problems
    size = 54 if kind is TensorType.IQ1_BN else 68
    at = file.tensors["blk.1.attn_k.weight"].offset + (4 * size + 4 if kind is TensorType.IQ2_BN_R4 else 5 * size)
    said = f"1 scales of rows are neither positive numbers nor 0 (first at byte {at})"
    assert problems == [f"tensor blk.1.attn_k.weight: {said}"]


def test_denormal_scales_are_damage(model: Model, tmp_path: Path, opened: Open) -> None:
    """Those of float16 are not: they are normal numbers in float32."""
    for kind in SCALED:
        small = one_changed(model, kind, lambda raw, kind=kind: [row_scale(kind, row, 1e-6)(raw) for row in range(128)])  # type: ignore[misc]
        file = opened(write_model(tmp_path / "m.gguf", model, tensors=small))
        load_projections(file, read_config(file))
    tensors = one_changed(model, TensorType.IQ2_BN, row_scale(TensorType.IQ2_BN, 5, 1e-41))
    file = opened(write_model(tmp_path / "silu.gguf", random_like(model), tensors=tensors, arch="bitnet"))
    with pytest.raises(BadFileError, match=r"attn_k.weight: has the scales .*e-42 to 1 of rows, expected positive numbers"):
        load_projections(file, read_config(file))
    assert "1 scales of rows" in check(file).problems[0]


def random_like(model: Model) -> Model:
    """The same with SiLU, which takes several scales."""
    return Model(model.sizes, "silu", model.ternary, model.scales, model.norms, embedding=model.embedding)


@pytest.mark.parametrize("kind", SCALED)
def test_rows_with_other_scales(kind: TensorType, model: Model, tmp_path: Path, opened: Open) -> None:
    """Parts of rows where the activation allows it; kept in blocks, or by IQ2_BN in rows."""
    tensors = one_changed(model, kind, row_scale(kind, 5, QUARTER))
    refused = opened(write_model(tmp_path / "relu2.gguf", model, tensors=tensors))
    with pytest.raises(UnsupportedError, match="several scales in a projection are not supported with ReLU²"):
        load_projections(refused, read_config(refused))
    assert "several scales in a projection are not supported with ReLU²" in str(why_not(refused).reason)
    file = opened(write_model(tmp_path / "m.gguf", random_like(model), tensors=tensors, arch="bitnet"))
    parts = load_projections(file, read_config(file)).parts
    k = [int(parts.at[1, 1]), int(parts.at[1, 2])]
    assert parts.ends[k[0] : k[1]].tolist()[0] == 5 and np.float32(QUARTER) in parts.scales[k[0] : k[1]]
    for target in ("iq2_bn", "tq2_0"):
        quantize(file.path, tmp_path / f"{target}.gguf", target, quiet=True)
        again = opened(tmp_path / f"{target}.gguf")
        same = load_projections(again, read_config(again)).parts
        assert all(np.array_equal(a, b) for a, b in zip(parts, same, strict=True))
    assert opened(tmp_path / "iq2_bn.gguf").tensors["blk.1.attn_k.weight"].type is TensorType.IQ2_BN
    assert opened(tmp_path / "iq2_bn.gguf").metadata["general.file_type"] == 137


def products_of(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """Of IQ2_BN: a row of zeros may have any scale, or any codes and the scale 0."""
    return iq2_bn.unpack_rows(raw, cols) * iq2_bn.row_scales(raw, cols)[:, None]


def test_scales_of_rows_that_float16_has_not(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are, or rounded and told."""
    tensors = one_changed(model, TensorType.IQ2_BN, row_scale(TensorType.IQ2_BN, 5, 0.1))
    source = write_model(tmp_path / "m.gguf", random_like(model), tensors=tensors, arch="bitnet")
    quantize(source, tmp_path / "same.gguf", "iq2_bn", quiet=True)
    with open_gguf(source) as before, open_gguf(tmp_path / "same.gguf") as after:
        products = [products_of(file.raw("blk.1.attn_k.weight"), 256) for file in (before, after)]
    assert np.array_equal(*products)
    with open_gguf(source) as file:
        want = load_projections(file, read_config(file))
    for target in ("i2_s", "tq2_0"):
        quantize(source, tmp_path / f"{target}.gguf", target)
        with open_gguf(tmp_path / f"{target}.gguf") as file:
            got = load_projections(file, read_config(file))
            assert why_not(file, full=True).reason is None
        assert all(np.array_equal(a, b) for a, b in zip(want.parts[:2], got.parts[:2], strict=True))
        exact = target == "i2_s"
        assert np.array_equal(want.parts.scales, got.parts.scales) is exact
        assert np.allclose(want.parts.scales, got.parts.scales, rtol=2**-11)
        assert ("one float32 scale a row" if exact else "the scale of each row is rounded to 11 bits") in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS[1:])
def test_code_3_runs_as_2_and_is_kept_where_it_can_be(
    kind: TensorType, model: Model, tmp_path: Path, as_135: None, text_of: Callable[..., Sequence], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an I2_S file, which is mapped as it is."""

    def change(raw: NDArray[np.uint8]) -> None:
        raw[100] |= 3

    path = write_model(tmp_path / "m.gguf", model, tensors=one_changed(model, kind, change))
    logits = text_of(path).feed_all(IDS)
    with open_gguf(path) as file:
        assert "1 codes stand for no ternary value" in check(file).problems[0]
        loaded = load_projections(file, read_config(file))
    at = int(loaded.offsets[1, 1])
    rows = LAYOUTS[TensorType.I2_S].unpack_rows(loaded.packed[at : at + 128 * 64], 256)
    assert (rows == 2).sum() == 1 and ((rows != model.ternary["blk.1.attn_k"]).sum() == 1)
    quantize(path, tmp_path / "kept.gguf", "i2_s")
    assert "1 projections have the value 2 beside -1, 0, 1, which is kept" in capsys.readouterr().err
    assert np.array_equal(text_of(tmp_path / "kept.gguf").feed_all(IDS), logits)
    with pytest.raises(BadFileError, match=r"attn_k\.weight: a 2-bit code is 3"):
        quantize(path, tmp_path / "out.gguf", "tq1_0", quiet=True)
    assert not (tmp_path / "out.gguf").exists()


def test_bytes_that_no_packer_of_iq1_bn_writes(model: Model, tmp_path: Path) -> None:
    unwritten = next(byte for byte in range(256) if byte not in {(number * 256 + 242) // 243 for number in range(243)})
    late = (81 * 256 + 242) // 243  # in the 13th byte, the fifth code is 0
    for place, byte in ((2 + 3, unwritten), (2 + 12, late)):
        tensors = one_changed(model, TensorType.IQ1_BN, lambda raw, place=place, byte=byte: raw.__setitem__(place, byte))  # type: ignore[misc]
        path = write_model(tmp_path / "m.gguf", model, tensors=tensors)
        with open_gguf(path) as file:
            load_projections(file, read_config(file))
            assert "1 codes stand for no ternary value" in check(file).problems[0]
        with pytest.raises(BadFileError, match=r"attn_k\.weight: a byte is none of the 243"):
            quantize(path, tmp_path / "out.gguf", "i2_s", quiet=True)


def test_an_embedding_without_scales_of_rows_is_not_copied(model: Model, tmp_path: Path, as_135: None) -> None:
    raw = np.zeros(260 * 64, np.uint8)
    embedding = OutputTensor("token_embd.weight", TensorType.IQ2_BN_UNSCALED, (260, 256), lambda: raw)
    tensors = as_kind(model, TensorType.IQ2_BN_UNSCALED) | {"token_embd.weight": embedding}
    path = write_model(tmp_path / "m.gguf", model, tensors=tensors)
    with pytest.raises(UnsupportedError, match="IQ2_BN without scales of rows is read as projections only"):
        quantize(path, tmp_path / "out.gguf", "i2_s", quiet=True)
