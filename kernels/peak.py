"""What arithmetic alone can do: the products that the matmul makes, on values that stay in registers. Prefill is measured against it.

The same instructions as in tile.py, with as many independent sums, and for sets with narrow sums the same additions and folds; without
loads, unpacking, scaling, and without waiting for a cache.
"""

import numpy as np
from numpy.typing import NDArray

from .jit import kernel
from .simd import floats, selected, tiles

TOKENS = selected.TILE_TOKENS
ROWS = selected.TILE_BLOCKS * tiles.LANES
SUMS = selected.TILE_BLOCKS * TOKENS
PRODUCTS = SUMS * selected.WIDTH  # of bytes in a step
STEPS = min(selected.STEPS_PER_FOLD, 4096)
load = selected.load
no_sums, _, add_to = tiles.operations(selected.TILE_BLOCKS, TOKENS)
step = tiles.in_registers(selected.TILE_BLOCKS, TOKENS)


@kernel
def _steps(rounds, data, values, sums):  # type: ignore[no-untyped-def]
    codes, x = load(data, 0), load(values, 0)
    for _ in range(rounds):
        registers = no_sums()
        for _ in range(STEPS):
            registers = step(registers, codes, x)
        add_to(registers, sums, 0, ROWS, 0, ROWS)


def multiply(rounds: int) -> int:
    """Make products of bytes in one thread, without the GIL; returns how many."""
    _steps(rounds, np.ones(64, np.uint8), np.ones(64, np.int8), np.zeros(SUMS * tiles.LANES, np.int32))
    return rounds * STEPS * PRODUCTS
