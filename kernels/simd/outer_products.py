"""Tiles of sums for products of matrices of float32: rows x vectors of 16 sums, one tuple of registers, by one operation a step.

A step adds the outer product of `rows` single numbers and `vectors` vectors: each vector is loaded once for all rows, each number spread
over the lanes once for all vectors. Every sum is one chain of multiply-adds, so its bits do not depend on the tile it was part of.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import selected
from .floats import F32x16, bytes_to_f32
from .vectors import I8, I32, call, element_pointer, intrinsic


class Tile(NamedTuple):
    """What kernels call. Sums are in the order row 0 vector 0, row 0 vector 1 ..."""

    zero: Any  # () -> sums, all zero
    # (sums, left, at, stride, source, d) -> sums + left[at + row * stride] * right[place + vector * apart + d * step + lane],
    # source: (right, place, apart, step)
    more: Any
    store: Any  # (out, at, stride, sums): row r's vectors to out[at + r * stride ...]


_load_i8 = bytes_to_f32()


@intrinsic
def load_number(typingctx: Any, array: Any, offset: Any) -> Any:
    """16 numbers of a float32, float16 (uint16) or int8 array, as float32. Chosen when compiled; other bytes are read as int8."""
    return (_load_i8 if array.dtype.bitwidth == 8 else selected.load_float)._defn(typingctx, array, offset)


@intrinsic
def ask(typingctx: Any, ahead: Any, d: Any) -> Any:
    """ahead: (array, place, step): ask for 64 elements of the array from place + d * step on. Never faults. None: nothing happens."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not isinstance(ahead, types.NoneType):
            array, place, step = cgutils.unpack_tuple(b, args[0])
            at = b.add(place, b.mul(step, args[1]))
            start = b.bitcast(element_pointer(ctx, b, ahead[0], array, at), I8.as_pointer())
            for line in range(ahead[0].dtype.bitwidth // 8):
                call(b, "llvm.prefetch.p0", ir.VoidType(), [b.gep(start, [I32(64 * line)]), I32(0), I32(2), I32(1)])
        return ctx.get_dummy_value()

    return types.void(ahead, types.intp), codegen


@intrinsic
def moved(typingctx: Any, source: Any, vector: Any, d: Any) -> Any:
    """The source (array, place, apart, step) from a vector and a depth on."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        array, place, apart, step = cgutils.unpack_tuple(b, args[0])
        place = b.add(place, b.add(b.mul(apart, args[1]), b.mul(step, args[2])))
        return ctx.make_tuple(b, source, [array, place, apart, step])

    return source(source, types.intp, types.intp), codegen


def new_tile(rows: int, vectors: int) -> Tile:
    """A tile of rows * vectors registers of 16 floats."""
    sums = types.UniTuple(F32x16, rows * vectors)

    def _vector(b: Any, pointer: Any) -> Any:
        return b.bitcast(pointer, F32x16.llvm.as_pointer())

    @intrinsic
    def zero(typingctx: Any) -> Any:
        return sums(), lambda ctx, b, sig, args: ctx.make_tuple(b, sums, [F32x16.splat(0.0)] * (rows * vectors))

    @intrinsic
    def more(typingctx: Any, total: Any, left: Any, at: Any, stride: Any, source: Any, d: Any) -> Any:
        _, load = load_number._defn(typingctx, source[0], types.intp)
        _, fma = selected.fma._defn(typingctx, F32x16, F32x16, F32x16)

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            old = [b.extract_value(args[0], i) for i in range(rows * vectors)]
            right, place, apart, step = cgutils.unpack_tuple(b, args[4])
            place, loaded = b.add(place, b.mul(step, args[5])), []
            for _ in range(vectors):
                loaded.append(load(ctx, b, types.void(source[0], types.intp), [right, place]))
                place = b.add(place, apart)
            one, new = element_pointer(ctx, b, left, args[1], args[2]), []
            for row in range(rows):
                lane = b.insert_element(ir.Constant(F32x16.llvm, ir.Undefined), b.load(one), I32(0))
                spread = b.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(I32, 16), [0] * 16))
                new += [fma(ctx, b, None, [loaded[v], spread, old[row * vectors + v]]) for v in range(vectors)]
                one = b.gep(one, [args[3]])
            return ctx.make_tuple(b, sums, new)

        return sums(sums, left, types.intp, types.intp, source, types.intp), codegen

    @intrinsic
    def store(typingctx: Any, out: Any, at: Any, stride: Any, total: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            start = element_pointer(ctx, b, out, *args[:2])
            for row in range(rows):
                for v in range(vectors):
                    place = b.gep(start, [ir.Constant(args[1].type, 16 * v)])
                    b.store(b.extract_value(args[3], row * vectors + v), _vector(b, place), align=1)
                start = b.gep(start, [args[2]])
            return ctx.get_dummy_value()

        return types.void(out, types.intp, types.intp, sums), codegen

    return Tile(zero, more, store)
