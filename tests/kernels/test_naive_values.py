"""Twins that change numbers, against their definitions in Python floats, number by number. No kernel is compiled here.

A twin is float32 where the kernel is: TINY is what a few of its roundings may do. Integers, and what they are multiplied by, are the same.
"""

import math
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.arrays import FP4, GELU, INT4, INT8, RELU2, SILU, Folds
from bitnet_kernels.naive import folds, glu, inputs, norm, quantise, recode, rope, softmax
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TINY = 2e-6


def floats(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_near(found: NDArray[Any], expected: Any) -> None:
    """The same shape, float32 or float64 as the twin has it, and near."""
    expected = np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TINY * np.abs(expected).max()


def test_rms_norm() -> None:
    x, weight, eps = floats(2, 3, 7), floats(7), 0.3  # large, so that it counts
    expected = np.zeros(x.shape)
    for i, j in np.ndindex(2, 3):
        root = math.sqrt(sum(float(v) ** 2 for v in x[i, j]) / 7 + eps)
        expected[i, j] = [float(w) * float(v) / root for w, v in zip(weight, x[i, j], strict=True)]
    found = norm.rms_norm(x, weight, eps)
    assert found.dtype == np.float32
    assert_near(found, expected)


def test_sums_of_exp() -> None:
    logits = floats(3, 9) * 4
    largest = logits.max(1)
    assert_near(
        softmax.sums_of_exp(logits, largest),
        [sum(math.exp(float(v) - float(m)) for v in row) for row, m in zip(logits, largest, strict=True)],
    )


ACTIVATIONS = {
    RELU2: lambda g: max(g, 0.0) ** 2,
    SILU: lambda g: g / (1 + math.exp(-g)),
    GELU: lambda g: g / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_units(activation: int) -> None:
    gate, up = floats(2, 50) * 2, floats(2, 50, seed=1)
    gate[0, 0] = 0.0
    expected = [[ACTIVATIONS[activation](float(g)) * float(u) for g, u in zip(*row, strict=True)] for row in zip(gate, up, strict=True)]
    found = glu.gated(gate, up, activation)
    assert found.dtype == np.float32
    assert_near(found, expected)
    far = glu.gated(np.array([-300, 300], np.float32), np.ones(2, np.float32), activation)  # where exp overflows
    assert far.tolist() == [0, 90000 if activation == RELU2 else 300]


def test_the_largest_inputs_are_kept() -> None:
    x = np.array([[1, -3, 2, 0.5], [0, 4, -4, 1], [2, 2, -2, 2]], np.float32)
    assert inputs.keep_largest(x, 2).tolist() == [[0, -3, 2, 0], [0, 4, -4, 0], [2, 2, -2, 2]]
    assert inputs.keep_largest(x, 3).tolist() == [[1, -3, 2, 0], [0, 4, -4, 1], [2, 2, -2, 2]]
    assert inputs.keep_largest(x, 4).tolist() == x.tolist()


def sylvester(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Blocks of n values times H / sqrt(n), H[i, j] = (-1)^popcount(i & j)."""
    h = np.array([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)])
    return (x.reshape(-1, n) @ h / math.sqrt(n)).reshape(x.shape)


@pytest.mark.parametrize(("cols", "n"), [(1, 1), (3, 1), (6, 2), (12, 4), (8, 8), (96, 32)])
def test_hadamard(cols: int, n: int) -> None:
    x = floats(2, cols)
    found = inputs.hadamard(x)
    assert found.dtype == np.float32
    assert_near(found, sylvester(x.astype(np.float64), n))


def test_folds() -> None:
    x, signs = floats(3, 8), np.where(floats(20) < 0, np.float32(-1), np.float32(1))
    at = np.array([[0, 5, -1], [11, -1, -1]])
    for layer, which in np.ndindex(2, 3):
        found, start = folds.fold(Folds(signs, at, 4), layer, which, x), int(at[layer, which])
        if start < 0:
            assert found is x
        else:
            assert_near(found, sylvester((x * signs[start : start + 8]).astype(np.float64), 4))
            assert_near(folds.unfold(signs[start : start + 8], 4, found), x)
    assert folds.fold(None, 0, 0, x) is x


def mean_magnitude(row: list[float]) -> float:
    """16 sums, then halves of them: in float64, which Python's are."""
    sums = [0.0] * 16
    for i, value in enumerate(row):
        sums[i % 16] += abs(value)
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)]
    return sums[0] / len(row)


def test_mean_magnitude_is_summed_in_its_order() -> None:
    """2^53 + 2^29 stands between two float32, and 2 more decide; in another order they are lost, one by one."""
    row = np.zeros((2, 16), np.float32)
    row[0, [0, 4]], row[0, [1, 9]] = [2.0**53, 2.0**29], 1
    row[1, [0, 4]], row[1, [1, 2]] = [2.0**53, 2.0**29], 1
    for x in (row, floats(3, 5), floats(2, 17), floats(2, 37)):
        assert quantise.mean_magnitude(x).tolist() == [float(np.float32(mean_magnitude(values))) for values in x.tolist()]
    assert quantise.mean_magnitude(row)[0] > quantise.mean_magnitude(row)[1]


E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)  # twice its values; the mantissa bit is 0 in every second one


def nearest_fp4(v: float) -> int:
    best = min(range(8), key=lambda i: (abs(abs(v) - E2M1[i]), i % 2))
    return int(math.copysign(E2M1[best], v))


def test_nearest_fp4() -> None:
    values = np.arange(-120, 121) / 10
    ties = [1 / 2, 3 / 2, 5 / 2, 7 / 2, 5, 7, 10]
    x = np.array([*values, *ties, *(-v for v in ties)], np.float32)
    assert quantise._nearest_fp4(x).tolist() == [nearest_fp4(float(v)) for v in x]


def code_and_factor(row: Floats, kind: int) -> tuple[list[int], np.float32]:
    """One token by the formulas: the factor, and products that are rounded to float32 before they become codes."""
    largest, least = np.float32(max(abs(float(v)) for v in row)), np.float32(1e-5)
    if kind == INT4:
        factor = np.float32(math.sqrt(7)) / max(np.float32(mean_magnitude(row.tolist())), least)
        return [min(7, max(-8, round(float(v * factor)))) for v in row], factor
    factor = np.float32(12 if kind == FP4 else 127) / max(largest, least)
    return [nearest_fp4(float(v * factor)) if kind == FP4 else round(float(v * factor)) for v in row], factor


@pytest.mark.parametrize("kind", [INT8, INT4, FP4])
def test_codes_and_factors(kind: int) -> None:
    x = floats(6, 40)
    x[1] *= 1e-4
    x[2] = 0
    x[3] = 127 - np.arange(40) / 2  # halves of INT8's codes
    x[4, 0], x[5, 0] = 30, -30  # past the last codes of INT4
    codes, factors = quantise.quantise(x, kind)
    assert (codes.dtype, factors.dtype) == (np.int8, np.float32)
    for row, found, factor in zip(x, codes, factors, strict=True):
        assert (found.tolist(), factor) == code_and_factor(row, kind)
    default = quantise.quantise(x)
    assert kind != INT8 or np.array_equal(default[0], codes)
    assert quantise.quantise(np.array([[np.nan, 1]], np.float32), kind)[0].shape == (1, 2)  # some codes, and no warning


@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("group", [16, 64])
def test_codes_become_q8_0(group: int, minima: bool) -> None:
    """A step is the least float16 from largest / 127 on; codes are the nearest, and zeros have a step of zero."""
    rng = np.random.default_rng(group)
    codes = rng.integers(-127, 128, 128).astype(np.int8)
    codes[64:] = 0
    codes[96] = 1 - minima  # alone in the last block
    scales, least = np.abs(floats(128 // group)), floats(128 // group, seed=1)
    least[64 // group :] = 0
    out = np.full(3 + 4 * 34 + 2, 7, np.uint8)
    recode.q8_0_rows(codes, scales, least if minima else least[:0], out, 3)
    assert [*out[:3], *out[-2:]] == [7] * 5
    for number, block in enumerate(out[3:-2].reshape(4, 34)):
        places = range(32 * number, 32 * number + 32)
        values = [np.float32(codes[i]) * scales[i // group] - (least[i // group] if minima else np.float32(0)) for i in places]
        step, largest = block[:2].copy().view("<f2")[0], max(map(abs, values)) / np.float32(127)
        assert step >= largest and (step == 0 or np.nextafter(step, np.float16(0)) < largest)
        inverse = np.float32(1) / np.float32(step) if step else np.float32(0)
        assert block[2:].view(np.int8).tolist() == [round(float(v * inverse)) for v in values]


def test_too_large_for_float16() -> None:
    """A step of infinity, which whoever calls it refuses; no warning."""
    out = np.zeros(34, np.uint8)
    recode.q8_0_rows(np.full(32, 100, np.int8), np.full(1, 1e7, np.float32), np.zeros(0, np.float32), out, 0)
    assert out[:2].view("<f2")[0] == np.inf


def turned(x: Floats, cos: Floats, sin: Floats, pairs: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Value i of the first half and of the second come of pair i."""
    half, out = len(pairs), np.zeros(x.shape)
    for t, head, i in np.ndindex(x.shape[0], x.shape[1], half):
        a, b, c, s = (float(v) for v in (x[t, head, pairs[i][0]], x[t, head, pairs[i][1]], cos[t, i], sin[t, i]))
        out[t, head, i], out[t, head, i + half] = a * c - b * s, b * c + a * s
    return out


def test_rotations() -> None:
    x, cos, sin = floats(3, 2, 10), floats(3, 5, seed=1), floats(3, 5, seed=2)
    assert_near(rope.rotate(x, cos, sin), turned(x, cos, sin, [(i, i + 5) for i in range(5)]))
    assert_near(rope.rotate_pairs(x, cos, sin), turned(x, cos, sin, [(2 * i, 2 * i + 1) for i in range(5)]))
