"""Blocks of GGUF's grid types -> codes and scales: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

In: (blocks, bytes of a block) uint8. Out: block_codes.Coded. 8 weights (4 in IQ3) are one row of a grid of 256 to 2,048, found by a number
of 8 to 11 bits, with a sign a weight (IQ2, IQ3) or an eighth of the scale added or taken away (IQ1). The grids are those of the gguf
package, which is imported when the first such tensor is met (50 ms).

Source: ggml-common.h and ggml-quants.c of llama.cpp (`block_iq*`, `dequantize_row_iq*`). Oracle: gguf.quants.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.tensors.block_codes import Bytes, Coded, Floats, half

Codes = NDArray[np.int8]
_PARITY = np.array(
    [number | number.bit_count() % 2 << 7 for number in range(128)], np.uint8
)  # seven signs, and an eighth that makes them even


@functools.cache
def _grid(name: str) -> NDArray[Any]:
    """Rows of a grid as one integer each: (rows,) uint64 of 8 int8, or uint32 of 4."""
    import gguf

    kind = getattr(gguf.quants, name)
    kind.init_grid()
    rows = np.ascontiguousarray(kind.grid.reshape(kind.grid_shape).astype(np.int8))
    return rows.view(np.uint64 if rows.shape[1] == 8 else np.uint32).reshape(-1)


def _points(name: str, low: Bytes, high: NDArray[Any] | None = None) -> Codes:
    """Weights of the grid's rows with numbers low + 256 high, one after the other."""
    numbers = low.astype(np.uint16) if high is None else low | high.astype(np.uint16) << np.uint16(8)
    return np.take(_grid(name), numbers.reshape(-1)).view(np.int8)


def _with_signs(points: Codes, signs: Bytes) -> Codes:
    """Points, negative where their bit is set: 8 weights a byte, from the lowest bit on."""
    bits = np.unpackbits(np.ascontiguousarray(signs).reshape(-1), bitorder="little").view(np.int8)
    bits *= np.int8(-2)
    bits += np.int8(1)
    signed: Codes = points * bits
    return signed


def _words(blocks: Bytes, begin: int, end: int, kind: str) -> NDArray[Any]:
    """Bytes begin .. end - 1 of each block as integers of `kind`."""
    return np.ascontiguousarray(blocks[:, begin:end]).view(kind)


def _shifted(numbers: NDArray[Any], shifts: tuple[int, ...], mask: int) -> NDArray[Any]:
    """(blocks, n) -> (blocks, n * len(shifts)): the fields of each number."""
    kind = numbers.dtype.type
    fields: NDArray[Any] = (numbers[:, :, None] >> np.array(shifts, kind) & kind(mask)).reshape(len(numbers), -1)
    return fields


def _scaled(blocks: Bytes, fours: NDArray[Any], factor: float) -> Floats:
    """d (0.5 + s) factor, for s of four bits."""
    return (half(blocks, 0) * (np.float32(0.5) + fours.astype(np.float32)) * np.float32(factor)).reshape(-1)


def iq2_xxs(blocks: Bytes) -> Coded:
    """256 weights in 66 bytes: d, then for each 32 four numbers of rows and a uint32 with four times seven signs and s."""
    words = _words(blocks, 2, 66, "<u4").reshape(len(blocks), 8, 2)
    rows, rest = np.ascontiguousarray(words[:, :, 0]).view(np.uint8), words[:, :, 1]
    signs = _PARITY[_shifted(rest, (0, 7, 14, 21), 127)]
    return Coded(_with_signs(_points("IQ2_XXS", rows), signs), _scaled(blocks, rest >> np.uint32(28), 0.25))


def iq2_xs(blocks: Bytes) -> Coded:
    """256 weights in 74 bytes: d, 32 uint16 with nine bits of a row's number and seven signs, s of four bits for each 16."""
    words = _words(blocks, 2, 66, "<u2")
    rows = words & np.uint16(511)
    points = np.take(_grid("IQ2_XS"), rows.reshape(-1)).view(np.int8)
    return Coded(_with_signs(points, _PARITY[words >> np.uint16(9)]), _scaled(blocks, _shifted(blocks[:, 66:], (0, 4), 15), 0.25))


def iq2_s(blocks: Bytes) -> Coded:
    """256 weights in 82 bytes: d, 32 lower bytes of rows' numbers, 32 of signs, upper two bits of the numbers, s for each 16."""
    points = _points("IQ2_S", blocks[:, 2:34], _shifted(blocks[:, 66:74], (0, 2, 4, 6), 3))
    return Coded(_with_signs(points, blocks[:, 34:66]), _scaled(blocks, _shifted(blocks[:, 74:], (0, 4), 15), 0.25))


def iq3_xxs(blocks: Bytes) -> Coded:
    """256 weights in 98 bytes: d, 64 numbers of rows of four, then for each 32 a uint32 with four times seven signs and s."""
    rest = _words(blocks, 66, 98, "<u4")
    signs = _PARITY[_shifted(rest, (0, 7, 14, 21), 127)]
    return Coded(_with_signs(_points("IQ3_XXS", blocks[:, 2:66]), signs), _scaled(blocks, rest >> np.uint32(28), 0.5))


def iq3_s(blocks: Bytes) -> Coded:
    """256 weights in 110 bytes: d, 64 lower bytes of numbers of rows of four, 64 ninth bits, 32 bytes of signs; d (2 s + 1) for each 32."""
    ninth = np.unpackbits(np.ascontiguousarray(blocks[:, 66:74]), axis=1, bitorder="little")
    small = 1 + 2 * _shifted(blocks[:, 106:], (0, 4), 15).astype(np.float32)
    return Coded(_with_signs(_points("IQ3_S", blocks[:, 2:66], ninth), blocks[:, 74:106]), (half(blocks, 0) * small).reshape(-1))


def _shifted_points(points: Codes, negative: NDArray[np.bool_], weights: int) -> Codes:
    """8 points + 1, or - 1 where `negative` says so for each `weights` of them: IQ1's points are off the grid by an eighth."""
    eighths = np.where(negative, np.int8(-1), np.int8(1)).reshape(-1, 1)
    return (points.reshape(-1, weights) * np.int8(8) + eighths).reshape(-1)


def iq1_s(blocks: Bytes) -> Coded:
    """256 weights in 50 bytes: d, 32 lower bytes of rows' numbers, for each 32 a uint16: three upper bits of four, s, sign; d (2 s + 1)."""
    words = _words(blocks, 34, 50, "<u2")
    points = _points("IQ1_S", blocks[:, 2:34], _shifted(words, (0, 3, 6, 9), 7))
    small = 2 * (words >> np.uint16(12) & np.uint16(7)).astype(np.float32) + 1
    scales = half(blocks, 0) * small / np.float32(8)
    return Coded(_shifted_points(points, words >= 0x8000, 32), scales.reshape(-1))


def iq1_m(blocks: Bytes) -> Coded:
    """256 weights in 56 bytes: 32 lower bytes of rows' numbers, 16 bytes of halves: upper three bits and a sign for each 8 weights, then

    four uint16 with four s of three bits each, d (2 s + 1) for each 16, and in their upper four bits, one after the other, d.
    """
    words, bits = _words(blocks, 48, 56, "<u2"), _shifted(blocks[:, 32:48], (0, 4), 15)
    points = _points("IQ1_M", blocks[:, :32], bits & np.uint8(7))
    small = 2 * _shifted(words, (0, 3, 6, 9), 7).astype(np.float32) + 1
    scales = iq1_m_scale(blocks)[:, None] * small / np.float32(8)
    return Coded(_shifted_points(points, bits >= 8, 8), scales.reshape(-1))


def iq1_m_scale(blocks: Bytes) -> Floats:
    """(blocks,): d of IQ1_M, whose 16 bits lie in four places."""
    upper = _words(blocks, 48, 56, "<u2") >> np.uint16(12)
    scales: Floats = (upper << np.array([0, 4, 8, 12], np.uint16)).sum(1).astype("<u2").view("<f2").astype(np.float32)
    return scales
