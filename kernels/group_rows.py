"""Ternary rows with a float16 scale for every group of weights: how they lie in memory. Kernels: grouped.py. No Numba here.

A weight is (code - 1) * scale of its group, codes 0 to 3: 3 stands for +2. A word is 16 neighbouring weights of a row, as Q2_0 and PQ2_0
have them: bits 2 (j mod 4), 2 (j mod 4) + 1 of byte j / 4 are the code of weight j. So a file's bytes become these rows by moving words.

Rows stand in lanes: a panel is ROWS rows, the first word of each, then the second of each and so on. One load brings as many rows as a
register has lanes, which all meet the same 16 activations, and a group's sums need no additions across lanes: decode, few tokens and many
add the same integers, and their floats in the same order. A panel is

    scales    (cols / group, ROWS) float16, then nothing up to a multiple of 64 bytes
    words     (cols / 16, ROWS) uint32

and a matrix is its panels, one after the other; rows past its last are scales of zero.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS = 16  # of a panel
WORD = 16  # weights
LINE = 64  # bytes
LARGEST_UNIT = 128
GROUPS = (64, 128, 256)
WHOLE_ROW = 0  # Groups.activations: one scale for all inputs of a token


class Groups(NamedTuple):
    """How many neighbouring weights of a row, and inputs of a token, have one scale."""

    weights: int  # 64, 128 or 256
    activations: int = 128  # or 64, 256, WHOLE_ROW


def unit_of(groups: Groups) -> int:
    """Weights that are added up as integers, 64 or 128: all have one scale, and so have the activations that they meet.

    Never more than 128: 32 steps of vpmaddubsw, of which 42 with codes up to 3 stay within int16.
    """
    return min(groups.weights, groups.activations or LARGEST_UNIT, LARGEST_UNIT)


def scale_bytes(cols: int, group: int) -> int:
    """Bytes of a panel's scales."""
    return -(-(cols // group * ROWS * 2) // LINE) * LINE


def panel_bytes(cols: int, group: int) -> int:
    """Bytes of a panel of rows of `cols` weights, a multiple of the group."""
    return scale_bytes(cols, group) + cols * ROWS // 4


def matrix_bytes(rows: int, cols: int, group: int) -> int:
    """Bytes of a whole matrix."""
    return -(-rows // ROWS) * panel_bytes(cols, group)


def words_of(codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(rows, cols) codes 0 to 3, cols a multiple of 16 -> (rows, cols / 16) words."""
    fours = codes.reshape(len(codes), -1, 4)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(fours << np.array([0, 2, 4, 6], np.uint8), axis=-1, dtype=np.uint8)
    return packed.view("<u4")


def lay_out(words: NDArray[np.uint32], scales: NDArray[np.float16], out: NDArray[np.uint8]) -> None:
    """Some rows of a matrix, all of them or whole panels -> out: (matrix_bytes of as many rows,) uint8.

    words: (rows, cols / 16);  scales: (rows, cols / group), where the group is cols over their number.
    """
    cols, count = words.shape[1] * WORD, scales.shape[1]
    past = -len(words) % ROWS
    if past:
        words, scales = np.pad(words, ((0, past), (0, 0))), np.pad(scales, ((0, past), (0, 0)))
    panels, start = out.reshape(len(words) // ROWS, -1), scale_bytes(cols, cols // count)
    heads, bodies = panels[:, :start].reshape(len(panels), -1).view("<f2"), panels[:, start:].view("<u4")
    np.copyto(bodies.reshape(len(panels), -1, ROWS), words.reshape(len(panels), ROWS, -1).swapaxes(1, 2))
    heads[:, count * ROWS :] = 0
    np.copyto(heads[:, : count * ROWS].reshape(len(panels), -1, ROWS), scales.reshape(len(panels), ROWS, -1).swapaxes(1, 2))


def read_back(packed: NDArray[np.uint8], offset: int, rows: int, cols: int, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """The matrix that begins at byte `offset` -> codes (rows, cols) uint8 and scales (rows, cols / group) float16."""
    panels = packed[offset : offset + matrix_bytes(rows, cols, group)].reshape(-1, panel_bytes(cols, group))
    start, used = scale_bytes(cols, group), cols // group * ROWS * 2
    scales = np.ascontiguousarray(panels[:, :used]).view("<f2").reshape(len(panels), -1, ROWS).swapaxes(1, 2)
    words = np.ascontiguousarray(panels[:, start:]).view("<u4").reshape(len(panels), -1, ROWS).swapaxes(1, 2)
    fields = np.ascontiguousarray(words).view(np.uint8)[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    return fields.reshape(-1, cols)[:rows], np.ascontiguousarray(scales).reshape(-1, cols // group)[:rows]
