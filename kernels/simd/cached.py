"""Loads of packed keys and values (kv_cache.py) as float32: codes less their middle, not yet multiplied by their step.

Arrays are those of one head. What they hold is told by their type: int8 is q8; uint8 is q4, or q3 where there is one dimension more.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from . import selected
from .floats import F32x16, I32x16, bytes_to_f32
from .vectors import I8, I16, I32, call, element_pointer, flattened, intrinsic

KEY_DIMENSIONS, VALUE_DIMENSIONS = 3, 2
_load_i8 = bytes_to_f32()
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


def _two_nibbles(b: Any, packed: Any) -> Iterator[Any]:
    word = b.zext(packed, I32x16.llvm)
    yield from (_looked_up(b, _shifted(b, word, shift), 4) for shift in (0, 4))


def _key_codes(b: Any, data: Any, bits: int, half: int) -> Iterator[Any]:
    """Elements `half * 4` and three more of the 8 elements of 16 keys at a place, one by one: what is not needed yet takes no register."""
    if bits == 8:
        yield from (_signed(b, _bytes(b, data, 16, 64 * half + 16 * i)) for i in range(4))
    elif bits == 4:
        for i in range(2):
            yield from _two_nibbles(b, _bytes(b, data, 16, 32 * half + 16 * i))
    else:
        low, high = (b.zext(_bytes(b, data, 16, 16 * (half + i)), I32x16.llvm) for i in range(2))
        word = b.or_(low, b.shl(high, I32x16.splat(8)))  # 16 of the 24 bits, from bit 0 or 8 on
        yield from (_looked_up(b, _shifted(b, word, 4 * half + 3 * i), 3) for i in range(4))


def _four_keys(half: int) -> Any:
    @intrinsic
    def four_keys(typingctx: Any, array: Any, row: Any) -> Any:
        bits = bits_of(array, KEY_DIMENSIONS)

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            start = b.mul(args[1], ir.Constant(args[1].type, 2 * bits))  # bytes: 16 lanes of `bits` bits
            data = element_pointer(ctx, b, array, args[0], start)
            return ctx.make_tuple(b, _Four, list(_key_codes(b, data, bits, half)))

        return _Four(array, types.intp), codegen

    return four_keys


# four keys(array, row): elements row .. row + 3, or row + 4 .. row + 7, of 16 keys; row counts rows of 16, and is a multiple of 8.
lower_keys, upper_keys = _four_keys(0), _four_keys(1)


def _values(b: Any, data: Any, bits: int, *offsets: Any) -> list[Any]:
    """64 elements of a value at a place; offsets of their second, third and fourth 16 bytes, where there are so many."""
    if bits == 8:
        return [_signed(b, _bytes(b, data, 16, offset)) for offset in (0, *offsets)]
    if bits == 4:
        return [code for offset in (0, offsets[0]) for code in _two_nibbles(b, _bytes(b, data, 16, offset))]
    # Lane i has bits 12 i .. 12 i + 11: two bytes from 3 i / 2 on, in odd lanes shifted by 4.
    packed = _bytes(b, data, 24, 0)
    index = ir.Constant(ir.VectorType(I32, 32), [3 * i // 2 + part for i in range(16) for part in range(2)])
    pairs = b.bitcast(b.shuffle_vector(packed, ir.Constant(packed.type, [0] * 24), index), ir.VectorType(I16, 16))
    word = b.zext(pairs, I32x16.llvm)
    return [_looked_up(b, _shifted(b, word, 3 * i, 3 * i + 4), 3) for i in range(4)]


@intrinsic
def four_values(typingctx: Any, array: Any, at: Any, second: Any, third: Any, fourth: Any) -> Any:
    """64 elements from byte `at` on. The following 16 bytes are taken at at + second, third, fourth: 16, 32, 48, or less at a row's end."""
    bits = bits_of(array, VALUE_DIMENSIONS)

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        data = element_pointer(ctx, b, array, *args[:2])
        return ctx.make_tuple(b, _Four, _values(b, data, bits, *args[2:]))

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


class Packed(types.Type):
    """Bytes of keys, or of values, of several codes each: a pointer, and in its type what the bytes hold."""

    dtype = types.uint8

    def __init__(self, bits: int, are_keys: bool):
        self.bits, self.are_keys = bits, are_keys
        super().__init__(name=f"{bits} bits of {'keys' if are_keys else 'values'}")


@register_model(Packed)
class _PackedModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Packed):
        super().__init__(dmm, fe_type, I8.as_pointer())


def _numbers_of(dimensions: int) -> Any:
    @intrinsic
    def numbers_of(typingctx: Any, array: Any) -> Any:
        packed = array.dtype == types.uint8
        kind = Packed(bits_of(array, dimensions), dimensions == KEY_DIMENSIONS) if packed else types.Array(array.dtype, 1, "C")

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            if packed:
                return cgutils.create_struct_proxy(array)(ctx, b, args[0]).data
            return flattened._defn(typingctx, array)[1](ctx, b, sig, args)

        return kind(array), codegen

    return numbers_of


# Keys or values of a head -> what `numbers_at` takes: an array of one dimension, or Packed bytes.
keys_of, values_of = _numbers_of(KEY_DIMENSIONS), _numbers_of(VALUE_DIMENSIONS)


def place_in(ctx: Any, b: Any, kind: Any, data: Any, place: Any) -> Any:
    """Address of an element of an array, or of a byte of Packed ones."""
    return b.gep(data, [place]) if isinstance(kind, Packed) else element_pointer(ctx, b, kind, data, place)


def depths_together(kind: Any) -> int:
    """Elements of a key that lie in the same bytes, so that they are taken one after the other."""
    return {4: 2, 3: 8}[kind.bits] if isinstance(kind, Packed) and kind.are_keys else 1


def unit_bytes(kind: Any) -> int:
    """Of 64 numbers."""
    return 8 * kind.bits if isinstance(kind, Packed) else 8 * int(kind.dtype.bitwidth)


def numbers_at(ctx: Any, b: Any, kind: Any, data: Any, place: Any, apart: Any, vectors: int) -> Iterator[list[Any]]:
    """For each of the depths that lie together from a place on: `vectors` times 16 numbers, `apart` elements one after the other.

    float32, float16 (uint16), int8 or Packed bytes, as float32. Of Packed values 64 numbers stand together, whatever `apart` is.
    """
    if not isinstance(kind, Packed):
        load = (_load_i8 if kind.dtype.bitwidth == 8 else selected.load_float)._defn(None, kind, types.intp)[1]
        yield [load(ctx, b, None, [data, b.add(place, b.mul(apart, ir.Constant(apart.type, v)))]) for v in range(vectors)]
    elif not kind.are_keys:
        yield _values(b, b.gep(data, [place]), kind.bits, 16)[:vectors]
    else:
        starts = [b.gep(data, [b.add(place, b.mul(apart, ir.Constant(apart.type, v)))]) for v in range(vectors)]
        for half in range((depths_together(kind) + 3) // 4):
            codes = [_key_codes(b, start, kind.bits, half) for start in starts]
            for _ in range(min(depths_together(kind), 4)):
                yield [next(each) for each in codes]


@intrinsic
def is_packed(typingctx: Any, head: Any) -> Any:
    """Whether several numbers share a byte. Known when compiled."""
    value = head[0].dtype == types.uint8
    return types.boolean(head), lambda ctx, b, sig, args: ir.Constant(ir.IntType(1), value)


@intrinsic
def unit_size(typingctx: Any, head: Any) -> Any:
    """Elements of `keys` and `values` that hold 64 numbers."""
    size = 8 * bits_of(head[0], KEY_DIMENSIONS) if head[0].dtype == types.uint8 else 64
    return types.int64(head), lambda ctx, b, sig, args: ir.Constant(ir.IntType(64), size)


@intrinsic
def few_queries(typingctx: Any, head: Any) -> Any:
    """Up to how many queries read the cache in place; more are worth a panel. Known when compiled.

    Codes of less than a byte are taken apart for each row of sums, where registers do not hold more than one.
    """
    value = 2 if head[0].dtype == types.uint8 and not _TABLE else 4
    return types.int64(head), lambda ctx, b, sig, args: ir.Constant(ir.IntType(64), value)
