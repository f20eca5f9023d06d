"""Packed layouts: bit-exact there and back, the same bytes and numbers as the gguf package, and one scale a tensor or a refusal."""

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TOGETHER, TensorType, nbytes, row_bytes
from bitnet_cli.ternary import i2_s, layouts, pq2_0, ptq1_0, q1_0, q2_0, tq1_0, tq2_0
from bitnet_cli.ternary.layouts import LAYOUTS, WITH_TWOS, WITHOUT_ZEROS, PackedTensor, block_of

ROWED = tuple(PREFIXES)
BLOCKED = (TensorType.TQ1_0, TensorType.TQ2_0, TensorType.Q2_0, TensorType.PQ2_0, TensorType.PTQ1_0)
GROUPED = (*BLOCKED, TensorType.Q1_0)  # with a scale a block; the last has no zeros
SHAPES = {128: [(1, 128), (3, 384), (5, 640)], 256: [(1, 256), (3, 768), (7, 2560)], 64: [(1, 64), (3, 192), (5, 640)]}
FOURS = [(4, 64), (12, 192), (20, 640)]
EVERY = [(kind, shape) for kind in LAYOUTS for shape in (FOURS if kind in TOGETHER else SHAPES[block_of(kind)])]


def random(shape: tuple[int, int], seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def set_scales(raw: NDArray[np.uint8], kind: TensorType, scales: Any) -> NDArray[np.uint8]:
    """A copy whose blocks have these float16 scales (one, or one a block)."""
    layout = LAYOUTS[kind]
    blocks = raw.reshape(-1, layout.BLOCK_BYTES).copy()
    half = np.broadcast_to(np.asarray(scales, "<f2"), len(blocks)).copy()
    blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = half.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def read(raw: NDArray[np.uint8], kind: TensorType, shape: tuple[int, int], **options: Any) -> tuple[np.float32, NDArray[np.int8]]:
    strict = options.pop("strict", False)
    scale, chunks = PackedTensor(kind, shape, raw, "m.gguf", "t", **options).read(strict)
    return scale, np.concatenate(list(chunks()))


@pytest.mark.parametrize(("kind", "shape"), EVERY)
def test_there_and_back(kind: TensorType, shape: tuple[int, int]) -> None:
    values = random(shape) if kind not in WITHOUT_ZEROS else random(shape) | np.int8(1)
    raw = LAYOUTS[kind].pack_rows(values)
    assert raw.dtype == np.uint8 and raw.size == nbytes(kind, shape) - (i2_s.TAIL if kind is TensorType.I2_S else 0)
    assert np.array_equal(LAYOUTS[kind].unpack_rows(raw, shape[1]), values)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(LAYOUTS)), rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_there_and_back_at_any_size(kind: TensorType, rows: int, blocks: int, seed: int) -> None:
    """Values, and the scales of rows where rows have them."""
    shape = (rows * TOGETHER.get(kind, 1), blocks * block_of(kind))
    values, scales = random(shape, seed), (np.random.default_rng(seed).uniform(0.1, 2, shape[0]).astype(np.float16),)
    values = values | np.int8(1) if kind in WITHOUT_ZEROS else values
    values[values == 1] += (np.arange((values == 1).sum()) % 5 == 0).astype(np.int8) if kind in WITH_TWOS else np.int8(0)
    raw = LAYOUTS[kind].pack_rows(values, *(scales if kind in PREFIXES else ()))
    assert np.array_equal(LAYOUTS[kind].unpack_rows(raw, shape[1]), values)
    if kind in PREFIXES:
        assert np.array_equal(LAYOUTS[kind].row_scales(raw, shape[1]), scales[0].astype(np.float32))


def test_the_table_of_types_has_the_same_blocks() -> None:
    for kind in (*GROUPED, *ROWED, TensorType.IQ2_BN_UNSCALED):
        assert BLOCKS[kind] == (LAYOUTS[kind].BLOCK, LAYOUTS[kind].BLOCK_BYTES)


@pytest.mark.parametrize("kind", [TensorType.TQ1_0, TensorType.TQ2_0])
def test_same_bytes_and_numbers_as_the_gguf_package(kind: TensorType) -> None:
    """Every block has a non-zero weight, so that its quantiser finds the scale 1 that we write."""
    values = random((6, 768), seed=1)
    raw = LAYOUTS[kind].pack_rows(values)
    theirs = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind.name])
    assert np.array_equal(raw, theirs.reshape(-1))
    scaled = set_scales(raw, kind, 0.3)
    numbers = gguf.quants.dequantize(scaled.reshape(6, -1), gguf.GGMLQuantizationType[kind.name])
    scale, found = read(scaled, kind, (6, 768))
    assert scale == np.float32(np.float16(0.3))
    assert np.array_equal(found * scale, numbers)


def by_words(kind: TensorType, block: NDArray[np.uint8], weight: int) -> int:
    """Value of one weight of one block, from the words of the module's docstring, bit by bit."""
    if kind is TensorType.IQ1_BN:
        group, place = divmod(weight, 16)
        byte, code = (12, group) if place == 15 else (3 * group + place // 5, place % 5)
        return int(block[2 + byte]) * 3 ** (4 - code) % 256 * 3 // 256 - 1
    if kind in (TensorType.IQ2_BN, TensorType.IQ2_BN_UNSCALED):
        return (int(block[PREFIXES.get(kind, 0) + weight % 16]) >> 2 * (weight // 16) & 3) - 1
    if kind is TensorType.IQ2_BN_R4:
        row, weight = divmod(weight, 64)
        return (int(block[16 + 16 * (weight // 16) + 4 * row + weight % 4]) >> 2 * (weight % 16 // 4) & 3) - 1
    if kind is TensorType.I2_S:
        return (int(block[weight % 32]) >> (6 - 2 * (weight // 32)) & 3) - 1
    if kind is TensorType.TQ2_0:
        half, place = divmod(weight, 128)
        return (int(block[32 * half + place % 32]) >> 2 * (place // 32) & 3) - 1
    if kind in (TensorType.Q2_0, TensorType.PQ2_0):
        return (int(block[2 + weight // 4]) >> 2 * (weight % 4) & 3) - 1
    if kind is TensorType.Q1_0:
        return 2 * (int(block[2 + weight // 8]) >> weight % 8 & 1) - 1
    if kind is TensorType.PTQ1_0:
        first, count, start = (0, 16, 0) if weight < 80 else (16, 8, 80) if weight < 120 else (24, 2, 120)
        digit, byte = divmod(weight - start, count)
        return int(block[first + byte]) * 3**digit % 256 * 3 // 256 - 1
    first, count, start = (0, 32, 0) if weight < 160 else (32, 16, 160) if weight < 240 else (48, 4, 240)
    digit, byte = divmod(weight - start, count)
    return int(block[first + byte]) * 3**digit % 256 * 3 // 256 - 1


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_byte_decodes_as_the_docstring_says(kind: TensorType) -> None:
    """Random bytes, not only those that a packer writes."""
    block, rows = LAYOUTS[kind].BLOCK, TOGETHER.get(kind, 1)
    raw = np.random.default_rng(2).integers(0, 256, rows * row_bytes(kind, block)).astype(np.uint8)
    assert LAYOUTS[kind].unpack_rows(raw, block).reshape(-1).tolist() == [by_words(kind, raw, i) for i in range(rows * block)]


def test_i2_s_with_its_tail() -> None:
    """A whole tensor: the scale and zeros after the weights; what has another size, or a code 3, is refused."""
    values = random((3, 256))
    raw = i2_s.pack(values, 0.7)
    assert len(raw) == i2_s.nbytes(3, 256) == 192 + 32 and not raw[-28:].any()
    found, scale = i2_s.unpack(raw, 3, 256)
    assert np.array_equal(found, values) and scale == np.float32(0.7)
    assert i2_s.unpack(i2_s.pack(values * 0, 0.7), 3, 256)[0].tolist() == (values * 0).tolist()
    for rows, cols in ((3, 128), (4, 192)):  # the second has as many bytes
        with pytest.raises(ValueError, match=f"224 bytes are not an I2_S tensor of {rows} x {cols}"):
            i2_s.unpack(raw, rows, cols)
    damaged = raw.copy()
    damaged[100] |= 3
    with pytest.raises(ValueError, match="a 2-bit code is 3"):
        i2_s.unpack(damaged, 3, 256)


def test_i2_s_of_arm_builds() -> None:
    """64 weights in 16 bytes: byte p holds weights p, p + 16, p + 32, p + 48."""
    raw = np.random.default_rng(3).integers(0, 256, 64).astype(np.uint8)
    values = i2_s.unpack_rows(raw, 128, arm=True)
    for weight in range(128):
        half, place = divmod(weight, 64)
        assert values[0, weight] == (int(raw[16 * half + place % 16]) >> (6 - 2 * (place // 16)) & 3) - 1


@pytest.mark.parametrize("layout", [tq1_0, tq2_0, q2_0, pq2_0, ptq1_0, q1_0, i2_s])
def test_rows_that_are_no_whole_blocks(layout: Any) -> None:
    with pytest.raises(ValueError, match=f"multiple of {layout.BLOCK} weights, not 96"):
        layout.pack_rows(random((2, 96)))


@pytest.mark.parametrize(("kind", "five", "four"), [(TensorType.TQ1_0, 7, 50), (TensorType.PTQ1_0, 20, 25)])
def test_bytes_that_no_packer_writes(kind: TensorType, five: int, four: int) -> None:
    """five, four: a byte with so many codes in a block."""
    layout = LAYOUTS[kind]
    values = np.concatenate([random((40, 2560), seed=4), np.ones((1, 2560), np.int8), -np.ones((1, 2560), np.int8)])
    raw = layout.pack_rows(values)
    assert not layout.has_unwritten_bytes(raw)
    written = {(number * 256 + 242) // 243 for number in range(243)}
    for place, allowed in ((five, written), (four, {(3 * number * 256 + 242) // 243 for number in range(81)})):
        for byte in range(256):
            changed = raw.copy()
            changed[layout.BLOCK_BYTES * 3 + place] = byte
            assert layout.has_unwritten_bytes(changed) == (byte not in allowed)
    raw[0] = next(byte for byte in range(256) if byte not in written)
    read(raw, kind, values.shape)
    with pytest.raises(BadFileError, match="t: a byte is none of the 243"):
        read(raw, kind, values.shape, strict=True)


@pytest.mark.parametrize("kind", BLOCKED)
def test_scale_of_blocks_and_of_the_tensor_multiply(kind: TensorType) -> None:
    values = random((3, 256))
    scale, found = read(set_scales(LAYOUTS[kind].pack_rows(values), kind, 0.25), kind, (3, 256), extra=float(np.float32(0.1)))
    assert scale == np.float32(0.1) / 4 and np.array_equal(found, values)


@pytest.mark.parametrize("kind", BLOCKED)
def test_blocks_of_zeros_may_have_any_scale(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantiser of llama.cpp writes 0 there. Chunks of one row, here and below, so that blocks are counted over chunks."""
    monkeypatch.setattr(layouts, "CHUNK_WEIGHTS", 1)
    block = block_of(kind)
    values = random((4, 2 * block), seed=5)
    values[1, :block] = values[3, block:] = 0
    raw = LAYOUTS[kind].pack_rows(values)
    for other in (0.0, 3.0):
        scales = np.full(8, 0.5)
        scales[[2, 7]] = other
        scale, found = read(set_scales(raw, kind, scales), kind, values.shape)
        assert scale == 0.5 and np.array_equal(found, values)


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_scale_of_zero_makes_zeros_of_any_codes(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "CHUNK_WEIGHTS", 1)
    block = block_of(kind)
    values = np.ones((2, 2 * block), np.int8)
    scale, found = read(set_scales(LAYOUTS[kind].pack_rows(values), kind, [0.5, 0, 0.5, 0]), kind, values.shape)
    values[0, block:] = values[1, block:] = 0
    assert scale == 0.5 and np.array_equal(found, values)
    values[0, :block] = 1
    scale, found = read(set_scales(LAYOUTS[kind].pack_rows(values), kind, [0.5, 0.5, 0, 0.5]), kind, values.shape)
    values[1] = 0
    assert scale == 0.5 and np.array_equal(found, values)
    scale, found = read(set_scales(LAYOUTS[kind].pack_rows(values), kind, 0), kind, values.shape, extra=0.75)
    assert scale == 0.75 and not found.any()


@pytest.mark.parametrize(
    ("scales", "error", "message"),
    [
        ([0.5, 0.25, 0.5, 1.0], UnsupportedError, "t: blocks with 3 different scales, 0.25 to 1; one scale a tensor"),
        ([0.5, -0.5, 0.5, 0.5], UnsupportedError, "2 different scales, -0.5 to 0.5"),
        (-0.5, BadFileError, "t: scale is -0.5, expected a positive"),
        ([0.5, np.nan, 0.5, 0.5], BadFileError, "t: the scale of a block is not finite"),
        (np.inf, BadFileError, "t: scale is inf"),
    ],
)
@pytest.mark.parametrize("kind", BLOCKED)
def test_scales_that_are_refused(kind: TensorType, scales: Any, error: type[Exception], message: str) -> None:
    raw = LAYOUTS[kind].pack_rows(np.ones((2, 2 * block_of(kind)), np.int8))
    with pytest.raises(error, match=message):
        read(set_scales(raw, kind, scales), kind, (2, 2 * block_of(kind)))


@pytest.mark.parametrize("extra", [0.0, 1e-45, 1e39, float("nan")])
def test_products_of_scales_that_are_refused(extra: float) -> None:
    with pytest.raises(BadFileError, match="expected a positive number"):
        read(tq2_0.pack_rows(random((1, 256))), TensorType.TQ2_0, (1, 256), extra=extra)


def with_code_3(kind: TensorType) -> Callable[[], Any]:
    raw = LAYOUTS[kind].pack_rows(random((2, 256)))
    raw[5] |= 3
    if kind is TensorType.I2_S:
        raw = np.concatenate([raw, i2_s.tail(1.0)])
    return lambda: read(raw, kind, (2, 256))


def test_values_that_are_not_ternary() -> None:
    for kind in (TensorType.TQ2_0, TensorType.I2_S):
        with pytest.raises(BadFileError, match="a 2-bit code is 3"):
            with_code_3(kind)()
    for kind in WITH_TWOS:
        assert with_code_3(kind)()[1].max() == 2


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_groups_as_they_are_stored(kind: TensorType, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes as Q2_0 has them; chunks of whole panels of rows."""
    monkeypatch.setattr(layouts, "CHUNK_WEIGHTS", 1)
    rows, block = 21, block_of(kind)
    values = random((rows, 512)) | np.int8(kind in WITHOUT_ZEROS)
    if kind in WITH_TWOS:
        values[3, 5] = 2
    scales = np.random.default_rng(3).uniform(0, 1, (rows, 512 // max(block, size))).astype(np.float16)
    scales[4, 1] = 0
    stored = np.repeat(scales, max(block, size) // block, axis=1)
    source = PackedTensor(kind, (rows, 512), set_scales(LAYOUTS[kind].pack_rows(values), kind, stored.reshape(-1)), "m.gguf", "t")
    assert source.needs_groups() and source.shares(size) and not (max(block, size) < 512 and source.shares(512))
    parts = list(source.in_groups(size, 8))
    assert [len(codes) for codes, _ in parts] == [8, 8, 5]
    codes = np.concatenate([codes for codes, _ in parts])
    assert np.array_equal((codes[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(rows, 512), values + 1)
    assert np.array_equal(np.concatenate([part for _, part in parts]), np.repeat(scales, max(block, size) // size, axis=1))


@pytest.mark.parametrize("scale", [-1.0, np.nan, np.inf])
def test_scales_that_no_group_has(scale: float) -> None:
    stored = np.full(8, 0.5)
    stored[5] = scale
    raw = set_scales(LAYOUTS[TensorType.PQ2_0].pack_rows(random((2, 512))), TensorType.PQ2_0, stored)
    with pytest.raises(BadFileError, match="t: the scale of a block is negative or not finite"):
        list(PackedTensor(TensorType.PQ2_0, (2, 512), raw, "m.gguf", "t").in_groups(128, 16))
