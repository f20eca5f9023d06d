"""Tiles of sums for products of matrices of float32: rows x vectors of 16 sums, one tuple of registers, by one operation a step.

A step adds the outer product of `rows` single numbers and `vectors` vectors: each vector is loaded once for all rows, each number spread
over the lanes once for all vectors. Every sum is one chain of multiply-adds, so its bits do not depend on the tile it was part of.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import cached, selected
from .floats import F32x16
from .vectors import I8, I32, call, element_pointer, intrinsic


class Tile(NamedTuple):
    """What kernels call. Sums are in the order row 0 vector 0, row 0 vector 1 ..."""

    zero: Any  # () -> sums, all zero
    # (sums, left, at, stride, source, d, ahead) -> sums + left[at + row * stride] * right[place + vector * apart + d * step + lane],
    # source: (right, place, apart, step); right: what cached.numbers_at takes. Of all depths that lie together in it, from d on.
    more: Any
    store: Any  # (out, at, stride, sums): row r's vectors to out[at + r * stride ...]


def _ask(ctx: Any, b: Any, kind: Any, ahead: Any, d: Any, depths: int) -> None:
    array, place, step = cgutils.unpack_tuple(b, ahead)
    start = b.bitcast(cached.place_in(ctx, b, kind[0], array, b.add(place, b.mul(step, d))), I8.as_pointer())
    for line in range(cached.unit_bytes(kind[0]) * depths // 64 or 1):
        call(b, "llvm.prefetch.p0", ir.VoidType(), [b.gep(start, [I32(64 * line)]), I32(0), I32(2), I32(1)])


@intrinsic
def ask(typingctx: Any, ahead: Any, d: Any) -> Any:
    """ahead: (array, place, step): ask for 64 numbers of what the array holds, from place + d * step on. Never faults."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        _ask(ctx, b, ahead, args[0], args[1], 1)
        return ctx.get_dummy_value()

    return types.void(ahead, types.intp), codegen


@intrinsic
def depths(typingctx: Any, source: Any) -> Any:
    """How many depths one step takes. Known when compiled."""
    count = cached.depths_together(source[0])
    return types.int64(source), lambda ctx, b, sig, args: ir.Constant(ir.IntType(64), count)


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
    def more(typingctx: Any, total: Any, left: Any, at: Any, stride: Any, source: Any, d: Any, ahead: Any) -> Any:
        _, fma = selected.fma._defn(typingctx, F32x16, F32x16, F32x16)

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            now = [b.extract_value(args[0], i) for i in range(rows * vectors)]
            right, place, apart, step = cgutils.unpack_tuple(b, args[4])
            first, place = element_pointer(ctx, b, left, args[1], args[2]), b.add(place, b.mul(step, args[5]))
            if not isinstance(ahead, types.NoneType):
                _ask(ctx, b, ahead, args[6], args[5], cached.depths_together(source[0]))
            for depth, loaded in enumerate(cached.numbers_at(ctx, b, source[0], right, place, apart, vectors)):
                one = b.gep(first, [ir.Constant(args[5].type, depth)])
                for row in range(rows):
                    lane = b.insert_element(ir.Constant(F32x16.llvm, ir.Undefined), b.load(one), I32(0))
                    spread = b.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(I32, 16), [0] * 16))
                    for v in range(vectors):
                        now[row * vectors + v] = fma(ctx, b, None, [loaded[v], spread, now[row * vectors + v]])
                    one = b.gep(one, [args[3]])
            return ctx.make_tuple(b, sums, now)

        return sums(sums, left, types.intp, types.intp, source, types.intp, ahead), codegen

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
