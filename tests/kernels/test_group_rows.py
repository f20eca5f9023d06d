"""Rows with a scale a group: the layout holds what was laid out, and the twin is the formula, rounded as it says."""

from fractions import Fraction

import numpy as np
import pytest
from bitnet_kernels import group_rows
from bitnet_kernels.group_rows import Groups
from bitnet_kernels.naive import grouped

from .group_cases import matrix, packed


@pytest.mark.parametrize("group", group_rows.GROUPS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_codes_and_scales_come_back(group: int, rows: int) -> None:
    rng = np.random.default_rng(rows)
    for cols in (group, 3 * group, 1024):
        codes, scales = matrix(rng, rows, cols, group)
        whole = packed(codes, scales, 192)
        assert len(whole) == 192 + group_rows.matrix_bytes(rows, cols, group) + 61
        found = group_rows.read_back(whole, 192, rows, cols, group)
        np.testing.assert_array_equal(found[0], codes)
        np.testing.assert_array_equal(found[1], scales)


def test_a_word_is_a_file_s_four_bytes() -> None:
    """Q2_0: bits 2 (j mod 4) of byte j / 4."""
    codes = np.random.default_rng(0).integers(0, 4, (2, 64), np.uint8)
    data = group_rows.words_of(codes).view(np.uint8)
    for j in range(64):
        np.testing.assert_array_equal(data[:, j // 4] >> 2 * (j % 4) & 3, codes[:, j])


def test_large_matrices_cost_what_their_file_does() -> None:
    size = group_rows.matrix_bytes(4096, 4096, 128)
    assert size == 4096 * 4096 * 17 // 64  # 2.125 bits


def test_twin_rounds_a_multiply_add_once() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(-32512, 32513, 3000).astype(np.float32)
    b = np.exp(rng.uniform(-20, 2, 3000)).astype(np.float32)
    # Near ties: products that nearly cancel c, and c whose last bit is as large as the product.
    c = (-a * b * rng.choice([1, 0.5, 3, 2**20, 2**24, 2**25], 3000)).astype(np.float32)
    for x, y, z, found in zip(*(v.tolist() for v in (a, b, c, grouped.fused(a, b, c))), strict=True):
        exact, result = Fraction(x) * Fraction(y) + Fraction(z), np.float32(found)
        for other in (np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))):
            assert abs(Fraction(found) - exact) <= abs(Fraction(float(other)) - exact)


@pytest.mark.parametrize("groups", [Groups(w, a) for w in group_rows.GROUPS for a in (0, 64, 128, 256)], ids=str)
def test_twin_is_near_the_formula(groups: Groups) -> None:
    """Against float64: int8 activations err by half a step each; two digits by 1 / 254 of that, and float32 rounds each of its sums."""
    rng = np.random.default_rng(2)
    codes, scales = matrix(rng, 40, 768, groups.weights)
    x = rng.standard_normal((5, 768)).astype(np.float32)
    weights = (codes.astype(np.float64) - 1) * np.repeat(scales.astype(np.float64), groups.weights, axis=1)
    whole, exact = packed(codes, scales, 0), x.astype(np.float64) @ weights.T
    found, bound = np.zeros((5, 40), np.float32), None
    for quantised, steps in grouped.quantise(x, groups, digits=2):
        found += grouped.matmul(whole, 0, 40, quantised, steps, groups)
        bound = np.repeat(steps / 2, group_rows.unit_of(groups), axis=1).astype(np.float64) @ np.abs(weights).T
        assert (np.abs(found - exact) <= bound * 1.001 + np.abs(x) @ np.abs(weights).T * 1e-6).all()
