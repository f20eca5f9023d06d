"""Twin of kernels/head_planes.py and head_search.py: what the planes stand for, and the logits that a search gives."""

import numpy as np
from numpy.typing import NDArray

from ..arrays import Planes


def _codes(planes: Planes, cols: int, width: int) -> NDArray[np.int64]:
    """(rows, padded cols) 8-bit codes in kernel order. width: bytes of a register, at which the planes were built."""
    rows, length = len(planes.scales), -(-cols // (4 * width)) * 4 * width
    shifts = np.array([6, 4, 2, 0], np.uint8)[:, None]
    six = planes.six[: rows * length // 4 * 3].reshape(rows, -1, 3, 1, width)
    high = six[:, :, 1:] >> np.array([0, 4], np.uint8)[:, None] & 15
    middle, low = (plane >> shifts & 3 for plane in (six[:, :, 0], planes.low[: rows * length // 4].reshape(rows, -1, 1, width)))
    parts = [part.reshape(rows, length).astype(np.int64) for part in (high, middle, low)]
    codes: NDArray[np.int64] = parts[0] * 16 + parts[1] * 4 + parts[2]
    return codes


def values(planes: Planes, cols: int, width: int, bits: int) -> NDArray[np.float64]:
    """(rows of the planes, cols) float64, as their first 4, 6 or 8 bits tell them."""
    codes = _codes(planes, cols, width)
    rows, blocks = len(codes), width // 32
    natural = codes.reshape(rows, -1, 4, blocks, 32).swapaxes(2, 3).reshape(rows, -1)[:, :cols]
    unit = 1 << (8 - bits)
    middle: NDArray[np.float64] = planes.scales[:, None].astype(np.float64) * (natural // unit * unit + (unit - 1) / 2 - 127.5)
    return middle


def top_logits(planes: Planes, logits: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    """(vocab,) float32: of all logits, the `top` largest of rows with planes, and all that equal them; minus infinity for the others."""
    found = np.full_like(logits, -np.inf)
    least = np.sort(logits[planes.ids])[-min(top, len(planes.ids))]
    largest = planes.ids[logits[planes.ids] >= least]
    found[largest] = logits[largest]
    return found
