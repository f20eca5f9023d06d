"""Sums of floats have one order on every CPU: 16 lanes, their total by halving, then what is left. To the bit, on this one's set."""

import numpy as np
import pytest
from bitnet_kernels import arrays, norm, softmax
from bitnet_kernels.frame import Frame
from bitnet_kernels.naive import softmax as naive
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def floats(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_lanes(values: NDArray[np.float64]) -> np.float64:
    """The order, written out."""
    whole, lanes = len(values) // 16 * 16, np.zeros(16)
    for start in range(0, whole, 16):
        lanes = lanes + values[start : start + 16]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    result = lanes[0]
    for value in values[whole:]:
        result = result + value
    return np.float64(result)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100, 256, 2560, 6912])
def test_norms(size: int) -> None:
    for seed in range(20):
        x, weights, out = floats(seed, size), floats(seed + 99, size), np.zeros(size, np.float32)
        norm.rms_norm(x, weights, 0, size, 1e-5, out)
        mean = np.float32(in_lanes(x.astype(np.float64) ** 2) / size)
        assert np.array_equal(out, weights * (x * (np.float32(1) / np.sqrt(mean + np.float32(1e-5)))))


@pytest.mark.parametrize("size", [1, 15, 16, 101, 4096, 12_800])
def test_exponentials_of_logits(size: int) -> None:
    """exp is off by 2.5e-7 at most (exponential.py); the sum is float64's."""
    logits = floats(1, 5, size) * np.float32(4)
    logits[0, size // 2 :] = -np.inf
    logits[0, 0] = 1
    largest, sums = logits.max(1), np.full(5, -1.0)
    assert Entry("softmax", "sums_of_exp").over(Frame(arrays.SoftmaxFrame(logits, largest, sums)), 2)(1, 5) == 0
    assert sums[0] == -1
    expected = naive.sums_of_exp(logits, largest)
    assert np.all(np.abs(sums[1:] - expected[1:]) <= 3e-7 * expected[1:])
    assert softmax.sum_of_exp(logits.reshape(-1), 0, size, largest[0]) == pytest.approx(expected[0], rel=3e-7)
