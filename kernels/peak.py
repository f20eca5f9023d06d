"""What arithmetic alone can do, on values that stay in registers: prefill is measured against it.

Products: the instructions of the ternary matmul (tile.py), with as many independent sums, and for sets with narrow sums the same additions
and folds, or AMX's tiles; without loads, unpacking and scaling, and without waiting for a cache. Floats: multiply-adds, as attention makes
them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isa
from .frame import Frame
from .jit import entry
from .native import Entry
from .simd import floats, matrix, registers, selected, tiles
from .tile import MATRIX

TOKENS, ROWS = selected.TILE_TOKENS, selected.TILE_BLOCKS * tiles.LANES
FLOAT_SUMS = 12 if isa.width() == 64 else 6  # of 16 floats: 12 registers, where one holds 8 or 16
SUMS, EACH = (4 * 256, 64) if MATRIX else (ROWS * TOKENS, 4)  # of a step, and products that each of them gets
PRODUCTS, FLOATS = SUMS * EACH, 16 * FLOAT_SUMS  # in a step
STEPS = min(selected.STEPS_PER_FOLD, 4096)
load, load_f32 = selected.load, floats.load_f32
no_sums, _, add_to = tiles.operations(selected.TILE_BLOCKS, TOKENS)
product_step = registers.product_step(selected.TILE_BLOCKS * TOKENS)
float_step, load_floats, store_floats = registers.float_steps(FLOAT_SUMS)
begin_tiles, end_tiles = matrix.begin, matrix.end
start_tiles, tile_step, store_tiles = matrix.arithmetic()


class Operands(NamedTuple):
    """The frame of what follows; what of it is not needed is empty."""

    data: NDArray[np.uint8]
    values: NDArray[np.int8] | NDArray[np.float32]
    sums: NDArray[np.int32] | NDArray[np.float32]


if MATRIX:

    @entry
    def products(frame, rounds):
        """rounds * STEPS * PRODUCTS multiply-adds."""
        begin_tiles()
        start_tiles(frame.data)
        for _ in range(rounds * STEPS):
            tile_step()
        store_tiles(frame.sums, 0, 64)  # four tiles beside each other
        end_tiles()
        return rounds

else:

    @entry
    def products(frame, rounds):
        """rounds * STEPS * PRODUCTS multiply-adds."""
        codes, x, sums = load(frame.data, 0), load(frame.values, 0), frame.sums
        for _ in range(rounds):
            totals = no_sums()
            for _ in range(STEPS):
                totals = product_step(totals, codes, x)
            add_to(totals, sums, 0, ROWS, 0, ROWS)
        return rounds


@entry
def float_products(frame, rounds):
    """rounds * STEPS * FLOATS multiply-adds."""
    sums = frame.sums
    x, totals = load_f32(frame.values, 0), load_floats(sums)
    for _ in range(rounds * STEPS):
        totals = float_step(totals, x)
    store_floats(totals, sums)
    return rounds


_PRODUCTS, _FLOATS = Entry("peak", "products"), Entry("peak", "float_products")


def multiply_bytes(rounds: int) -> NDArray[np.int32]:
    """rounds * STEPS * PRODUCTS multiply-adds of ones, by the thread that calls, without the GIL. Returns the sums: (SUMS,)."""
    sums = np.zeros(SUMS, np.int32)
    _PRODUCTS.over(Frame(Operands(np.ones(1024, np.uint8), np.ones(64, np.int8), sums)), 1)(rounds)
    return sums


def multiply_floats(rounds: int) -> NDArray[np.float32]:
    """rounds * STEPS * FLOATS multiply-adds of ones, likewise. Returns the sums: (FLOATS,)."""
    sums = np.zeros(FLOATS, np.float32)
    _FLOATS.over(Frame(Operands(np.ones(0, np.uint8), np.ones(16, np.float32), sums)), 1)(rounds)
    return sums
