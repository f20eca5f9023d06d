"""Blocks of GGUF's quantised types -> codes and scales: types that hold each weight's code as it is. Types with grids: grid_codes.py.

In: (blocks, bytes of a block) uint8. Out: `Coded`, in the order of the weights. float16 numbers are little-endian; in all of these types

    halves      n bytes hold 2 n weights of four bits: the lower halves are the first n, the upper ones the next n
    fields      32 bytes hold 128 weights of two bits: bits 0-1 are the first 32, bits 2-3 the next 32 ...

Source: ggml-common.h (the structs `block_*`) and ggml-quants.c (`dequantize_row_*`) of llama.cpp. Oracle: gguf.quants of the gguf package.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.ternary import pq2_0 as ternary_pq2_0
from bitnet_cli.ternary import ptq1_0 as ternary_ptq1_0
from bitnet_cli.ternary import q1_0 as ternary_q1_0
from bitnet_cli.ternary import q2_0 as ternary_q2_0
from bitnet_cli.ternary import tq1_0 as ternary_tq1_0
from bitnet_cli.ternary import tq2_0 as ternary_tq2_0

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Coded(NamedTuple):
    """w = scale code - minimum, in float32, the product rounded first. Codes: -127 to 127."""

    codes: NDArray[np.int8]  # (weights,)
    scales: Floats  # (groups,) of equally many weights, 16 or more
    minima: Floats | None = None  # (groups,)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # weights of IQ4_NL and IQ4_XS
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the floats with 2 bits of exponent and 1 of mantissa


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def signed(codes: Bytes, less: int = 0) -> NDArray[np.int8]:
    """(...) uint8 less a number -> (weights,) int8."""
    values: NDArray[np.int8] = codes.view(np.int8).reshape(-1)
    return values - np.int8(less) if less else values


def halves(packed: Bytes, n: int) -> Bytes:
    """(blocks, bytes) -> (blocks, bytes / n, 2, n): four bits a weight."""
    parts = packed.reshape(len(packed), -1, n)
    result = np.empty((*parts.shape[:2], 2, n), np.uint8)
    np.bitwise_and(parts, 15, out=result[:, :, 0])
    np.right_shift(parts, 4, out=result[:, :, 1])
    return result


def _fields(packed: Bytes) -> Bytes:
    """(blocks, 32 n) -> (blocks, n, 4, 32): two bits a weight."""
    parts = packed.reshape(len(packed), -1, 32)
    result = np.empty((*parts.shape[:2], 4, 32), np.uint8)
    for i in range(4):
        np.right_shift(parts, 2 * i, out=result[:, :, i])
    result &= 3
    return result


def _single_bits(packed: Bytes, size: int) -> Bytes:
    """(blocks, 32) -> (blocks, 8, 32): bit i of byte j, times `size`, at [i, j]."""
    result = np.empty((len(packed), 8, 32), np.uint8)
    for i in range(8):
        np.right_shift(packed, i, out=result[:, i])
    result &= 1
    result *= size
    return result


def _looked_up(codes: Bytes, table: tuple[int, ...]) -> NDArray[np.int8]:
    """table[code] for codes below 16: by bytes.translate, five times as fast as indexing."""
    whole = np.resize(np.array(table, np.int8), 256).tobytes()
    return np.frombuffer(codes.tobytes().translate(whole), np.int8)


def q4_0(blocks: Bytes) -> Coded:
    """32 weights in 18 bytes: d, halves of 16 bytes; d (q - 8)."""
    return Coded(signed(halves(blocks[:, 2:], 16), 8), half(blocks, 0)[:, 0])


def q4_1(blocks: Bytes) -> Coded:
    """32 weights in 20 bytes: d, m, halves of 16 bytes; d q + m."""
    return Coded(signed(halves(blocks[:, 4:], 16)), half(blocks, 0)[:, 0], -half(blocks, 2)[:, 0])


def _five_bits(bits: Bytes, fours: Bytes) -> Bytes:
    """(blocks, 4): a bit for each weight, from the lowest on; (blocks, 16): halves -> (blocks, 32)."""
    fifth: Bytes = np.unpackbits(np.ascontiguousarray(bits), axis=1, bitorder="little")
    return fifth << np.uint8(4) | halves(fours, 16).reshape(-1, 32)


def q5_0(blocks: Bytes) -> Coded:
    """32 weights in 22 bytes: d, 32 fifth bits, halves of 16 bytes; d (q - 16)."""
    return Coded(signed(_five_bits(blocks[:, 2:6], blocks[:, 6:]), 16), half(blocks, 0)[:, 0])


def q5_1(blocks: Bytes) -> Coded:
    """32 weights in 24 bytes: d, m, 32 fifth bits, halves of 16 bytes; d q + m."""
    return Coded(signed(_five_bits(blocks[:, 4:8], blocks[:, 8:])), half(blocks, 0)[:, 0], -half(blocks, 2)[:, 0])


def q8_0(blocks: Bytes) -> Coded:
    """32 weights in 34 bytes: d, 32 int8."""
    return Coded(signed(np.ascontiguousarray(blocks[:, 2:])), half(blocks, 0)[:, 0])


def q2_k(blocks: Bytes) -> Coded:
    """256 weights in 84 bytes: for each 16 a byte with s (lower half) and m, fields of 64 bytes, d, e; d s q - e m."""
    both = blocks[:, :16]
    scales, minima = half(blocks, 80) * (both & 15).astype(np.float32), half(blocks, 82) * (both >> 4).astype(np.float32)
    return Coded(signed(_fields(blocks[:, 16:80])), scales.reshape(-1), minima.reshape(-1))


def q3_k(blocks: Bytes) -> Coded:
    """256 weights in 110 bytes: third bits as 8 x 32, fields of 64 bytes, s of six bits for each 16, d; d (s - 32) (q - 4).

    s: the lower four bits of the 16 are halves of 8 bytes, the upper two fields of the next 4.
    """
    codes = _fields(blocks[:, 32:96]).reshape(-1, 8, 32) | _single_bits(blocks[:, :32], 4)
    low = halves(blocks[:, 96:104], 8).reshape(-1, 16)
    high = (blocks[:, 104:108, None].swapaxes(1, 2) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(-1, 16)
    small = (low | high << 4).astype(np.float32) - np.float32(32)
    return Coded(signed(codes, 4), (half(blocks, 108) * small).reshape(-1))


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """d s and e m for each 32 weights of a q4_K or q5_K block, which begins with d, e, and 12 bytes of six-bit s and m."""
    first, least, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = np.concatenate([first & 63, both & 15 | first >> 6 << 4], 1).astype(np.float32)
    m = np.concatenate([least & 63, both >> 4 | least >> 6 << 4], 1).astype(np.float32)
    return (half(blocks, 0) * s).reshape(-1), (half(blocks, 2) * m).reshape(-1)


def q4_k(blocks: Bytes) -> Coded:
    """256 weights in 144 bytes: d, e, 12 bytes of s and m, halves of four times 32 bytes; d s q - e m for each 32."""
    return Coded(signed(halves(blocks[:, 16:], 32)), *_scales_and_minima(blocks))


def q5_k(blocks: Bytes) -> Coded:
    """256 weights in 176 bytes: as q4_K, with fifth bits as 8 x 32 before the halves."""
    codes = halves(blocks[:, 48:], 32).reshape(-1, 8, 32)
    codes |= _single_bits(blocks[:, 16:48], 16)
    return Coded(signed(codes), *_scales_and_minima(blocks))


def q6_k(blocks: Bytes) -> Coded:
    """256 weights in 210 bytes: halves of twice 64 bytes, upper two bits as fields of 64, int8 s for each 16, d; d s (q - 32)."""
    codes = halves(blocks[:, :128], 64).reshape(-1, 2, 4, 32)
    codes |= _fields(blocks[:, 128:192]) << np.uint8(4)
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return Coded(signed(codes, 32), scales.reshape(-1))


def iq4_nl(blocks: Bytes) -> Coded:
    """32 weights in 18 bytes: d, halves of 16 bytes, which choose one of 16 numbers."""
    return Coded(_looked_up(halves(blocks[:, 2:], 16), _IQ4), half(blocks, 0)[:, 0])


def iq4_xs(blocks: Bytes) -> Coded:
    """256 weights in 136 bytes: d, upper two bits of s (a uint16), lower four, halves of eight times 16 bytes as IQ4_NL; d (s - 32)."""
    two = (blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1, 8)
    four = (blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    small = (four | two << 4).astype(np.float32) - np.float32(32)
    return Coded(_looked_up(halves(blocks[:, 8:], 16), _IQ4), (half(blocks, 0) * small).reshape(-1))


def mxfp4(blocks: Bytes) -> Coded:
    """32 weights in 17 bytes: an exponent, halves of 16 bytes of floats. The scale is 2^(exponent - 127), half of it for doubled codes."""
    scales = np.ldexp(np.float32(1), blocks[:, 0].astype(np.int32) - 128)
    return Coded(_looked_up(halves(blocks[:, 1:], 16), _E2M1), scales)


def nvfp4(blocks: Bytes) -> Coded:
    """64 weights in 36 bytes: a scale for each 16, then halves of 8 bytes of floats four times.

    A scale is a float with 4 bits of exponent (bias 7) and 3 of mantissa; 0x7F is 0 (ggml-impl.h, ggml_ue4m3_to_fp32).
    """
    number = np.arange(256)  # without sign: the eighth bit says nothing
    exponent, mantissa = number >> 3 & 15, number & 7
    table = np.where(exponent, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa * 2.0**-9).astype(np.float32) / np.float32(2)
    table[0x7F] = 0
    return Coded(_looked_up(halves(blocks[:, 4:], 8), _E2M1), table[blocks[:, :4]].reshape(-1))


def _ternary(layout: ModuleType, blocks: Bytes) -> Coded:
    """A layout of ternary/. Code 3 of those of two bits is +2."""
    return Coded(layout.unpack_rows(blocks.reshape(-1), layout.BLOCK).reshape(-1), half(blocks, layout.SCALE_AT)[:, 0])


def tq1_0(blocks: Bytes) -> Coded:
    """ternary/tq1_0.py."""
    return _ternary(ternary_tq1_0, blocks)


def tq2_0(blocks: Bytes) -> Coded:
    """ternary/tq2_0.py."""
    return _ternary(ternary_tq2_0, blocks)


def q2_0(blocks: Bytes) -> Coded:
    """ternary/q2_0.py."""
    return _ternary(ternary_q2_0, blocks)


def pq2_0(blocks: Bytes) -> Coded:
    """ternary/pq2_0.py."""
    return _ternary(ternary_pq2_0, blocks)


def ptq1_0(blocks: Bytes) -> Coded:
    """ternary/ptq1_0.py."""
    return _ternary(ternary_ptq1_0, blocks)


def q1_0(blocks: Bytes) -> Coded:
    """ternary/q1_0.py."""
    return _ternary(ternary_q1_0, blocks)
