"""Steps of arithmetic on values that stay in registers, each of which is computed: for peak.py, which measures what arithmetic can do."""

import platform
from typing import Any

from llvmlite import ir
from numba import types

from . import selected
from .floats import F32x16
from .vectors import I32, I64, call, element_pointer, intrinsic

_CONSTRAINT = {"x86_64": "v", "amd64": "v", "aarch64": "w", "arm64": "w"}.get(platform.machine().lower())  # any vector register
_SIZE = selected.WIDTH if selected.__name__.rpartition(".")[2].startswith(("amx", "avx")) else 16  # bytes of one


def _unknown(b: Any, value: Any) -> Any:
    """The same bytes, of which LLVM no longer knows where it comes from: an empty piece of assembly may have changed it."""
    if _CONSTRAINT is None:
        return value
    whole = value.type.count

    def chosen(x: Any, y: Any, first: int, last: int) -> Any:
        return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, last - first), list(range(first, last))))

    parts = [chosen(value, value, start, start + _SIZE) for start in range(0, whole, _SIZE)]
    kind = ir.FunctionType(parts[0].type, [parts[0].type])
    parts = [b.asm(kind, "", f"={_CONSTRAINT},0", [part], side_effect=True) for part in parts]
    while len(parts) > 1:
        parts = [chosen(x, y, 0, 2 * x.type.count) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def product_step(sums: int) -> Any:
    """`step(sums, codes, values)`: to each of so many LaneSums, the products of the same two registers of bytes."""
    kind = types.UniTuple(selected.LaneSums, sums)

    @intrinsic
    def step(typingctx: Any, totals: Any, codes: Any, values: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            result, x = [], args[2]
            for i in range(sums):
                x = _unknown(b, x)
                result.append(selected.products(b, b.extract_value(args[0], i), args[1], x))
            return ctx.make_tuple(b, kind, result)

        return kind(kind, selected.Bytes, selected.Bytes), codegen

    return step


def float_steps(sums: int) -> tuple[Any, Any, Any]:
    """`step(sums, x)`: to each of so many F32x16, x times x, fused where the CPU does that; `load(array)` and `store(sums, array)` of them.

    LLVM may neither reorder nor join sums of floats, if it does not know what they begin with.
    """
    kind = types.UniTuple(F32x16, sums)

    def places(ctx: Any, b: Any, kind: Any, array: Any) -> list[Any]:
        return [b.bitcast(element_pointer(ctx, b, kind, array, I64(16 * i)), F32x16.llvm.as_pointer()) for i in range(sums)]

    @intrinsic
    def step(typingctx: Any, totals: Any, x: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            each = [b.extract_value(args[0], i) for i in range(sums)]
            return ctx.make_tuple(b, kind, [call(b, "llvm.fmuladd.v16f32", F32x16.llvm, [args[1], args[1], total]) for total in each])

        return kind(kind, F32x16), codegen

    @intrinsic
    def load(typingctx: Any, array: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            return ctx.make_tuple(b, kind, [b.load(place, align=4) for place in places(ctx, b, array, args[0])])

        return kind(array), codegen

    @intrinsic
    def store(typingctx: Any, totals: Any, array: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for i, place in enumerate(places(ctx, b, array, args[1])):
                b.store(b.extract_value(args[0], i), place, align=4)
            return ctx.get_dummy_value()

        return types.void(kind, array), codegen

    return step, load, store
