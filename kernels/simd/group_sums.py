"""Sums of rows with a scale a group: what grouped.py needs beside tiles.py. Rows stand in lanes (group_rows.py).

Sums of a unit of weights are integers in registers, a tuple of them: of each token the registers of rows, one after the other. `begin`
makes them, steps add products, `fold` multiplies them by scales and adds them to float totals in memory, one fused multiply-add each.
"""

from typing import Any

from llvmlite import ir
from numba import types

from ..group_rows import LINE, ROWS
from . import selected, tiles
from .vectors import F32, F64, I32, I64, Vector, call, element_pointer, intrinsic, loader

WIDTH, LANES = selected.WIDTH, tiles.LANES
PARTS = LINE // WIDTH  # registers of a panel's word
WIDE_SUMS = selected.STEPS_PER_FOLD > 1 << 20  # sums are int32 at once, and can begin with anything
_Words, _Floats = Vector(I32, LANES), Vector(F32, LANES)
load_floats = loader(_Floats)
_SHIFTS = (0, 2, 4, 6)  # of the fields of a byte


def _at(ctx: Any, b: Any, kind: Any, array: Any, place: Any, vector: Vector) -> Any:
    return b.bitcast(element_pointer(ctx, b, kind, array, place), vector.llvm.as_pointer())


def _fused(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once. Without an instruction for it: in float64, the sum rounded to odd, so that rounding to float32 is right."""
    if selected.FUSED:
        return call(b, f"llvm.fma.v{LANES}f32", _Floats.llvm, [x, y, z])
    wide, bits = Vector(F64, LANES), Vector(I64, LANES)
    x, y, z = (b.fpext(value, wide.llvm) for value in (x, y, z))
    product = b.fmul(x, y)
    total = b.fadd(product, z)
    part = b.fsub(total, product)
    lost = b.fadd(b.fsub(product, b.fsub(total, part)), b.fsub(z, part))
    raw, none = b.bitcast(total, bits.llvm), wide.splat(0.0)
    even = b.icmp_signed("==", b.and_(raw, bits.splat(1)), bits.splat(0))
    further = b.icmp_signed(">=", b.xor(raw, b.bitcast(lost, bits.llvm)), bits.splat(0))  # signs are equal
    odd = b.add(raw, b.select(further, bits.splat(1), bits.splat(-1)))
    raw = b.select(b.and_(even, b.fcmp_ordered("!=", lost, none)), odd, raw)
    return b.fptrunc(b.bitcast(raw, wide.llvm), _Floats.llvm)


def operations(blocks: int, tokens: int, spread: int = 1) -> tuple[Any, Any]:
    """Of sums of `blocks` registers of rows with so many tokens; spread 4: each in four parts, of fields that stand 0, 2, 4 and 6 bits up.

    begin(minus, at, gap)     minus: int32, what sums of a token begin with at minus[at], minus[at + gap] ...
    fold(sums, minus, steps, at, gap, scales, scale_at, (totals, place, line))
                              totals[place + t * line + row] += sum * (scales[scale_at + row] * steps[at + t * gap]), each addition fused
    """
    kind = types.UniTuple(selected.LaneSums, blocks * tokens * spread)

    def words(ctx: Any, b: Any, array: Any, place: Any, number: int) -> Any:
        """The number of token `number` in every lane. place: data, at, gap."""
        data, at, gap = place
        value = b.load(element_pointer(ctx, b, array, data, b.add(at, b.mul(gap, I64(number)))))
        return tiles.repeated(b, value, _Words if array.dtype == types.int32 else _Floats)

    @intrinsic
    def begin(typingctx: Any, minus: Any, at: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            nothing, sums = selected.LaneSums.splat(0), []
            for t in range(tokens):
                first = words(ctx, b, minus, args, t) if WIDE_SUMS else nothing
                sums += [first if i < blocks else nothing for i in range(blocks * spread)]
            return ctx.make_tuple(b, kind, sums)

        return kind(minus, types.intp, types.intp), codegen

    @intrinsic
    def fold(typingctx: Any, sums: Any, minus: Any, steps: Any, at: Any, gap: Any, scales: Any, scale_at: Any, to: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            sums_value, minus_value, steps_value, start, far, scales_value, scale_start, where = args
            totals_value, first, row = (b.extract_value(where, i) for i in range(3))
            if 2 * blocks * tokens > selected.REGISTERS:  # or LLVM carries totals from unit to unit on the stack, and stores them twice
                first = b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [first], side_effect=True)
            factors = [
                b.load(_at(ctx, b, scales, scales_value, b.add(scale_start, I64(i * LANES)), _Floats), align=4) for i in range(blocks)
            ]
            for t in range(tokens):
                step = words(ctx, b, steps, (steps_value, start, far), t)
                for i in range(blocks):
                    found = [b.extract_value(sums_value, (t * spread + field) * blocks + i) for field in range(spread)]
                    total = found.pop()
                    while found:
                        total = b.add(b.ashr(total, _Words.splat(2)), found.pop())
                    if not WIDE_SUMS:
                        total = selected.lane_fold(b, words(ctx, b, minus, (minus_value, start, far), t), total)
                    pointer = _at(ctx, b, to[0], totals_value, b.add(first, b.add(b.mul(row, I64(t)), I64(i * LANES))), _Floats)
                    factor = b.fmul(factors[i], step)
                    b.store(_fused(b, b.sitofp(total, _Floats.llvm), factor, b.load(pointer, align=4)), pointer, align=4)
            return ctx.get_dummy_value()

        return types.void(kind, minus, steps, types.intp, types.intp, scales, types.intp, to), codegen

    return begin, fold


def packed_step(panels: int, tokens: int, spread: int = 1) -> Any:
    """`add_word(sums, packed, at, step, values, first, gap)`: sums and the products of a word of each row of `panels` panels.

    The first panel's words are at packed[at], the next one's `step` bytes further on; a token's 16 activations at values[first], the next
    one's at values[first + gap]. They stand as they meet the words: those of the lowest two bits of each byte, then the next.
    """
    blocks = panels * PARTS
    kind = types.UniTuple(selected.LaneSums, blocks * tokens * spread)

    @intrinsic
    def add_word(typingctx: Any, sums: Any, packed: Any, at: Any, step: Any, values: Any, first: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            totals, data, start, far, activations, place, line = args
            result = [b.extract_value(totals, i) for i in range(kind.count)]
            lines = []
            for i in range(blocks):
                where = b.add(start, b.add(b.mul(far, I64(i // PARTS)), I64(i % PARTS * WIDTH)))
                lines.append(b.load(_at(ctx, b, packed, data, where, selected.Bytes), align=1))
            for field in range(4):
                codes = [_standing(b, v, field) if spread > 1 else tiles.two_bits(b, v, _SHIFTS[field]) for v in lines]
                for t in range(tokens):
                    where = b.add(b.add(place, I64(4 * field)), b.mul(line, I64(t)))
                    word = b.load(b.bitcast(element_pointer(ctx, b, values, activations, where), I32.as_pointer()), align=1)
                    x = b.bitcast(tiles.repeated(b, word, _Words), selected.Bytes.llvm)
                    for i in range(blocks):
                        at_sum = (t * spread + field % spread) * blocks + i
                        result[at_sum] = selected.products(b, result[at_sum], codes[i], x)
            return ctx.make_tuple(b, kind, result)

        return kind(kind, packed, types.intp, types.intp, values, types.intp, types.intp), codegen

    return add_word


def _standing(b: Any, words: Any, field: int) -> Any:
    return b.and_(words, selected.Bytes.splat(3 << _SHIFTS[field]))


@intrinsic
def weights(typingctx: Any, codes: Any) -> Any:
    """Codes 0 to 3 -> -1 to 2."""
    return codes(codes), lambda ctx, b, sig, args: b.sub(args[0], selected.Bytes.splat(1))


@intrinsic
def turned(typingctx: Any, v: Any) -> Any:
    """16 activations as they meet a word: every fourth from the first on, then from the second."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        order = [4 * i + field for field in range(4) for i in range(4)]
        return b.shuffle_vector(args[0], args[0], ir.Constant(ir.VectorType(I32, ROWS), order))

    return v(v), codegen
