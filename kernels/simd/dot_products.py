"""Products of one vector of float32 with several, in the order of the head's kernels (dense.py), whose sums stay in registers."""

import itertools
from typing import Any

from numba import types

from . import selected
from .floats import F32x16, float_sum, halves_at, product_sum
from .vectors import F32, I64, element_pointer, intrinsic


def _place(ctx: Any, b: Any, array_type: Any, array: Any, at: Any, i: int) -> Any:
    return b.bitcast(element_pointer(ctx, b, array_type, array, b.add(at, I64(16 * i))), F32x16.llvm.as_pointer())


def _weights(ctx: Any, b: Any, native: bool, kind: Any, array: Any, start: Any, half: int) -> Any:
    """16 of a row's weights, float32, or float16 in bytes."""
    if kind.dtype == types.float32:
        return b.load(_place(ctx, b, kind, array, start, half), align=4)
    return halves_at(b, native, element_pointer(ctx, b, kind, array, b.add(start, I64(32 * half))))


def operations(rows: int, tokens: int) -> tuple[Any, Any, Any, Any, Any]:
    """Sums of so many rows with so many tokens, a tuple, rows of a token together: of each 16 sums of even and 16 of odd groups of columns.

    no_sums()                                            all zero
    load_sums(array, at), store_sums(sums, array, at)    from and to 32 floats each
    add_step(sums, values, k, far, x, at, gap)           with values[k : k + 32], values[k + far : ...] ... of a row each, float32, or
                                                         float16 in bytes, times x[at : at + 32], x[at + gap : ...] ... of a token each
    keep(sums, out, at)                                  the totals -> out[at], out[at + 1] ...
    """
    kind, native = types.UniTuple(F32x16, 2 * rows * tokens), selected.FUSED

    @intrinsic
    def no_sums(typingctx: Any) -> Any:
        return kind(), lambda ctx, b, sig, args: ctx.make_tuple(b, kind, [F32x16.splat(0.0)] * kind.count)

    @intrinsic
    def load_sums(typingctx: Any, array: Any, at: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            return ctx.make_tuple(b, kind, [b.load(_place(ctx, b, array, args[0], args[1], i), align=4) for i in range(kind.count)])

        return kind(array, types.intp), codegen

    @intrinsic
    def store_sums(typingctx: Any, sums: Any, array: Any, at: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for i in range(kind.count):
                b.store(b.extract_value(args[0], i), _place(ctx, b, array, args[1], args[2], i), align=4)
            return ctx.get_dummy_value()

        return types.void(kind, array, types.intp), codegen

    @intrinsic
    def add_step(typingctx: Any, sums: Any, values: Any, k: Any, far: Any, x: Any, at: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            totals, data, first, far, activations, at, gap = args
            starts = [b.add(first, b.mul(far, I64(row))) for row in range(rows)]
            weights = [_weights(ctx, b, native, values, data, start, half) for start, half in itertools.product(starts, (0, 1))]
            result = []
            for t in range(tokens):
                token = b.add(at, b.mul(gap, I64(t)))
                halves = [b.load(_place(ctx, b, x, activations, token, half), align=4) for half in (0, 1)]
                for i in range(2 * rows):
                    total = b.extract_value(totals, 2 * rows * t + i)
                    result.append(product_sum(b, native, weights[i], halves[i % 2], total))
            return ctx.make_tuple(b, kind, result)

        return kind(kind, values, types.intp, types.intp, x, types.intp, types.intp), codegen

    @intrinsic
    def keep(typingctx: Any, sums: Any, out: Any, at: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for i in range(rows * tokens):
                both = b.fadd(b.extract_value(args[0], 2 * i), b.extract_value(args[0], 2 * i + 1))
                pointer = element_pointer(ctx, b, out, args[1], b.add(args[2], I64(i)))
                b.store(float_sum(b, both), b.bitcast(pointer, F32.as_pointer()), align=4)
            return ctx.get_dummy_value()

        return types.void(kind, out, types.intp), codegen

    return no_sums, load_sums, store_sums, add_step, keep
