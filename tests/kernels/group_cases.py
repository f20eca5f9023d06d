"""Random ternary rows with a scale a group, as models have them, for the tests of kernels. Scripts of this folder import it by its name."""

from typing import NamedTuple

import numpy as np
from bitnet_kernels import arrays, group_rows
from bitnet_kernels.operands import Destination, Matrix
from numpy.typing import NDArray


def matrix(rng: np.random.Generator, rows: int, cols: int, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes, one in a hundred 3, and scales log-uniform from 1e-5 to 0.08."""
    codes = rng.integers(0, 3, (rows, cols), np.uint8)
    codes[rng.random((rows, cols)) < 0.01] = 3
    return codes, np.exp(rng.uniform(np.log(1e-5), np.log(0.08), (rows, cols // group))).astype(np.float16)


def packed(codes: NDArray[np.uint8], scales: NDArray[np.float16], offset: int, tail: int = 61) -> NDArray[np.uint8]:
    """The matrix at byte `offset` of a larger array. What lies before and after is 0xFF: NaN as a scale, so a stray read shows."""
    (rows, cols), count = codes.shape, scales.shape[1]
    size = group_rows.matrix_bytes(rows, cols, cols // count)
    whole = np.full(offset + size + tail, 0xFF, np.uint8)
    group_rows.lay_out(group_rows.words_of(codes), scales, whole[offset : offset + size])
    return whole


class Digit(NamedTuple):
    """As GroupScratch and Scratch have them; what is past the tokens is 99 and NaN."""

    codes: NDArray[np.int8]
    minus: NDArray[np.int32]
    steps: NDArray[np.float32]


class Inputs:
    """Activations (tokens, cols) float32 as `quantise_groups` leaves them, in one digit or two."""

    def __init__(self, x: NDArray[np.float32], groups: group_rows.Groups, digits: int):
        from bitnet_kernels import grouped

        (self.tokens, self.cols), self.groups = x.shape, groups
        rows = -(-self.tokens // 16) * 16
        scratch = arrays.new_group_scratch(digits, rows, self.cols, 2)
        for array in scratch:
            array.fill(99 if array.dtype == np.int32 else np.nan)
        self.room, codes = scratch, [np.full((rows, self.cols + 32), 99, np.int8) for _ in range(2)]
        rest = np.full(self.cols, np.nan, np.float32)
        for row in range(self.tokens):
            grouped.quantise_groups(x[row], self.cols, groups, digits, codes[0][row], codes[1][row], scratch, row, rest)
        pairs = ((scratch.minus, scratch.steps), (scratch.fine_minus, scratch.fine_steps))
        self.digits = [Digit(codes[i], *pairs[i]) for i in range(digits)]


def own_order(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Activations as they meet words -> their own order."""
    return codes.reshape(len(codes), -1, 4, 4).swapaxes(2, 3).reshape(codes.shape)


def run_matmul(
    whole: NDArray[np.uint8], offset: int, rows: int, x: Inputs, scale: float, many: bool = False, before: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """First digits times the matrix, by two threads' shares one after the other, added to `before` where given: (tokens, rows) float32.

    Asserts that nothing beside was written. many: by tiles.
    """
    from bitnet_kernels import grouped

    canary, factor, digit, edge = np.float32(-1234567), np.float32(scale), x.digits[0], rows // 2 // 16 * 16
    out, tile = np.full((x.tokens + 1, rows + 7), canary, np.float32), np.full(arrays.TILE_BYTES + 64, 0xAB, np.uint8)
    matrix, to = Matrix(whole, offset, x.cols, factor), Destination(out, 3, before is not None)
    given = grouped.GroupInputs(*digit, x.tokens)
    if before is not None:
        out[: x.tokens, 3 : 3 + rows] = before
    for thread, (first, last) in enumerate(((0, edge), (edge, rows))):
        room = grouped.Room(tile, np.full(grouped.UNIT_SUMS, 99, np.int32), x.room.totals[thread], x.room.scales[thread])
        (grouped.matmul_tiles if many else grouped.matmul_packed)(matrix, x.groups, given, to, room, first, last)
    found = out[: x.tokens, 3 : 3 + rows].copy()
    out[: x.tokens, 3 : 3 + rows] = canary
    assert (out == canary).all()
    assert (tile[-64:] == 0xAB).all()
    return found
