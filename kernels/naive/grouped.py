"""Twin of kernels/grouped.py: ternary weights with a scale a group, int8 activations with one a group, from the definition.

Of a row r and a token, with unit u of neighbouring weights that have one scale s[r, u], and activations q that have one step p[u],

    y[r] = sum over u, ascending, each a fused multiply-add in float32, of (sum of w q) * (s[r, u] * p[u])

from 0 on. The sum of w q is an integer, exact in float32: at most 128 * 2 * 127.
"""

import numpy as np
from numpy.typing import NDArray

from ..group_rows import Groups, read_back, unit_of

Floats = NDArray[np.float32]


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once to float32. Exact in float64 up to the sum, and that is rounded to odd, so that rounding again is right."""
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = total.view(np.int64) & 1 == 0
    odd = np.where((lost != 0) & even, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def quantise(x: Floats, groups: Groups, digits: int = 1) -> list[tuple[NDArray[np.int8], Floats]]:
    """(tokens, cols) float32 -> for each digit codes (tokens, cols) int8 and the step of each unit, (tokens, cols / unit) float32.

    factor = 127 / max(1e-5, max|x|) of a group of activations, code = round_half_even(x * factor), step = 1 / factor. A second digit is
    what x * factor loses when it is rounded, exactly, and rounded likewise; its step is 1 / (factor * factor of the second).
    """
    tokens, cols = x.shape
    group, unit = groups.activations or cols, unit_of(groups)
    values = np.pad(x, ((0, 0), (0, -cols % group))).reshape(tokens, -1, group)
    found, before = [], np.float32(1)
    for _ in range(digits):
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN ends as some code; the factor keeps it
            factors = np.float32(127) / np.maximum(np.abs(values).max(-1), np.float32(1e-5))
            scaled = values * factors[..., None]
            codes = np.rint(scaled).astype(np.int8).reshape(tokens, -1)[:, :cols]
            before = before * factors
            steps: Floats = np.repeat(np.float32(1) / before, group // unit, axis=1)[:, : cols // unit]
        found.append((codes, steps))
        values = scaled - np.rint(scaled)
    return found


def matmul(packed: NDArray[np.uint8], offset: int, rows: int, codes: NDArray[np.int8], steps: Floats, groups: Groups) -> Floats:
    """A matrix of group_rows.py times codes (tokens, cols) int8 of steps (tokens, cols / unit) -> (tokens, rows) float32."""
    tokens, cols = codes.shape
    unit = unit_of(groups)
    weights, scales = read_back(packed, offset, rows, cols, groups.weights)
    y = np.zeros((tokens, rows), np.float32)
    for u in range(cols // unit):
        here = slice(u * unit, u * unit + unit)
        sums = codes[:, here].astype(np.float64) @ (weights[:, here].astype(np.float64) - 1).T
        y = fused(sums.astype(np.float32), scales[:, u * unit // groups.weights].astype(np.float32) * steps[:, u, None], y)
    return y


def project(packed: NDArray[np.uint8], offset: int, rows: int, x: Floats, groups: Groups, digits: int) -> Floats:
    """A matrix times (tokens, cols) float32 in so many digits -> (tokens, rows) float32."""
    y = np.zeros((len(x), rows), np.float32)
    for codes, steps in quantise(x, groups, digits):
        y += matmul(packed, offset, rows, codes, steps, groups)
    return y
