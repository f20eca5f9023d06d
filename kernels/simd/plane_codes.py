"""Codes of the head's planes (head_planes.py), whose bits lie in registers of their own, with the activations of several tokens at once.

They are put together in registers, so each makes one product and not two or three. Those of six bits are up to 63: too large for int16
sums of many steps, so every product is widened to int32 at once where a set does not do that itself. All eight need a set with ANY_BYTE.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import selected
from .tiles import LANES, ask
from .vectors import I16, I32, I64, Vector, element_pointer, intrinsic, sums_of_four

WIDTH = selected.WIDTH
_Words = Vector(I32, LANES)
_WIDE = selected.LaneSums.llvm == _Words.llvm  # products are sums of int32 already


def _bits(b: Any, value: Any, shift: int, mask: int) -> Any:
    """Bits of each byte, shifted to the right (to the left, where shift is negative). In 16-bit lanes: x86 shifts no others."""
    halves = ir.VectorType(I16, WIDTH // 2)
    move, count = (b.lshr, shift) if shift > 0 else (b.shl, -shift)
    value = b.bitcast(move(b.bitcast(value, halves), ir.Constant(halves, [count] * halves.count)), selected.Bytes.llvm) if shift else value
    return b.and_(value, selected.Bytes.splat(mask))


def _added(b: Any, sums: Any, codes: Any, x: Any) -> Any:
    """int32 sums + the products of four neighbours each."""
    if _WIDE:
        return selected.products(b, sums, codes, x)
    return selected.lane_fold(b, sums, selected.products(b, selected.LaneSums.splat(0), codes, x))


def _byte_pointer(ctx: Any, b: Any, kind: Any, array: Any, at: Any) -> Any:
    return b.bitcast(element_pointer(ctx, b, kind, array, at), selected.Bytes.llvm.as_pointer())


def _codes(b: Any, four: list[Any], two: Any, last: Any, field: int) -> Any:
    """Of a field of each plane, the codes: six bits, or eight where there are last ones."""
    if last is None:
        return b.or_(_bits(b, four[field // 2], 2 if field % 2 else -2, 60), _bits(b, two, 6 - 2 * field, 3))
    upper = b.or_(_bits(b, four[field // 2], 0 if field % 2 else -4, 240), _bits(b, two, 4 - 2 * field, 12))
    return b.or_(upper, _bits(b, last, 6 - 2 * field, 3))


def eight_bits(ctx: Any, b: Any, kinds: Any, planes: Any, start: Any, left: Any, ahead: Any) -> list[Any]:
    """Whole codes of a row, field by field, from byte `start` of the plane of the last bits on. Asks for what is at byte `ahead`, in L2."""
    six, low = cgutils.unpack_tuple(b, planes)
    for kind, array, registers in ((kinds[0], six, 3), (kinds[1], low, 1)):
        ask(ctx, b, kind, array, b.mul(ahead, I64(registers)), registers, 2)
    first = b.mul(start, I64(3))
    two, *four = (b.load(_byte_pointer(ctx, b, kinds[0], six, b.add(first, I64(part * WIDTH))), align=1) for part in range(3))
    last = b.load(_byte_pointer(ctx, b, kinds[1], low, start), align=1)
    return [_codes(b, four, two, last, field) for field in range(4)]


def operations(rows: int, tokens: int, bits: int) -> tuple[Any, Any, Any]:
    """Sums of so many rows, a multiple of 2, with so many tokens, kept in registers: a tuple, tokens one after the other. bits: 6 or 8.

    no_sums()                                   all zero
    add_step(sums, (six, low), starts, ahead,   with the rows that begin at bytes starts[i] of `six`: of each three registers from 3 byte
             byte, values, first, gap)          on, of eight bits one of `low` too, and the activations of a token each from values[first],
                                                values[first + gap] ... on; meanwhile asks for as many bytes of the rows at ahead[i]
    keep(sums, out, place, row_gap, gap)        the sums over the lanes -> int32 out[place + row * row_gap + token * gap]
    """
    kind, places = types.UniTuple(_Words, rows * tokens), types.UniTuple(types.int64, rows)

    @intrinsic
    def no_sums(typingctx: Any) -> Any:
        return kind(), lambda ctx, b, sig, args: ctx.make_tuple(b, kind, [_Words.splat(0)] * kind.count)

    @intrinsic
    def add_step(typingctx: Any, sums: Any, planes: Any, starts: Any, ahead: Any, byte: Any, values: Any, first: Any, gap: Any) -> Any:
        six, low = planes

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            totals, both, starts, ahead, byte, activations, first, gap = args
            upper, last = cgutils.unpack_tuple(b, both)
            loaded, thrice = [], b.mul(byte, I64(3))
            for row in range(rows):
                start, far = b.extract_value(starts, row), b.extract_value(ahead, row)
                ask(ctx, b, six, upper, b.add(far, thrice), 3, 3)
                pointers = [_byte_pointer(ctx, b, six, upper, b.add(b.add(start, thrice), I64(part * WIDTH))) for part in range(3)]
                if bits == 8:
                    ask(ctx, b, low, last, b.add(b.udiv(far, I64(3)), byte), 1, 3)
                    pointers.append(_byte_pointer(ctx, b, low, last, b.add(b.udiv(start, I64(3)), byte)))
                loaded.append([b.load(pointer, align=1) for pointer in pointers])
            result = [b.extract_value(totals, i) for i in range(kind.count)]
            for field in range(4):
                codes = [_codes(b, lines[1:3], lines[0], lines[3] if bits == 8 else None, field) for lines in loaded]
                for t in range(tokens):
                    place = b.add(b.add(first, b.mul(gap, I64(t))), b.add(b.shl(byte, I64(2)), I64(field * WIDTH)))
                    x = b.load(_byte_pointer(ctx, b, values, activations, place), align=1)
                    for row in range(rows):
                        result[rows * t + row] = _added(b, result[rows * t + row], codes[row], x)
            return ctx.make_tuple(b, kind, result)

        return kind(kind, planes, places, places, types.intp, values, types.intp, types.intp), codegen

    @intrinsic
    def keep(typingctx: Any, sums: Any, out: Any, place: Any, row_gap: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for start in range(0, kind.count, 4):
                totals = sums_of_four(b, [b.extract_value(args[0], start + i) for i in range(4)])
                for i in range(4):
                    token, row = divmod(start + i, rows)
                    at = b.add(args[2], b.add(b.mul(args[3], I64(row)), b.mul(args[4], I64(token))))
                    b.store(b.extract_element(totals, I32(i)), element_pointer(ctx, b, out, args[1], at), align=4)
            return ctx.get_dummy_value()

        return types.void(kind, out, *[types.intp] * 3), codegen

    return no_sums, add_step, keep
