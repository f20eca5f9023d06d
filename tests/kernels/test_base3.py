"""Base-3 rows against their twin and against plain int64: the same integers at odd sizes, and not a byte written outside."""

import numpy as np
import pytest
from bitnet_kernels import base3
from bitnet_kernels.naive import base3 as naive
from bitnet_kernels.operands import Matrix
from numpy.typing import NDArray

from .cases import COLS, ROWS, activations, extremes, kernel_order, packed, product
from .cases import ternary as random_ternary

WIDTH = base3.WIDTH
SCALE = np.float32(0.013671875)  # exact in few bits
AT = 37  # bytes before the matrix


def built(weights: NDArray[np.int8], first: int = 0, last: int | None = None) -> NDArray[np.uint8]:
    """Rows first .. last - 1 of I2_S -> base-3 rows at byte AT of a larger array; what lies around them stays 0xFF."""
    rows, cols = weights.shape
    last, size = rows if last is None else last, base3.row_bytes(cols)
    out, tile = np.full(AT + rows * size + 61, 0xFF, np.uint8), np.full(5 * size + 64, 99, np.uint8)
    largest = base3.build_base3(packed(weights, 5), 5, cols, out, AT, tile, first, last)
    assert largest == (weights[first:last].max() + 1 if last > first else 0)
    assert np.all(tile[5 * size :] == 99)
    assert np.all(out[: AT + first * size] == 0xFF)
    assert np.all(out[AT + last * size :] == 0xFF)
    return out


def products(weights: NDArray[np.int8], codes: NDArray[np.int8], first: int = 0, last: int | None = None) -> NDArray[np.float32]:
    """(rows + 2,) exact sums as float32 (they are below 2^24), NaN outside [first, last). What lies after the activations is 99."""
    rows, cols = weights.shape
    out = np.full(rows + 2, np.nan, np.float32)
    ordered, total = kernel_order(codes[None], WIDTH, more_cols=4 * WIDTH)[0], np.int32(codes.sum(dtype=np.int64))
    matrix, one = Matrix(built(weights), AT, cols, np.float32(1)), np.float32(1)
    base3.base3_matvec(matrix, ordered, total, one, out, False, first, rows if last is None else last)
    return out


@pytest.mark.parametrize("cols", [*COLS, 1536, 2048, 4096])
def test_the_integers_of_the_definition(cols: int) -> None:
    rng = np.random.default_rng(cols)
    for rows in ROWS:
        weights, codes = random_ternary(rng, rows, cols), activations(rng, 1, cols)[0]
        assert np.array_equal(naive.unpack(built(weights), AT, rows, cols, WIDTH), weights)
        assert np.array_equal(products(weights, codes)[:rows], product(weights, codes[None])[0])


@pytest.mark.parametrize("cols", [128, 384, 5504, 16384])
def test_extreme_values_do_not_overflow(cols: int) -> None:
    for name, weights, codes in extremes(cols):
        assert np.array_equal(products(weights, codes[0])[: len(weights)], product(weights, codes)[0]), name


def test_every_byte_of_five_weights() -> None:
    """All 243 of them, in every place of a register, and no byte stands for two."""
    fives = np.indices((3,) * 5).reshape(5, -1).T.astype(np.int8) - 1
    group = 5 * 4 * WIDTH  # five whole groups of four registers: every place belongs to one byte
    weights = np.tile(fives[:, None, :], (1, group // 5, 1)).reshape(243, group)
    ordered = np.repeat(fives, 4 * WIDTH, axis=1)  # code k in registers 4 k .. 4 k + 3
    for rows in (weights, ordered):
        assert np.array_equal(naive.unpack(built(rows), AT, 243, group, WIDTH), rows)
    assert base3.row_bytes(group) == 4 * WIDTH
    codes = activations(np.random.default_rng(0), 1, group)[0]
    assert np.array_equal(products(weights, codes)[:243], product(weights, codes[None])[0])
    assert np.array_equal(products(ordered, codes)[:243], product(ordered, codes[None])[0])


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (1, 2), (2, 7), (3, 11), (4, 8), (12, 13), (6, 13), (13, 13)])
def test_only_the_rows_asked_for_are_written(first: int, last: int) -> None:
    rng = np.random.default_rng(first * 100 + last)
    weights, codes = random_ternary(rng, 13, 384), activations(rng, 1, 384)[0]
    built(weights, first, last)
    out = products(weights, codes, first, last)
    assert np.array_equal(out[first:last], product(weights, codes[None])[0, first:last])
    assert np.isnan(out[:first]).all()
    assert np.isnan(out[last:]).all()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("rows", "cols", "first", "last"), [(1, 128, 0, 1), (7, 640, 0, 7), (13, 384, 2, 11), (130, 2560, 1, 130)])
def test_scaled_and_accumulated(rows: int, cols: int, first: int, last: int, accumulate: bool) -> None:
    rng = np.random.default_rng(rows)
    weights, codes = random_ternary(rng, rows, cols), activations(rng, 1, cols)[0]
    out = rng.standard_normal(rows + 2).astype(np.float32)
    expected = out.copy()
    y = product(weights, codes[None])[0, first:last].astype(np.float32) * SCALE
    expected[first:last] = expected[first:last] + y if accumulate else y
    ordered, total = kernel_order(codes[None], WIDTH, more_cols=4 * WIDTH)[0], np.int32(codes.sum(dtype=np.int64))
    matrix = Matrix(built(weights), AT, cols, SCALE)
    base3.base3_matvec(matrix, ordered, total, np.float32(1), out, accumulate, first, last)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("chosen", [[], [4], [0, 1, 2], [1, 5, 6, 11], [0, 2, 3, 9, 12], list(range(13))])
@pytest.mark.parametrize("cols", [128, 640, 5504])
def test_chosen_rows(cols: int, chosen: list[int]) -> None:
    rng = np.random.default_rng(cols)
    weights, codes = random_ternary(rng, 13, cols), activations(rng, 1, cols)[0]
    out = rng.standard_normal(15).astype(np.float32)
    expected = out.copy()
    expected[chosen] = product(weights, codes[None])[0, chosen].astype(np.float32) * SCALE
    ordered, total = kernel_order(codes[None], WIDTH, more_cols=4 * WIDTH)[0], np.int32(codes.sum(dtype=np.int64))
    matrix, rows = Matrix(built(weights), AT, cols, SCALE), np.array([*chosen, 99], np.int64)
    base3.base3_matvec_chosen(matrix, ordered, total, np.float32(1), out, rows, len(chosen))
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("cols", [128, 640, 2560])
def test_a_code_that_is_no_weight_is_reported(cols: int) -> None:
    """Wherever in a row it stands."""
    for col in (0, 31, 64, cols - 1):
        weights = np.zeros((3, cols), np.int8)
        weights[1, col] = 2
        size = base3.row_bytes(cols)
        out, tile = np.zeros(3 * size, np.uint8), np.zeros(5 * size, np.uint8)
        assert base3.build_base3(packed(weights, 0), 0, cols, out, 0, tile, 0, 3) == 3
        assert base3.build_base3(packed(weights, 0), 0, cols, out, 0, tile, 0, 1) == 1
