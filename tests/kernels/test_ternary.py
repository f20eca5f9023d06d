"""Ternary kernels against their twin and against plain int64: the same integers at odd sizes, and not a byte written outside."""

import numpy as np
import pytest
from bitnet_kernels import arrays, ternary
from bitnet_kernels.naive import ternary as naive
from bitnet_kernels.operands import Destination, Inputs, Matrix
from numpy.typing import NDArray

from .cases import CANARY, COLS, ROWS, TOKENS, activations, extremes, kernel_order, packed, product, tile_bytes
from .cases import ternary as random_ternary

WIDTH = ternary.WIDTH
OFFSETS = (0, 37, 4097)  # bytes: a matrix may begin anywhere in the file
SCALE = np.float32(0.013671875)  # exact in few bits


def code_sums(weights: NDArray[np.int8], codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """What kernels sum: weight codes 0, 1, 2 instead of -1, 0, 1."""
    return product(weights, codes) + codes.sum(-1, dtype=np.int64)[:, None]


def run_matvec(weights: NDArray[np.int8], codes: NDArray[np.int8], offset: int, first: int, last: int) -> NDArray[np.int32]:
    """(rows,) int32 with canaries outside [first, last). The kernel's float32 holds these sums exactly: they are below 2^24."""
    rows, cols = weights.shape
    out, one, whole = np.full(rows + 2, CANARY, np.float32), np.float32(1), packed(weights, offset)
    matrix, ordered = Matrix(whole, offset, cols, one), kernel_order(codes[None], WIDTH)[0]
    ternary.matvec_scaled(matrix, ordered, np.int32(0), one, out, False, first, last)
    assert np.all(out[:first] == CANARY)
    assert np.all(out[last:] == CANARY)
    return out[:rows].astype(np.int32)


def matmul_scratch(tokens: int, cols: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The tile and the sums, each with 64 bytes more, all of it filled: what is not written first must not count."""
    sums = (-(-tokens // 16) * 16 + 1) * arrays.BLOCK_ROWS
    return np.full(tile_bytes(tokens, cols) + 64, 0xAB, np.uint8), np.full(sums + 16, CANARY, np.int32)


def run_matmul(weights: NDArray[np.int8], codes: NDArray[np.int8], offset: int, first: int, last: int) -> NDArray[np.int32]:
    """(tokens, rows) int32 with canaries outside [first, last); also asserts that the scratch is not overrun."""
    (rows, cols), tokens = weights.shape, len(codes)
    out, zeros, ones = np.full((tokens + 2, rows + 2), CANARY, np.float32), np.zeros(tokens, np.int32), np.ones(tokens, np.float32)
    ordered, (tile, sums) = kernel_order(codes, WIDTH, more_rows=-tokens % 16, more_cols=256), matmul_scratch(tokens, cols)
    whole = packed(weights, offset)
    x, to = Inputs(ordered, zeros, ones, tokens), Destination(out, 0, False)
    ternary.matmul_scaled(Matrix(whole, offset, cols, np.float32(1)), x, to, tile, sums, first, last)
    assert np.all(tile[-64:] == 0xAB)
    assert np.all(sums[-16:] == CANARY)
    assert np.all(out[tokens:] == CANARY)
    assert np.all(out[:, :first] == CANARY)
    assert np.all(out[:, last:] == CANARY)
    return out[:tokens, :rows].astype(np.int32)


@pytest.mark.parametrize("cols", COLS)
def test_matvec_and_matmul_give_the_integers_of_the_definition(cols: int) -> None:
    rng = np.random.default_rng(cols)
    for number, rows in enumerate(ROWS):
        weights, codes = random_ternary(rng, rows, cols), activations(rng, max(TOKENS), cols)
        offset = OFFSETS[number % len(OFFSETS)]
        expected = code_sums(weights, codes)
        whole = packed(weights, offset)
        assert np.array_equal(naive.unpack(whole, offset, rows, cols), weights)
        assert np.array_equal(naive.matmul(weights, codes), product(weights, codes))
        assert np.array_equal(run_matvec(weights, codes[0], offset, 0, rows), expected[0])
        for tokens in TOKENS:
            assert np.array_equal(run_matmul(weights, codes[:tokens], offset, 0, rows), expected[:tokens]), (rows, tokens)


@pytest.mark.parametrize("cols", [128, 384, 5504, 16384])
def test_extreme_values_do_not_overflow(cols: int) -> None:
    for name, weights, codes in extremes(cols):
        expected, many = code_sums(weights, codes), np.tile(codes, (4, 1))  # 5 tokens and 20
        assert np.array_equal(run_matvec(weights, codes[0], 0, 0, 9), expected[0]), name
        assert np.array_equal(run_matmul(weights, codes, 0, 0, 9), expected), name
        assert np.array_equal(run_matmul(weights, many, 0, 0, 9), np.tile(expected, (4, 1))), name


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (1, 2), (2, 7), (3, 11), (4, 8), (12, 13), (6, 13), (13, 13)])
def test_only_the_rows_asked_for_are_written(first: int, last: int) -> None:
    rng = np.random.default_rng(first * 100 + last)
    weights, codes = random_ternary(rng, 13, 384), activations(rng, 6, 384)
    expected = code_sums(weights, codes)
    assert np.array_equal(run_matvec(weights, codes[0], 5, first, last)[first:last], expected[0, first:last])
    assert np.array_equal(run_matmul(weights, codes, 5, first, last)[:, first:last], expected[:, first:last])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("rows", "cols", "first", "last"), [(1, 128, 0, 1), (7, 640, 0, 7), (13, 384, 2, 11), (130, 2560, 1, 130)])
def test_matvec_scaled(rows: int, cols: int, first: int, last: int, accumulate: bool) -> None:
    rng = np.random.default_rng(rows)
    weights, codes = random_ternary(rng, rows, cols), activations(rng, 1, cols)[0]
    out = rng.standard_normal(rows + 2).astype(np.float32)
    expected = out.copy()
    y = product(weights, codes[None])[0, first:last].astype(np.float32) * SCALE
    expected[first:last] = expected[first:last] + y if accumulate else y
    total = np.int32(codes.sum(dtype=np.int64))
    matrix, ordered = Matrix(packed(weights, 37), 37, cols, SCALE), kernel_order(codes[None], WIDTH)[0]
    ternary.matvec_scaled(matrix, ordered, total, np.float32(1), out, accumulate, first, last)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("chosen", [[], [4], [0, 1, 2], [1, 5, 6, 11], [0, 2, 3, 9, 12], list(range(13))])
@pytest.mark.parametrize("cols", [128, 640, 5504])
def test_matvec_of_chosen_rows(cols: int, chosen: list[int]) -> None:
    rng = np.random.default_rng(cols)
    weights, codes = random_ternary(rng, 13, cols), activations(rng, 1, cols)[0]
    out = rng.standard_normal(15).astype(np.float32)
    expected = out.copy()
    expected[chosen] = product(weights, codes[None])[0, chosen].astype(np.float32) * SCALE
    total, rows = np.int32(codes.sum(dtype=np.int64)), np.array([*chosen, 99], np.int64)
    ordered = kernel_order(codes[None], WIDTH)[0]
    matrix = Matrix(packed(weights, 37), 37, cols, SCALE)
    ternary.matvec_chosen(matrix, ordered, total, np.float32(1), out, rows, len(chosen))
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("rows", "cols", "first", "last"), [(1, 128, 0, 1), (7, 640, 0, 7), (13, 384, 2, 11)])
def test_matmul_scaled(rows: int, cols: int, first: int, last: int, tokens: int, accumulate: bool) -> None:
    rng = np.random.default_rng(tokens)
    weights, codes = random_ternary(rng, rows, cols), activations(rng, tokens, cols)
    factors = rng.uniform(1, 50, tokens).astype(np.float32)
    place = 3
    out = rng.standard_normal((tokens + 1, place + rows + 2)).astype(np.float32)
    expected = out.copy()
    part = expected[:tokens, place + first : place + last]
    y = product(weights, codes)[:, first:last].astype(np.float32) * (SCALE / factors)[:, None]
    part[:] = part + y if accumulate else y
    ordered, totals = kernel_order(codes, WIDTH, more_rows=-tokens % 16), codes.sum(-1, dtype=np.int32)
    matrix, x = Matrix(packed(weights, 5), 5, cols, SCALE), Inputs(ordered, totals, factors, tokens)
    ternary.matmul_scaled(matrix, x, Destination(out, place, accumulate), *matmul_scratch(tokens, cols), first, last)
    assert np.array_equal(out, expected)


def test_weights_may_be_read_only() -> None:
    """As they are in a file that is memory-mapped."""
    rng = np.random.default_rng(1)
    weights, codes = random_ternary(rng, 6, 256), activations(rng, 1, 256)[0]
    whole = packed(weights, 64)
    whole.flags.writeable = False
    out, one = np.zeros(6, np.float32), np.float32(1)
    ternary.matvec_scaled(Matrix(whole, 64, 256, one), kernel_order(codes[None], WIDTH)[0], np.int32(0), one, out, False, 0, 6)
    assert np.array_equal(out, code_sums(weights, codes[None])[0])
