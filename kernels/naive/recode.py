"""Twin of kernels/recode.py."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def q8_0_rows(codes: NDArray[np.int8], scales: Floats, minima: Floats, out: NDArray[np.uint8], at: int) -> None:
    """As there; the group is what the numbers of codes and scales say."""
    values = codes.reshape(len(scales), -1).astype(np.float32) * scales[:, None]
    if len(minima):
        values -= minima[:, None]
    blocks = values.reshape(-1, 32)
    largest = np.abs(blocks).max(1) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        bits = largest.astype("<f2").view("<u2")
        bits = bits + (bits.view("<f2").astype(np.float32) < largest).astype("<u2")
        steps = bits.view("<f2").astype(np.float32)
        inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
        rounded = np.rint(blocks * inverse[:, None]).astype(np.int8)
    table = np.concatenate([bits.view(np.uint8).reshape(-1, 2), rounded.view(np.uint8)], 1)
    out[at : at + table.size] = table.reshape(-1)
