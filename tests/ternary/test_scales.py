"""Scales of blocks: told apart by row, by column or by neither, and what is read with them. By definitions of a line each."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import PREFIXES, TensorType
from bitnet_cli.ternary import layouts
from bitnet_cli.ternary.layouts import LAYOUTS, TWOS, WITH_TWOS, PackedTensor, Scales, block_of, exact_signs, rows_or_columns

KINDS = (TensorType.TQ1_0, TensorType.TQ2_0, TensorType.Q2_0, TensorType.PQ2_0, TensorType.PTQ1_0)
DRAWN: dict[str, Any] = {
    "kind": st.sampled_from(KINDS),
    "rows": st.integers(1, 5),
    "blocks": st.integers(1, 4),
    "seed": st.integers(0, 2**32 - 1),
}


def drawn(kind: TensorType, rows: int, blocks: int, seed: int) -> tuple[NDArray[np.int8], np.random.Generator]:
    """Values, (rows, blocks, weights of a block), in which some blocks and some rows have only zeros."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, (rows, blocks, block_of(kind))).astype(np.int8)
    values[rng.random((rows, blocks)) < 0.2] = 0
    values[rng.random(rows) < 0.1] = 0
    return values, rng


def packed(kind: TensorType, values: NDArray[np.int8], table: NDArray[np.floating], extra: float = 1.0) -> PackedTensor:
    """table: (rows, blocks) of scales."""
    layout, shape = LAYOUTS[kind], (len(values), values[0].size)
    blocks = layout.pack_rows(values.reshape(shape)).reshape(-1, layout.BLOCK_BYTES).copy()
    blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = np.ascontiguousarray(table, "<f2").reshape(-1, 1).view(np.uint8)
    return PackedTensor(kind, shape, blocks.reshape(-1), "m.gguf", "t", extra)


def two_scales(rng: np.random.Generator, count: int) -> NDArray[np.float16]:
    return rng.choice(np.array([0.25, 1, 3], np.float16), count)


def differing(values: NDArray[np.int8], table: NDArray[np.float16]) -> bool:
    return len(np.unique(table[values.any(2)])) > 1


@pytest.fixture(autouse=True)
def chunks_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is counted over chunks is seen."""
    monkeypatch.setattr(layouts, "CHUNK_WEIGHTS", 1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**DRAWN, extra=st.sampled_from([1.0, 0.5, 3.0]), by_row=st.booleans())
def test_scales_of_rows_or_of_columns(kind: TensorType, rows: int, blocks: int, seed: int, extra: float, by_row: bool) -> None:
    values, rng = drawn(kind, rows, blocks, seed)
    table = np.broadcast_to(two_scales(rng, rows)[:, None] if by_row else two_scales(rng, blocks), (rows, blocks)).copy()
    some = values.any(2)
    table[~some] = two_scales(rng, int((~some).sum()))  # any: nothing is multiplied by it
    source, several = packed(kind, values, table, extra), None
    if not source.needs_groups():
        several = source.several()
    assert not source.needs_groups()
    assert (several is not None) == differing(values, table)
    if several is None:
        scale, chunks = source.read()
        assert np.array_equal(np.concatenate(list(chunks())).reshape(values.shape), values)
        assert scale == (np.float32(table[some][0]) * np.float32(extra) if some.any() else scale)
        return
    of_rows, of_columns, chunks = several
    assert of_rows.dtype == np.float32 and of_rows.shape == (rows,)
    found = np.concatenate(list(chunks()))
    assert np.array_equal(found.reshape(values.shape), values)
    product = found * of_rows[:, None] * (1 if of_columns is None else of_columns)
    expected = values * (table.astype(np.float32) * np.float32(extra))[:, :, None]
    assert np.array_equal(product, expected.reshape(product.shape))
    without = of_rows[~some.any(1)] if of_columns is None else of_columns[~np.repeat(some.any(0), block_of(kind))]
    assert (without == (np.float32(extra) if of_columns is None else 1)).all()  # where there are only zeros, nothing


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_scale_that_we_write_is_1(kind: TensorType) -> None:
    values = np.ones((4, 2 * block_of(kind)), np.int8)
    if kind is not TensorType.I2_S:  # whose scale comes after the weights
        source = PackedTensor(kind, (4, values.shape[1]), LAYOUTS[kind].pack_rows(values), "m.gguf", "t", 0.75)
        assert source.read()[0] == 0.75 and source.several() is None
        assert [part[1].tolist() for part in source.in_blocks(block_of(kind))] == [[[1, 1]] * len(part) for part in source._chunks()]


@pytest.mark.parametrize("kind", PREFIXES)
def test_scales_that_rows_have(kind: TensorType) -> None:
    """ik_llama.cpp's types. Rows of zeros have the scale 0, and whatever codes."""
    values, scales = np.random.default_rng(0).integers(-1, 2, (8, 192)).astype(np.int8), np.array([1, 1, 0.5, 2, 1, 0, 1, 1])
    source = PackedTensor(kind, (8, 192), LAYOUTS[kind].pack_rows(values, scales), "m.gguf", "t", 0.5)
    values[5] = 0
    several = source.several(strict=True)
    assert several is not None and several[0].tolist() == [0.5, 0.5, 0.25, 1, 0.5, 0.5, 0.5, 0.5] and several[1] is None
    assert np.array_equal(np.concatenate(list(several[2]())), values)
    parts = list(source.in_blocks(192))
    assert np.array_equal(np.concatenate([part[0] for part in parts]), values)
    assert np.concatenate([part[1] for part in parts]).tolist() == scales[:, None].tolist()
    assert not source.needs_groups()
    with pytest.raises(UnsupportedError, match=r"rows with 3 different scales, 0\.5 to 2;"):
        source.read()
    one = PackedTensor(kind, (8, 192), LAYOUTS[kind].pack_rows(values, np.where(scales, 3, 0)), "m.gguf", "t", 0.5)
    scale, chunks = one.read(strict=True)
    assert scale == 1.5 and np.array_equal(np.concatenate(list(chunks())), values) and one.several() is None


@pytest.mark.parametrize("kind", KINDS)
def test_twos_need_groups_where_they_are_weights(kind: TensorType) -> None:
    values = np.ones((2, 2, block_of(kind)), np.int8)
    assert not packed(kind, values, np.ones((2, 2))).needs_groups()
    if kind in (*WITH_TWOS, TensorType.TQ2_0):  # for TQ2_0 the code 3 is damage
        values[1, 1, 7] = 2
        assert packed(kind, values, np.ones((2, 2))).needs_groups() == (kind in WITH_TWOS)


@pytest.mark.parametrize("kind", TWOS)
def test_codes_of_damage_run_as_two_where_nobody_is_strict(kind: TensorType) -> None:
    values = np.ones((4, 128), np.int8)
    values[2, 70] = 2
    source = PackedTensor(kind, (4, 128), LAYOUTS[kind].pack_rows(values), "m.gguf", "t")
    assert np.array_equal(np.concatenate(list(source.read()[1]())), values)
    for chunks in (source.read(strict=True)[1], lambda: source.in_blocks(64)):
        with pytest.raises(BadFileError, match="a 2-bit code is 3"):
            list(chunks())
    if kind not in PREFIXES:  # groups have scales of blocks
        with pytest.raises(BadFileError, match="a 2-bit code is 3"):
            list(source.in_groups(64, 1))


def test_signs_that_are_exact() -> None:
    scale = np.float32(0.3)
    values = np.array([[1, 0, -1], [0, 1, 1]], np.int8)
    found = exact_signs(values * scale, scale)
    assert found is not None and found.dtype == np.int8 and np.array_equal(found, values)
    for wrong in (np.nextafter(scale, np.float32(1)), np.float32(np.nan), np.float32(1)):
        chunk = values * scale
        chunk[1, 2] = wrong
        assert exact_signs(chunk, scale) is None


@pytest.mark.parametrize("kind", KINDS)
def test_scales_of_neither(kind: TensorType) -> None:
    values = np.ones((2, 2, block_of(kind)), np.int8)
    source = packed(kind, values, np.array([[1, 2], [2, 1]]))
    assert source.needs_groups()
    with pytest.raises(UnsupportedError, match="different scales"):
        source.read()


@pytest.mark.parametrize("kind", KINDS)
def test_scales_that_are_none(kind: TensorType) -> None:
    """Too small or too large with what the whole tensor is multiplied by, at either end; not finite; negative."""
    values, table = np.ones((2, 1, block_of(kind)), np.int8), np.array([[1.0], [2.0]])
    tiny, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    assert packed(kind, values, table, tiny).several() is not None
    assert packed(kind, values, table, most / 2).several() is not None
    for extra in (tiny / 2, most / 1.9):
        with pytest.raises(BadFileError, match="of rows, expected positive numbers"):
            packed(kind, values, table, extra).several()
    for wrong, what in ((np.inf, "not finite"), (np.nan, "not finite"), (-1.0, "negative")):
        with pytest.raises(BadFileError, match=what):
            packed(kind, values, np.array([[1.0], [wrong]])).block_scales()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(**DRAWN, size=st.sampled_from([32, 64, 128, 256, 512]))
def test_blocks_of_any_size(kind: TensorType, rows: int, blocks: int, seed: int, size: int) -> None:
    values, rng = drawn(kind, rows, blocks, seed)
    table, own, cols = two_scales(rng, rows * blocks).reshape(rows, blocks), block_of(kind), blocks * block_of(kind)
    if cols % size:
        return
    flat = values.reshape(rows, cols)
    each = np.repeat(table, own, axis=1)
    weighed = np.where(flat != 0, each, np.float16(0)).reshape(rows, -1, size)
    largest = weighed.max(2)
    fits = ((weighed == largest[:, :, None]) | (weighed == 0)).all()
    source = packed(kind, values, table)
    assert source.shares(size) == (
        size < own if size % own else (each.reshape(rows, -1, size) == each.reshape(rows, -1, size)[:, :, :1]).all()
    )
    if not fits:
        with pytest.raises(UnsupportedError, match=f"in each {size} neighbours"):
            list(source.in_blocks(size))
        return
    parts = list(source.in_blocks(size))
    assert np.array_equal(np.concatenate([part[0] for part in parts]), flat)
    scales = np.concatenate([part[1] for part in parts])
    assert scales.dtype == np.float16 and np.array_equal(scales, largest)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[1, 1], [2, 2]], ([1, 2], None)),
        ([[1, 0], [0, 2]], ([1, 2], None)),
        ([[0, 0], [2, 2]], ([1, 2], None)),
        ([[1, 2], [1, 2]], ([1, 1], [1, 1, 2, 2])),
        ([[1, 0], [1, 2]], ([1, 1], [1, 1, 2, 2])),
        ([[0, 2, 0], [1, 2, 0]], ([1, 1], [1, 1, 2, 2, 1, 1])),
        ([[1, 2], [2, 1]], None),
        ([[1, 2], [2, 2]], None),
    ],
)
def test_by_row_or_by_column(table: list[list[float]], expected: Any) -> None:
    """Zeros stand for blocks of zeros; what has none but those gets 1."""
    scales: Scales = np.array(table, np.float16)
    found = rows_or_columns(scales, 2)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found[0].tolist() == expected[0] and found[0].dtype == np.float32
        assert (None if found[1] is None else found[1].tolist()) == expected[1]


def test_some_rows_are_spread_over_all() -> None:
    """As many as asked for, and four at least; a tensor with no more rows is itself."""
    kind, rows = TensorType.TQ2_0, 100
    values = np.ones((rows, 1, 256), np.int8)
    source = packed(kind, values, np.arange(1, rows + 1)[:, None])
    each = len(source.raw) // rows
    for most, count in ((1, 4), (each * 10, 10), (each * 10 + each - 1, 10), (each * 99, 99)):
        some = source.some_rows(most)
        scales = some.block_scales()
        assert some.shape == (count, 256) and len(some.raw) == count * each and scales is not None
        assert scales.reshape(-1).tolist() == (1 + np.linspace(0, rows - 1, count).astype(int)).tolist()
    assert source.some_rows(each * 100) is source
    assert packed(kind, values[:4], np.ones((4, 1))).some_rows(1).shape == (4, 256)
