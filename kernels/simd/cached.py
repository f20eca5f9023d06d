"""Loads of packed keys and values (kv_cache.py) as float32: codes less their middle, not yet multiplied by their step.

Arrays are those of one head. What they hold is told by their type: int8 is q8; uint8 is q4, or q3 where there is one dimension more.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from . import selected
from .floats import F32x16, I32x16
from .vectors import I8, I16, I32, call, element_pointer, intrinsic

KEY_DIMENSIONS, VALUE_DIMENSIONS = 3, 2
_TABLE = selected.WIDTH == 64 and selected.REGISTERS == 32  # AVX-512: vpermps looks up 16 floats by the lower 4 bits of each lane
_Four = types.UniTuple(F32x16, 4)
Codes = Callable[[Any, Any, int], Any]


def bits_of(array: Any, dimensions: int) -> int:
    """Bits a code of an array's Numba type."""
    if array.dtype == types.int8:
        return 8
    return 4 if array.ndim == dimensions else 3


def _bytes(b: Any, pointer: Any, count: int, offset: Any) -> Any:
    place = b.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(ir.IntType(64), offset)])
    return b.load(b.bitcast(place, ir.VectorType(I8, count).as_pointer()), align=1)


def _shifted(b: Any, value: Any, *amounts: int) -> Any:
    """Each lane shifted right, lane i by amounts[i % len(amounts)]."""
    if not any(amounts):
        return value
    return b.lshr(value, ir.Constant(value.type, [amounts[i % len(amounts)] for i in range(16)]))


def _signed(b: Any, value: Any) -> Any:
    return b.sitofp(b.sext(value, I32x16.llvm), F32x16.llvm)


def _looked_up(b: Any, word: Any, bits: int) -> Any:
    """The lowest `bits` bits of each lane, less their middle 7.5 or 3.5. Higher bits do not matter."""
    middle, mask = (2**bits - 1) / 2, 2**bits - 1
    if _TABLE:
        table = ir.Constant(F32x16.llvm, [float(i & mask) - middle for i in range(16)])
        return call(b, "llvm.x86.avx512.permvar.sf.512", F32x16.llvm, [table, word])
    return b.fsub(b.sitofp(b.and_(word, I32x16.splat(mask)), F32x16.llvm), F32x16.splat(middle))


def _two_nibbles(b: Any, packed: Any) -> list[Any]:
    word = b.zext(packed, I32x16.llvm)
    return [_looked_up(b, _shifted(b, word, shift), 4) for shift in (0, 4)]


def _keys(b: Any, pointer: Any, bits: int, row: Any, half: int) -> list[Any]:
    """Rows `half * 4` and three more of the 8 from `row` on."""
    start = b.mul(row, ir.Constant(row.type, 2 * bits))  # bytes: 16 lanes of `bits` bits
    data = b.gep(pointer, [start])
    if bits == 8:
        return [_signed(b, _bytes(b, data, 16, 64 * half + 16 * i)) for i in range(4)]
    if bits == 4:
        return [code for i in range(2) for code in _two_nibbles(b, _bytes(b, data, 16, 32 * half + 16 * i))]
    low, high = (b.zext(_bytes(b, data, 16, 16 * (half + i)), I32x16.llvm) for i in range(2))
    word = b.or_(low, b.shl(high, I32x16.splat(8)))  # 16 of the 24 bits, from bit 0 or 8 on
    return [_looked_up(b, _shifted(b, word, 4 * half + 3 * i), 3) for i in range(4)]


def _four_keys(half: int) -> Any:
    @intrinsic
    def four_keys(typingctx: Any, array: Any, row: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, array, args[0], ir.Constant(args[1].type, 0))
            vectors = _keys(b, pointer, bits_of(array, KEY_DIMENSIONS), args[1], half)
            return ctx.make_tuple(b, _Four, vectors)

        return _Four(array, types.intp), codegen

    return four_keys


# four keys(array, row): elements row .. row + 3, or row + 4 .. row + 7, of 16 keys; row counts rows of 16, and is a multiple of 8.
lower_keys, upper_keys = _four_keys(0), _four_keys(1)


@intrinsic
def four_values(typingctx: Any, array: Any, at: Any, second: Any, third: Any, fourth: Any) -> Any:
    """64 elements from byte `at` on. The following 16 bytes are taken at at + second, third, fourth: 16, 32, 48, or less at a row's end."""
    bits = bits_of(array, VALUE_DIMENSIONS)

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        data = element_pointer(ctx, b, array, *args[:2])
        if bits == 8:
            vectors = [_signed(b, _bytes(b, data, 16, offset)) for offset in (0, *args[2:])]
        elif bits == 4:
            vectors = [code for offset in (0, args[2]) for code in _two_nibbles(b, _bytes(b, data, 16, offset))]
        else:
            # Lane i has bits 12 i .. 12 i + 11: two bytes from 3 i / 2 on, in odd lanes shifted by 4.
            packed = _bytes(b, data, 24, 0)
            index = ir.Constant(ir.VectorType(I32, 32), [3 * i // 2 + part for i in range(16) for part in range(2)])
            pairs = b.bitcast(b.shuffle_vector(packed, ir.Constant(packed.type, [0] * 24), index), ir.VectorType(I16, 16))
            word = b.zext(pairs, I32x16.llvm)
            vectors = [_looked_up(b, _shifted(b, word, 3 * i, 3 * i + 4), 3) for i in range(4)]
        return ctx.make_tuple(b, _Four, vectors)

    return _Four(array, types.intp, types.intp, types.intp, types.intp), codegen


@intrinsic
def value_bits(typingctx: Any, array: Any) -> Any:
    """8, 4 or 3: known when compiled."""
    bits = bits_of(array, VALUE_DIMENSIONS)
    return types.int64(array), lambda ctx, b, sig, args: ir.Constant(ir.IntType(64), bits)


@intrinsic
def load_steps(typingctx: Any, array: Any, offset: Any) -> Any:
    """16 steps, upper halves of float32, as float32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(ctx, b, array, *args)
        halves = b.load(b.bitcast(pointer, ir.VectorType(I16, 16).as_pointer()), align=1)
        return b.bitcast(b.shl(b.zext(halves, I32x16.llvm), I32x16.splat(16)), F32x16.llvm)

    return F32x16(array, types.intp), codegen


def _in_place(head: Any) -> bool:
    """Whether each number of a head's cache has a place of its own: of the arrays, `keys` is the first."""
    return bool(head[0].dtype != types.uint8)


@intrinsic
def in_place(typingctx: Any, head: Any) -> Any:
    """Whether keys and values can be read without a panel. Known when compiled."""
    value = _in_place(head)
    return types.boolean(head), lambda ctx, b, sig, args: ir.Constant(ir.IntType(1), value)


@intrinsic
def unit_size(typingctx: Any, head: Any) -> Any:
    """Elements of `keys` and `values` that hold 64 numbers."""
    size = 64 if _in_place(head) else 8 * bits_of(head[0], KEY_DIMENSIONS)
    return types.int64(head), lambda ctx, b, sig, args: ir.Constant(ir.IntType(64), size)


@intrinsic
def if_unpacked(typingctx: Any, head: Any, ahead: Any) -> Any:
    """`ahead` for caches that are always unpacked; None for those that are where queries are many, and time for reading is plenty."""
    if _in_place(head):
        return types.none(head, ahead), lambda ctx, b, sig, args: ctx.get_dummy_value()
    return ahead(head, ahead), lambda ctx, b, sig, args: args[1]
