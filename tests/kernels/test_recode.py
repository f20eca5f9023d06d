"""Codes and scales -> Q8_0: the kernel against its twin, to the bit, and how far a weight may be off."""

import numpy as np
import pytest
from bitnet_kernels import isa
from bitnet_kernels.naive import recode as naive
from numpy.typing import NDArray

if isa.chosen() == isa.NAIVE:
    pytest.skip("the naive kernels use no vectors", allow_module_level=True)

from bitnet_kernels import recode

SCALES = {"usual": 0.01, "tiny": 1e-9, "subnormal": 3e-6, "large": 400.0, "too large": 1e7}


def parts(group: int, minima: bool, size: float) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(group)
    codes = rng.integers(-127, 128, 32 * 64).astype(np.int8)
    codes[:32] = 0
    count = len(codes) // group
    scales = (rng.standard_normal(count) * size).astype(np.float32)
    scales[-1] = 0
    return codes, scales, (rng.standard_normal(count) * size * 50).astype(np.float32) if minima else np.zeros(0, np.float32)


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("group", [16, 32, 64, 256])
def test_the_kernel_is_its_twin_and_weights_are_off_by_half_a_step(group: int, minima: bool, size: str) -> None:
    codes, scales, least = parts(group, minima, SCALES[size])
    out, twin = np.full(34 * 64 + 10, 7, np.uint8), np.full(34 * 64 + 10, 7, np.uint8)
    recode.q8_0_rows(codes, scales, least, np.int64(group), out, np.int64(5))
    naive.q8_0_rows(codes, scales, least, twin, 5)
    assert out[:5].tolist() == out[-5:].tolist() == [7] * 5
    blocks, twins = out[5:-5].reshape(64, 34), twin[5:-5].reshape(64, 34)
    steps = blocks[:, :2].copy().view("<f2").astype(np.float64)
    finite = np.isfinite(steps[:, 0])
    assert np.array_equal(blocks[:, :2], twins[:, :2]) and np.array_equal(blocks[finite], twins[finite])
    if size == "too large":
        assert not finite.all()  # which whoever calls it refuses
        return
    assert finite.all()
    exact = codes.reshape(len(scales), -1).astype(np.float32) * scales[:, None]
    exact = (exact - least[:, None] if minima else exact).reshape(-1, 32).astype(np.float64)
    largest = np.abs(exact).max(1, keepdims=True)
    errors = np.abs(exact - steps * blocks[:, 2:].view(np.int8))
    assert (errors <= largest / 254 * (1 + 2**-10) * 1.0001 + 2.0**-25).all()
    assert (steps >= 0).all() and (blocks[:, 2:].view(np.int8) != -128).all()
