"""The head: a dense matrix, (rows, cols) of float32, float16 or q8_0, times one float32 vector. Twin: naive/dense.py.

`data` is a flat byte array, the matrix begins at byte `offset`. q8_0: blocks of 32 weights in 34 bytes, a float16 scale and 32 int8.
Decode reads every byte once: the loops are written for memory speed, with software prefetch.
"""

from .arrays import HEAD_F16, HEAD_F32
from .jit import kernel
from .simd import selected, vectors

PREFETCH = 4096
load_f16, fma = selected.load_f16, selected.fma
load_f32, zero, add, mul, splat, total = (
    vectors.load_f32,
    vectors.zero_f32,
    vectors.add_f32,
    vectors.mul_f32,
    vectors.splat_f32,
    vectors.total_f32,
)
load_i8 = vectors.bytes_to_f32()
first_lane = vectors.first_lane
prefetch = vectors.prefetch


@kernel
def row_bytes(kind, cols):  # type: ignore[no-untyped-def]
    """Bytes of one row."""
    if kind == HEAD_F32:
        return cols * 4
    return cols * 2 if kind == HEAD_F16 else cols // 32 * 34


@kernel
def _row_f32(data, at, cols, x):  # type: ignore[no-untyped-def]
    a, b = zero(), zero()
    for k in range(0, cols, 32):
        prefetch(data, at + k * 4 + PREFETCH)
        prefetch(data, at + k * 4 + 64 + PREFETCH)
        a = fma(load_f32(data, at + k * 4), load_f32(x, k), a)
        b = fma(load_f32(data, at + k * 4 + 64), load_f32(x, k + 16), b)
    return total(add(a, b))


@kernel
def _row_f16(data, at, cols, x):  # type: ignore[no-untyped-def]
    a, b = zero(), zero()
    for k in range(0, cols, 32):
        prefetch(data, at + k * 2 + PREFETCH)
        a = fma(load_f16(data, at + k * 2), load_f32(x, k), a)
        b = fma(load_f16(data, at + k * 2 + 32), load_f32(x, k + 16), b)
    return total(add(a, b))


@kernel
def _row_q8_0(data, at, cols, x):  # type: ignore[no-untyped-def]
    sums = zero()
    for k in range(0, cols, 32):
        block = at + k // 32 * 34
        prefetch(data, block + PREFETCH)
        scale = splat(first_lane(load_f16(data, block)))  # reads into the block's own weights, never past it
        part = mul(load_i8(data, block + 2), load_f32(x, k))
        part = fma(load_i8(data, block + 18), load_f32(x, k + 16), part)
        sums = fma(part, scale, sums)
    return total(sums)


@kernel
def head_matvec(data, offset, kind, cols, x, out, first, last):  # type: ignore[no-untyped-def]
    """out[r] = sum_c W[r, c] * x[c] for first <= r < last. x: (cols,) float32, cols a multiple of 32; out: (rows,) float32."""
    stride = row_bytes(kind, cols)
    for r in range(first, last):
        at = offset + r * stride
        if kind == HEAD_F16:
            out[r] = _row_f16(data, at, cols, x)
        elif kind == HEAD_F32:
            out[r] = _row_f32(data, at, cols, x)
        else:
            out[r] = _row_q8_0(data, at, cols, x)
