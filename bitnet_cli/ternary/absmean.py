"""Float weights -> ternary values: the absmean rule of BitNet b1.58 (arXiv 2402.17764, equations 1 to 3)."""

import numpy as np
from numpy.typing import NDArray


def ternarise(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], np.float32]:
    """(rows, cols) float -> (rows, cols) int8 in {-1, 0, 1}, and the scale mean|W| as float32 (at least 1e-5).

    Rounding is half to even, as torch.round and np.rint do. The mean is taken in float64 and rounded once: sums over millions of
    float32 weights would otherwise depend on the order of summation.
    """
    scale = np.float32(max(float(np.abs(weight).mean(dtype=np.float64)), 1e-5))
    return np.clip(np.rint(weight.astype(np.float32, copy=False) / scale), -1, 1).astype(np.int8), scale
