"""Float weights -> ternary values: the absmean rule of BitNet b1.58 (arXiv 2402.17764, equations 1 to 3).

One rule, in two passes, so that a tensor larger than memory can be done a few rows at a time:

    scale    mean|W| over the whole tensor, at least 1e-5, float32
    values   clip(round_half_even(W / scale), -1, 1), int8

The scale must not depend on how the rows were cut into chunks. So each row is summed on its own in float64 (NumPy's pairwise order, a
function of the row's length alone), and the row sums are added exactly (`math.fsum`) before the one division and the one rounding.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SMALLEST_SCALE = 1e-5


def mean_abs(chunks: Iterable[NDArray[np.floating]]) -> np.float32:
    """Scale of a tensor given as consecutive (rows, cols) chunks: mean|W|, at least 1e-5. NaN or Inf where a weight is."""
    row_sums: list[float] = []
    count = 0
    for chunk in chunks:
        row_sums.extend(np.abs(chunk).astype(np.float64).sum(axis=-1).reshape(-1).tolist())
        count += chunk.size
    mean = math.fsum(row_sums) / count
    # A mean just under the smallest scale may round to it, and Python's max keeps a NaN only in first place.
    return np.float32(max(mean, SMALLEST_SCALE))


def round_to_ternary(chunk: NDArray[np.floating], scale: np.float32 | NDArray[np.float32]) -> NDArray[np.int8]:
    """(rows, cols) float -> int8 in {-1, 0, 1}. Rounding is half to even, as torch.round and np.rint do. scale: one, or (rows, 1)."""
    ratio: NDArray[np.float32] = np.divide(chunk, scale, dtype=np.float32)
    np.rint(ratio, out=ratio)
    np.clip(ratio, -1, 1, out=ratio)
    return ratio.astype(np.int8)


def ternarise(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], np.float32]:
    """(rows, cols) float -> (rows, cols) int8 in {-1, 0, 1}, and the scale mean|W| as float32 (at least 1e-5)."""
    scale = mean_abs([weight])
    return round_to_ternary(weight, scale), scale
