"""Twin of kernels/quantise.py and of the quantisers in kernels/inputs.py."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import FP4, INT4

Floats = NDArray[np.float32]
ROOT7 = np.float32(np.sqrt(7))


def mean_magnitude(x: Floats) -> Floats:
    """mean|x| of each row, (tokens,) float32: summed in float64 in one order, rounded once.

    The order: 16 sums of every 16th value, then these in halves (8 + 8, 4 + 4 ...).
    """
    tokens, cols = x.shape
    sizes = np.pad(np.abs(x).astype(np.float64), ((0, 0), (0, -cols % 16)))
    lanes = np.zeros((tokens, 16))
    for start in range(0, cols, 16):
        lanes += sizes[:, start : start + 16]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    mean: Floats = (lanes[:, 0] / cols).astype(np.float32)
    return mean


def _nearest_fp4(x: Floats) -> Floats:
    """Nearest of 0, 1, 2, 3, 4, 6, 8, 12 with sign, twice the values of E2M1; between two the one whose mantissa bit is 0."""
    step = np.where(np.abs(x) < 4, 1, np.where(np.abs(x) < 8, 2, 4)).astype(np.float32)
    nearest: Floats = np.rint(x / step) * step
    return nearest


def quantise(x: Floats, kind: int = 0) -> tuple[NDArray[np.int8], Floats]:
    """(tokens, cols) float32 -> (tokens, cols) int8 in natural order, and the factors, (tokens,) float32: code = x * factor, rounded.

    kind: INT8, factor 127 / max|x|;  INT4, sqrt(7) / mean|x|, codes -8 .. 7;  FP4, 12 / max|x|, codes of _nearest_fp4. max|x| and mean|x|
    are taken as 1e-5 at least.
    """
    least = np.float32(1e-5)
    with np.errstate(invalid="ignore"):  # NaN ends as some code; the factor keeps it
        if kind == INT4:
            factors: Floats = (ROOT7 / np.maximum(mean_magnitude(x), least)).astype(np.float32)
            return np.clip(np.rint(x * factors[:, None]), -8, 7).astype(np.int8), factors
        largest = np.maximum(np.abs(x).max(-1), least)
        if kind == FP4:
            factors = np.float32(12) / largest
            return _nearest_fp4(x * factors[:, None]).astype(np.int8), factors
        factors = np.float32(127) / largest
        return np.clip(np.rint(x * factors[:, None]), -128, 127).astype(np.int8), factors
