"""What products of weights and activations take and give, handed from kernel to kernel. Numba passes a tuple's fields one by one."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Matrix(NamedTuple):
    """Packed weights, as the kernel that reads them wants them."""

    packed: NDArray[np.uint8]  # (bytes,)
    offset: int  # byte at which its rows begin
    cols: int
    scale: np.float32  # of all


class Codes(NamedTuple):
    """int8 codes of some tokens: of token t from values[first + t * gap] on."""

    values: NDArray[np.int8]  # (bytes,)
    first: int
    gap: int


class Ahead(NamedTuple):
    """What is brought to the L2 cache meanwhile: `step` bytes a word, from packed[at] on."""

    packed: NDArray[np.uint8]
    at: int
    step: int


class Inputs(NamedTuple):
    """Activations as quantise.py leaves them."""

    codes: NDArray[np.int8]  # (>= tokens rounded up to 16, padded cols) in kernel order
    sums: NDArray[np.int32]  # (tokens,) of the codes
    factors: NDArray[np.float32]  # (tokens,) 127 / max|x|
    tokens: int


class Destination(NamedTuple):
    """Where results go: of token t and row r to out[t, place + r]."""

    out: NDArray[np.float32]  # (tokens, >= place + rows)
    place: int
    add: bool  # to what is there


class Product(NamedTuple):
    """Which projection (arrays.Q to arrays.DOWN) of which layer: (rows, cols) weights."""

    layer: int
    which: int
    rows: int
    cols: int
