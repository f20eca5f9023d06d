"""Top-k and the Hadamard transform against their twins, bit for bit, and the twins against the definitions."""

import numpy as np
import pytest
from bitnet_kernels.inputs import hadamard, keep_largest, own_row
from bitnet_kernels.naive import inputs as naive
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from numpy.typing import NDArray

Floats = NDArray[np.float32]
COLS = (1, 2, 3, 16, 24, 31, 32, 96, 127, 160, 640, 676, 2560, 6912)


def own(x: Floats) -> Floats:
    """With zeros up to a multiple of 16; what is behind stays."""
    length = -(-len(x) // 16) * 16
    row = np.full(length + 3, 99, np.float32)
    own_row(x, len(x), row)
    assert np.array_equal(row[: len(x)], x, equal_nan=True)
    assert not row[len(x) : length].any()
    assert (row[length:] == 99).all()
    return row


def kept(x: Floats, count: int) -> Floats:
    """By the kernel, which must do what the twin does."""
    row = own(x)
    keep_largest(row, len(x), count)
    expected = naive.keep_largest(x[None], count)[0]
    assert np.array_equal(row, own(expected))
    return expected


@pytest.mark.parametrize("cols", COLS)
def test_the_largest_are_kept(cols: int) -> None:
    x = np.random.default_rng(cols).standard_normal(cols).astype(np.float32)
    for count in {1, max(1, cols // 2), cols}:
        result = kept(x, count)
        chosen = np.argsort(-np.abs(x))[:count]
        expected = np.zeros(cols, np.float32)
        expected[chosen] = x[chosen]
        assert np.array_equal(result, expected)


def test_ties_are_all_kept() -> None:
    x = np.array([1, -2, 3, -3, 2, 0, 2, -0.0, 1], np.float32)
    assert kept(x, 3).tolist() == [0, -2, 3, -3, 2, 0, 2, 0, 0]
    assert np.count_nonzero(kept(x, 2)) == 2
    assert np.array_equal(kept(x, 9), x)
    assert np.array_equal(kept(np.full(100, -0.25, np.float32), 1), np.full(100, -0.25, np.float32))
    assert not kept(np.zeros(33, np.float32), 7).any()


def test_smallest_and_largest_floats_and_what_is_no_number() -> None:
    tiny, huge = np.float32(1e-45), np.float32(3e38)
    assert kept(np.array([tiny, 0, huge, -np.inf], np.float32), 2).tolist() == [0, 0, huge, -np.inf]
    assert kept(np.array([tiny, 0, 0, 0], np.float32), 1)[0] == tiny
    x = np.ones(40, np.float32)
    x[3] = np.nan
    row = own(x)
    keep_largest(row, 40, 1)
    assert np.isnan(row[3])
    assert np.isnan(naive.keep_largest(x[None], 1)[0, 3])


@given(any_array(np.float32, st.integers(1, 70), elements=st.floats(-(2.0**127), 2.0**127, width=32)), st.integers(1, 70))
def test_any_finite_values(x: Floats, count: int) -> None:
    count = min(count, len(x))
    result = kept(x, count)
    assert np.count_nonzero(result) >= min(count, np.count_nonzero(x))
    dropped = np.abs(x[result != x])
    assert len(dropped) <= len(x) - count
    assert not len(dropped) or dropped.max() < np.sort(np.abs(x))[-count]


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_hadamard(cols: int, size: float) -> None:
    """The same bits as the twin, and the product with the matrix of the definition, H(2n) = [[H, H], [H, -H]]."""
    x = (np.random.default_rng(cols).standard_normal(cols) * size).astype(np.float32)
    twin = naive.hadamard(x[None])[0]
    if cols % 16 == 0:  # others are refused (model/weights.py)
        row = own(x)
        hadamard(row, cols)
        assert np.array_equal(row.view(np.int32), own(twin).view(np.int32))
    n = cols & -cols
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    exact = (x.reshape(-1, n).astype(np.float64) @ matrix / np.sqrt(n)).reshape(-1)
    assert np.abs(twin - exact).max() <= 1e-6 * size * np.sqrt(n)


def test_many_tokens_by_the_twins() -> None:
    """A row each, as the kernels do them one after the other."""
    x = np.random.default_rng(3).standard_normal((5, 96)).astype(np.float32)
    for i, row in enumerate(x):
        assert np.array_equal(naive.hadamard(x)[i], naive.hadamard(row[None])[0])
        assert np.array_equal(naive.keep_largest(x, 48)[i], naive.keep_largest(row[None], 48)[0])
