"""What ternary weights and int8 activations can err by, for any numbers: the bounds that follow from the formulas, in float64."""

import math

import numpy as np
from bitnet_kernels.naive.quantise import quantise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from bitnet_cli.ternary.absmean import SMALLEST_SCALE, mean_abs, round_to_ternary, ternarise

FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
MATRICES = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=FINITE)
ROUNDING = 1e-6  # float32 has 24 bits, a quotient and a product round once each


@given(MATRICES)
def test_ternary_weights_are_the_nearest_ones(weights: NDArray[np.float32]) -> None:
    """arXiv 2402.17764, equations 1 to 3: within half a scale up to 1.5 scales, and the largest value beyond."""
    values, scale = ternarise(weights)
    exact = max(math.fsum(np.abs(weights.astype(np.float64)).reshape(-1)) / weights.size, SMALLEST_SCALE)
    assert abs(float(scale) - exact) <= 1e-7 * exact
    assert set(np.unique(values)) <= {-1, 0, 1}
    error = np.abs(weights.astype(np.float64) - values * float(scale))
    size = np.abs(weights.astype(np.float64))
    within = size <= 1.5 * float(scale)
    assert (error[within] <= (0.5 + ROUNDING) * float(scale)).all()
    assert (values[~within] == np.sign(weights[~within])).all()
    # Relative to its norm a matrix cannot lose more than all of it, and the sum of what is lost is bounded by what there was.
    assert error.sum() <= size.sum() * (1 + ROUNDING) + weights.size * SMALLEST_SCALE


def test_rows_are_added_exactly() -> None:
    """Four rows with a mean just above the middle of two float32; added in float64 one by one, the ones would be lost."""
    rows = np.array([[2.0**53, 0], [2.0**29, 0], [1, 0], [1, 0]], np.float32)
    assert mean_abs([rows]) == mean_abs([rows[:1], rows[1:]]) == np.nextafter(np.float32(2.0**50), np.float32(np.inf))


@given(MATRICES, st.integers(-20, 20), st.data())
def test_the_rule_knows_no_sign_no_unit_and_no_cut(weights: NDArray[np.float32], power: int, data: st.DataObject) -> None:
    """Negated weights have negated values; a power of two moves the scale only; chunks of rows change no bit."""
    values, scale = ternarise(weights)
    negated, same = ternarise(-weights)
    assert np.array_equal(negated, -values) and same == scale
    cuts = sorted(data.draw(st.lists(st.integers(0, len(weights)), max_size=4)))
    chunks = [chunk for chunk in np.split(weights, cuts) if len(chunk)]
    assert mean_abs(chunks) == scale
    assert np.array_equal(np.concatenate([round_to_ternary(chunk, scale) for chunk in chunks]), values)
    factor = np.float32(2.0**power)
    if scale > SMALLEST_SCALE * 2**21:  # neither the floor nor denormal numbers are met
        moved, other = ternarise(weights * factor)
        assert np.array_equal(moved, values) and other == scale * factor


@settings(max_examples=200)
@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_int8_activations_err_by_half_a_step(x: NDArray[np.float32]) -> None:
    """A step is max|x| / 127, and the largest value has the code 127 or -127."""
    codes, factors = quantise(x)
    exact = x.astype(np.float64)
    largest = np.maximum(np.abs(exact).max(-1, keepdims=True), 1e-5)
    assert (np.abs(exact - codes / factors[:, None].astype(np.float64)) <= (0.5 + 127 * ROUNDING) * largest / 127).all()
    assert (np.abs(codes.astype(int)) <= 127).all()
    reached = largest[:, 0] > 1e-5
    assert (np.abs(codes.astype(int)).max(-1)[reached] == 127).all()
