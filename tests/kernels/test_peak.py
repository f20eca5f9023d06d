"""The loops that measure what arithmetic can do compute what they say: nothing in them was left out by the compiler."""

import numpy as np
import pytest
from bitnet_kernels import isa

if isa.chosen() == isa.NAIVE:
    pytest.skip("there is no arithmetic of registers to measure", allow_module_level=True)

from bitnet_kernels import peak


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_product_is_in_the_sums(rounds: int) -> None:
    """A lane of a sum takes four products of ones a step, 64 in a tile of AMX."""
    sums = peak.multiply_bytes(rounds)
    assert sums.size * peak.EACH == peak.PRODUCTS
    assert np.all(sums == rounds * peak.STEPS * peak.EACH)


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_multiply_add_is_in_the_sums(rounds: int) -> None:
    sums = peak.multiply_floats(rounds)
    assert sums.size == peak.FLOATS
    assert np.all(sums == rounds * peak.STEPS)
