"""Kernels of rows with a scale a group against their twin: the same floats to the bit, and not a byte written outside."""

import numpy as np
import pytest
from bitnet_kernels import arrays, group_rows, grouped
from bitnet_kernels.group_rows import LINE, Groups
from bitnet_kernels.naive import grouped as naive
from numpy.typing import NDArray

from .group_cases import Inputs, matrix, own_order, packed, run_matmul

ALL = [Groups(w, a) for w in group_rows.GROUPS for a in (0, 64, 128, 256)]
SIZES = [(1, 256, 1), (15, 256, 3), (16, 768, 1), (131, 768, 2), (200, 1280, 1), (64, 1280, 8), (40, 512, 13), (131, 1792, 26)]
Floats = NDArray[np.float32]


def inputs(rng: np.random.Generator, tokens: int, cols: int) -> Floats:
    """Of sizes that differ between groups."""
    return (rng.standard_normal((tokens, cols)) * np.exp(2 * rng.standard_normal((tokens, cols // 64)).repeat(64, axis=1))).astype(
        np.float32
    )


@pytest.mark.parametrize("groups", ALL, ids=str)
def test_digits_are_the_twin_s(groups: Groups) -> None:
    rng = np.random.default_rng(3)
    for cols in (256, 768, 1280):
        x = inputs(rng, 3, cols)
        x[1] = 0
        found, unit = Inputs(x, groups, 2), group_rows.unit_of(groups)
        for (codes, steps), digit in zip(naive.quantise(x, groups, 2), found.digits, strict=True):
            np.testing.assert_array_equal(own_order(digit.codes[:3, :cols]), codes)
            np.testing.assert_array_equal(digit.steps[:3, : cols // unit], steps)
            np.testing.assert_array_equal(-digit.minus[:3, : cols // unit], codes.reshape(3, -1, unit).sum(-1, dtype=np.int32))


def test_what_is_not_a_number_stays_so() -> None:
    """NaN by every path: where inputs are infinite, no integer of theirs takes its place."""
    x = np.ones((9, 256), np.float32)
    x[::2, 7], x[1::2, 200] = np.nan, np.inf
    codes, scales = matrix(np.random.default_rng(4), 16, 256, 128)
    for groups in (Groups(128), Groups(128, 64)):
        for tokens, many in ((1, False), (2, False), (9, False), (9, True)):
            given = Inputs(x[9 - tokens :], groups, 1)
            assert np.isnan(run_matmul(packed(codes, scales, LINE), LINE, 16, given, 1.0, many=many)).all()


@pytest.mark.parametrize("groups", ALL, ids=str)
def test_every_path_gives_the_floats_of_the_twin(groups: Groups) -> None:
    """Packed panels and tiles; rows, threads' shares and tokens that fill no panel, tile or register; tiny and large scales, codes 3."""
    rng = np.random.default_rng(5)
    for rows, cols, tokens in SIZES:
        codes, scales = matrix(rng, rows, cols, groups.weights)
        whole, x = packed(codes, scales, LINE), inputs(rng, tokens, cols)
        expected = naive.matmul(whole, LINE, rows, *naive.quantise(x, groups)[0], groups) * np.float32(0.3)
        for many in (False, True):
            found = run_matmul(whole, LINE, rows, Inputs(x, groups, 1), 0.3, many=many)
            np.testing.assert_array_equal(found, expected, err_msg=f"{rows} x {cols}, {tokens} tokens, tiles: {many}")


def test_extreme_codes_do_not_overflow() -> None:
    """All codes 3 with all activations at ±127: int16 sums of a unit reach 97,536 / 4 a lane, below 32,768."""
    for groups in (Groups(64), Groups(256, 0)):
        codes, scales = np.full((33, 512), 3, np.uint8), np.ones((33, 512 // groups.weights), np.float16)
        whole = packed(codes, scales, LINE)
        for sign in (1, -1):
            x = np.full((30, 512), 2.0 * sign, np.float32)
            for many in (False, True):
                for tokens in (1, 9, 30):
                    found = run_matmul(whole, LINE, 33, Inputs(x[:tokens], groups, 1), 1.0, many=many)
                    expected = naive.matmul(whole, LINE, 33, *naive.quantise(x[:tokens], groups)[0], groups)
                    np.testing.assert_array_equal(found, expected)
                    np.testing.assert_allclose(found, sign * 2048, rtol=1e-6)


def test_products_are_added_where_they_should_be() -> None:
    rng = np.random.default_rng(6)
    codes, scales = matrix(rng, 70, 256, 128)
    whole, before = packed(codes, scales, LINE), rng.standard_normal((26, 70)).astype(np.float32)
    for tokens in (1, 5, 26):
        given = Inputs(inputs(rng, tokens, 256), Groups(128), 1)
        for many in (False, True):
            plain = run_matmul(whole, LINE, 70, given, 1.0, many=many)
            np.testing.assert_array_equal(
                run_matmul(whole, LINE, 70, given, 1.0, many=many, before=before[:tokens]), before[:tokens] + plain
            )


def test_tile_room_is_enough() -> None:
    """A block of K has eight units at most, by AMX four, whose scales GroupScratch.scales holds."""
    assert grouped.BLOCK // min(group_rows.GROUPS) == (4 if grouped.MATRIX else 8)
    assert grouped.TILE_PANELS * group_rows.ROWS == arrays.BLOCK_ROWS
