"""Twin of kernels/folds.py, and its inverse, which rows of a folded embedding need."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import Folds
from .inputs import hadamard

Floats = NDArray[np.float32]


def fold(folds: Folds | None, layer: int, which: int, x: Floats) -> Floats:
    """(tokens, cols) float32 -> H (signs x) / sqrt(n) in blocks of n; x itself where there is nothing to fold."""
    if folds is None or folds.at[layer, which] < 0:
        return x
    at = int(folds.at[layer, which])
    signed = x * folds.signs[at : at + x.shape[1]]
    return hadamard(signed.reshape(-1, folds.block)).reshape(x.shape)


def unfold(signs: Floats, block: int, rows: Floats) -> Floats:
    """(rows, cols) float32 -> signs (H row) / sqrt(n) in blocks of n: the inverse, since H H = n."""
    turned: Floats = hadamard(rows.reshape(-1, block)).reshape(rows.shape)
    return turned * signs
