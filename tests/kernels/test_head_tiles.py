"""Sums of the head's whole codes by AMX are the integers of their definition. On a CPU without it there is nothing to test."""

import numpy as np
import pytest
from bitnet_kernels import arrays, head_planes, head_sums, isa
from bitnet_kernels.head_search import whole_codes

COLS = 320


@pytest.mark.skipif(isa.chosen() != "amx", reason="no AMX here, or another set was asked for")
@pytest.mark.parametrize(("tokens", "both"), [(9, False), (16, False), (5, True), (16, True)])
@pytest.mark.parametrize("rows", [1, 15, 63, 64, 65, 200])
def test_every_logit_is_the_sum_of_whole_codes(rows: int, tokens: int, both: bool) -> None:
    """Rows that fill no block of 64, vectors that fill no tile; what lies past them is no part of anything."""
    rng = np.random.default_rng(rows + tokens)
    matrix = rng.standard_normal((rows, COLS)).astype(np.float32)
    length = arrays.padded(COLS)
    planes = arrays.new_planes(rows, COLS, head_planes.WIDTH, np.zeros(0, np.int64))
    codes = np.zeros(length, np.uint8)
    data = matrix.view(np.uint8).reshape(-1)
    head_planes.build(data, 0, np.int64(arrays.HEAD_F32), COLS, planes, np.zeros(COLS, np.float32), codes, 0, rows)
    scratch = arrays.new_scratch(arrays.Sizes(1, COLS, 1, 1, COLS, COLS, rows, 0, 1e-5, arrays.HEAD_F32), arrays.TOGETHER, 16, 2)
    scratch.digits[:] = rng.integers(-127, 128, scratch.digits.shape)
    scratch.terms[:] = rng.uniform(0.5, 2, scratch.terms.shape)
    for array in (scratch.nearly, scratch.plane_sums, scratch.turned, scratch.head_codes):
        array.fill(99)
    vectors = 2 * tokens if both else tokens
    assert whole_codes(vectors)
    for thread, (first, last) in enumerate(((0, rows // 2), (rows // 2, rows))):
        if last > first:
            head_sums.bits_of_all(planes, length, scratch, tokens, both, thread, first, last)
    whole = codes_in_order(planes, rows, length)
    sums = whole.astype(np.int64) @ scratch.digits[:vectors, :length].astype(np.int64).T
    for t in range(tokens):
        coarse, fine, total, fine_total = scratch.terms[t, :4]
        found = sums[:, t] * (coarse * 0.25) + (sums[:, tokens + t] * (fine * 0.25) if both else 0.0)
        expected = planes.scales[:rows] * (found - 127.5 * (total + fine_total if both else total))
        np.testing.assert_array_equal(scratch.nearly[t, :rows], expected.astype(np.float32))
    assert (scratch.nearly[tokens:] == 99).all()


def codes_in_order(planes: arrays.Planes, rows: int, length: int) -> np.ndarray:
    """(rows, length) codes 0 to 255, in the order of activations, from planes as head_planes.py describes them."""
    six, low = planes.six[: rows * length // 4 * 3].reshape(rows, -1, 3, 64), planes.low[: rows * length // 4].reshape(rows, -1, 1, 64)
    shifts = np.array([6, 4, 2, 0], np.uint8)[:, None]
    two, last = six[:, :, :1] >> shifts & 3, low >> shifts & 3
    four = np.stack([six[:, :, 1] & 15, six[:, :, 1] >> 4, six[:, :, 2] & 15, six[:, :, 2] >> 4], axis=2)
    return (four << 4 | two << 2 | last).reshape(rows, length)
