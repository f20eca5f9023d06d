"""Floats for Numba: 16 lanes of float32 everywhere (LLVM splits them into the registers that the CPU has), so that a sum over lanes has
one order on every CPU; loads that widen float16 and the packed weights of the head; the way back to float16 for the KV cache.
"""

from typing import Any

from llvmlite import ir
from numba import types

from . import vectors
from .vectors import F32, I8, I16, I32, Vector, binary, call, constant, element_pointer, integer_total, intrinsic, loader, storer

F32x16 = Vector(F32, 16)

load_f32 = loader(F32x16)
store_f32 = storer(F32x16)
zero_f32 = constant(F32x16, 0.0)
add_f32 = binary(F32x16, "fadd")
sub_f32 = binary(F32x16, "fsub")
mul_f32 = binary(F32x16, "fmul")

div_f32 = binary(F32x16, "fdiv")

I32x16 = Vector(I32, 16)
zero_i32, add_i32, total_i32 = constant(I32x16), binary(I32x16, "add"), integer_total(I32x16)
to_f32 = vectors.lanewise(I32x16, F32x16, lambda b, value: b.sitofp(value, F32x16.llvm))
_ROUND, _ROUND_BITS = 12582912.0, 0x4B400000  # 1.5 * 2^23: a float near it has no bits behind the point, its last ones are an integer


def _nearest(b: Any, value: Any) -> Any:
    """Integers nearest to floats within ±2^22, half to even, without an instruction for it."""
    return b.sub(b.bitcast(b.fadd(value, F32x16.splat(_ROUND)), I32x16.llvm), I32x16.splat(_ROUND_BITS))


nearest_i32 = vectors.lanewise(F32x16, I32x16, _nearest)
nearest_f32 = vectors.lanewise(F32x16, F32x16, lambda b, value: b.fsub(b.fadd(value, F32x16.splat(_ROUND)), F32x16.splat(_ROUND)))


def _power_of_two(b: Any, value: Any) -> Any:
    """2^n for floats n that are whole, -126 to 127."""
    return b.bitcast(b.shl(b.add(_nearest(b, value), I32x16.splat(127)), I32x16.splat(23)), F32x16.llvm)


power_of_two_f32 = vectors.lanewise(F32x16, F32x16, _power_of_two)


@intrinsic
def max_f32(typingctx: Any, x: Any, y: Any) -> Any:
    """The larger of two, lane by lane; x where y is NaN or less."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.select(b.fcmp_ordered("<", args[0], args[1]), args[1], args[0])

    return F32x16(F32x16, F32x16), codegen


def _negative_size(b: Any, value: Any) -> Any:
    """-|value|."""
    return b.bitcast(b.or_(b.bitcast(value, I32x16.llvm), I32x16.splat(-0x80000000)), F32x16.llvm)


negative_size_f32 = vectors.lanewise(F32x16, F32x16, _negative_size)


def clamped_f32(low: float, high: float) -> Any:
    """`clamp(v)`: v, or the nearer of both ends where it is outside, lane by lane."""

    def emit(b: Any, value: Any) -> Any:
        for sign, end in (("<", low), (">", high)):
            value = b.select(b.fcmp_ordered(sign, value, F32x16.splat(end)), F32x16.splat(end), value)
        return value

    return vectors.lanewise(F32x16, F32x16, emit)


@intrinsic
def where_negative_f32(typingctx: Any, v: Any, x: Any, y: Any) -> Any:
    """x where v < 0, y elsewhere, lane by lane."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.select(b.fcmp_ordered("<", args[0], F32x16.splat(0.0)), args[1], args[2])

    return F32x16(F32x16, F32x16, F32x16), codegen


@intrinsic
def lanes_not_below(typingctx: Any, v: Any, least: Any) -> Any:
    """A bit for each of 16 lanes, the first one lowest: 1 where v is `least` (float32) or more, or either is NaN."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        one = b.insert_element(ir.Constant(F32x16.llvm, ir.Undefined), args[1], I32(0))
        least = b.shuffle_vector(one, one, ir.Constant(I32x16.llvm, [0] * 16))
        bits = b.bitcast(b.fcmp_unordered(">=", args[0], least), I16)
        return b.zext(bits, I32)

    return types.int32(F32x16, types.float32), codegen


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """The place of the lowest bit that is 1, of an int32 that is not zero."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.zext(call(b, "llvm.cttz.i32", I32, [args[0], ir.Constant(ir.IntType(1), 1)]), ir.IntType(64))

    return types.int64(types.int32), codegen


@intrinsic
def largest_f32(typingctx: Any, v: Any) -> Any:
    """The largest of 16 lanes."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        value = args[0]
        for half in (8, 4, 2, 1):
            lanes = [ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half)]
            low, high = (b.shuffle_vector(value, value, i) for i in lanes)
            value = b.select(b.fcmp_ordered("<", low, high), high, low)
        return b.extract_element(value, I32(0))

    return types.float32(F32x16), codegen


@intrinsic
def store_low_bytes(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    """The last byte of each of 16 integers -> array[offset ...], one byte each."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(ctx, b, array, args[0], args[1])
        kind = ir.VectorType(I8, 16)
        b.store(b.trunc(args[2], kind), b.bitcast(pointer, kind.as_pointer()), align=1)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, I32x16), codegen


@intrinsic
def splat_f32(typingctx: Any, value: Any) -> Any:
    """A vector with every lane `value` (float32)."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        one = b.insert_element(ir.Constant(F32x16.llvm, ir.Undefined), args[0], I32(0))
        return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, 16), [0] * 16))

    return F32x16(types.float32), codegen


def float_sum(b: Any, value: Any) -> Any:
    """Emits the sum over 16 lanes by halving: lanes i and i + 8, then i + 4, i + 2, i + 1."""
    for half in (8, 4, 2, 1):
        indexes = [ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half)]
        value = b.fadd(*(b.shuffle_vector(value, value, i) for i in indexes))
    return b.extract_element(value, I32(0))


def float_total(vector: Vector, result: Any) -> Any:
    """`total(v)`: float_sum."""

    @intrinsic
    def total(typingctx: Any, v: Any) -> Any:
        return result(vector), lambda ctx, b, sig, args: float_sum(b, args[0])

    return total


total_f32 = float_total(F32x16, types.float32)


def _size_bits(b: Any, value: Any) -> Any:
    """Bits of |value|, which are ordered as the values are, NaN above all."""
    return b.and_(b.bitcast(value, I32x16.llvm), I32x16.splat(0x7FFFFFFF))


def _repeated(b: Any, value: Any) -> Any:
    one = b.insert_element(ir.Constant(I32x16.llvm, ir.Undefined), value, I32(0))
    return b.shuffle_vector(one, one, ir.Constant(I32x16.llvm, [0] * 16))


@intrinsic
def count_reaching(typingctx: Any, counts: Any, v: Any, least: Any) -> Any:
    """counts + 1 in each lane where the bits of |v| are `least` (int32) or more."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        reached = b.icmp_signed(">=", _size_bits(b, args[1]), _repeated(b, args[2]))
        return b.sub(args[0], b.sext(reached, I32x16.llvm))

    return I32x16(I32x16, F32x16, types.int32), codegen


@intrinsic
def keep_reaching(typingctx: Any, v: Any, least: Any) -> Any:
    """v where the bits of |v| are `least` (int32) or more, zero elsewhere."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.select(b.icmp_signed(">=", _size_bits(b, args[0]), _repeated(b, args[1])), args[0], F32x16.splat(0.0))

    return F32x16(F32x16, types.int32), codegen


def _butterflies(b: Any, value: Any) -> Any:
    """v times the 16 x 16 Hadamard matrix of ones, by sums and differences of lanes 1, 2, 4 and 8 apart."""
    for step in (1, 2, 4, 8):
        other = b.shuffle_vector(value, value, ir.Constant(I32x16.llvm, [i ^ step for i in range(16)]))
        value = b.fadd(other, b.fmul(value, ir.Constant(F32x16.llvm, [-1.0 if i & step else 1.0 for i in range(16)])))
    return value


butterflies_f32 = vectors.lanewise(F32x16, F32x16, _butterflies)


def _widen_half(b: Any, bits: Any) -> Any:
    """16 float16 bit patterns -> float32 by integer arithmetic: exponent moved by a multiplication with 2^112. Finite values only."""
    i32 = ir.VectorType(I32, 16)
    wide = b.zext(bits, i32)
    magnitude = b.shl(b.and_(wide, ir.Constant(i32, [0x7FFF] * 16)), ir.Constant(i32, [13] * 16))
    scaled = b.fmul(b.bitcast(magnitude, F32x16.llvm), F32x16.splat(2.0**112))
    sign = b.shl(b.and_(wide, ir.Constant(i32, [0x8000] * 16)), ir.Constant(i32, [16] * 16))
    return b.bitcast(b.or_(b.bitcast(scaled, i32), sign), F32x16.llvm)


def halves_at(b: Any, native: bool, pointer: Any) -> Any:
    """Emits 16 float16 values from an address on, as float32. `native`: the CPU converts (F16C, NEON)."""
    kind = ir.VectorType(ir.HalfType() if native else I16, 16)
    value = b.load(b.bitcast(pointer, kind.as_pointer()), align=1)
    return b.fpext(value, F32x16.llvm) if native else _widen_half(b, value)


def half_precision_loader(native: bool) -> Any:
    """`load_f16(array, offset)`: 16 float16 values as float32, from bytes or uint16."""

    @intrinsic
    def load_f16(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            return halves_at(b, native, element_pointer(ctx, b, array, *args))

        return F32x16(array, types.intp), codegen

    return load_f16


@intrinsic
def load_bf16(typingctx: Any, array: Any, offset: Any) -> Any:
    """16 bfloat16 values, the upper halves of float32 ones, from bytes or uint16, as float32."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = element_pointer(ctx, b, array, *args)
        bits = b.load(b.bitcast(pointer, ir.VectorType(I16, 16).as_pointer()), align=1)
        return b.bitcast(b.shl(b.zext(bits, I32x16.llvm), I32x16.splat(16)), F32x16.llvm)

    return F32x16(array, types.intp), codegen


def half_precision_scalar(native: bool) -> Any:
    """`one_f16(array, offset)`: one float16 at byte or element `offset`, as float32; reads two bytes."""

    @intrinsic
    def one_f16(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, array, *args)
            if native:
                return b.fpext(b.load(b.bitcast(pointer, ir.HalfType().as_pointer()), align=1), F32)
            bits = b.load(b.bitcast(pointer, I16.as_pointer()), align=1)
            lanes = b.insert_element(ir.Constant(ir.VectorType(I16, 16), [0] * 16), bits, I32(0))
            return b.extract_element(_widen_half(b, lanes), I32(0))

        return types.float32(array, types.intp), codegen

    return one_f16


def _narrow_half(b: Any, value: Any) -> Any:
    """One float32 -> float16 bits by integer arithmetic, nearest even; too large becomes infinity, NaN is not kept apart from it."""
    bits = b.bitcast(value, I32)
    sign = b.and_(b.lshr(bits, I32(16)), I32(0x8000))
    magnitude = b.and_(bits, I32(0x7FFFFFFF))
    # Normal results: drop 13 bits, rounding to even, and move the exponent by 112.
    odd = b.and_(b.lshr(magnitude, I32(13)), I32(1))
    rounded = b.add(b.add(magnitude, I32(0xFFF)), odd)
    normal = b.sub(b.lshr(rounded, I32(13)), I32(112 << 10))
    normal = b.select(b.icmp_unsigned(">", normal, I32(0x7C00)), I32(0x7C00), normal)
    # Below 2^-14: adding 0.5 puts the result's bits at the end of the mantissa, rounded by the addition itself.
    small = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, F32), ir.Constant(F32, 0.5)), I32), I32(0x3F000000))
    is_small = b.icmp_unsigned("<", magnitude, I32(113 << 23))
    return b.trunc(b.or_(b.select(is_small, small, normal), sign), I16)


def half_precision_bits(native: bool) -> Any:
    """`to_f16(value)`: float32 -> the bits of the nearest float16, as uint16."""

    @intrinsic
    def to_f16(typingctx: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            if native:
                return b.bitcast(b.fptrunc(args[0], ir.HalfType()), I16)
            return _narrow_half(b, args[0])

        return types.uint16(types.float32), codegen

    return to_f16


def float_loader(load_f16: Any) -> Any:
    """`load_float(array, offset)`: 16 floats of a float32 array, or of one of float16 bits (uint16), as float32. Chosen when compiled."""

    @intrinsic
    def load_float(typingctx: Any, array: Any, offset: Any) -> Any:
        chosen = load_f16 if array.dtype == types.uint16 else load_f32
        return chosen._defn(typingctx, array, offset)

    return load_float


def _load_bytes(ctx: Any, b: Any, array: Any, data: Any, offset: Any) -> Any:
    """16 bytes of an array."""
    pointer = element_pointer(ctx, b, array, data, offset)
    return b.load(b.bitcast(pointer, ir.VectorType(I8, 16).as_pointer()), align=1)


def bytes_to_f32() -> Any:
    """`load_i8(array, offset)`: 16 int8 values as float32."""

    @intrinsic
    def load_i8(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            value = _load_bytes(ctx, b, array, *args)
            return b.sitofp(b.sext(value, ir.VectorType(I32, 16)), F32x16.llvm)

        return F32x16(array, types.intp), codegen

    return load_i8


def nibbles_to_f32(shift: int, less: int = 8) -> Any:
    """`load_nibbles(array, offset)`: of 16 bytes the lower (shift 0) or upper (4) four bits, less `less`, as float32."""
    i32 = ir.VectorType(I32, 16)

    @intrinsic
    def load_nibbles(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            wide = b.zext(_load_bytes(ctx, b, array, *args), i32)
            value = b.and_(b.lshr(wide, ir.Constant(i32, [shift] * 16)), ir.Constant(i32, [15] * 16))
            return b.sitofp(b.sub(value, ir.Constant(i32, [less] * 16)), F32x16.llvm)

        return F32x16(array, types.intp), codegen

    return load_nibbles


def six_bits_to_f32(low_shift: int, high_shift: int) -> Any:
    """`load_six(array, low, high)`: 16 six-bit values less 32, as float32: four bits of the bytes at `low`, two of those at `high`."""
    i32 = ir.VectorType(I32, 16)

    @intrinsic
    def load_six(typingctx: Any, array: Any, low: Any, high: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            data, low_at, high_at = args
            lows, highs = (b.zext(_load_bytes(ctx, b, array, data, at), i32) for at in (low_at, high_at))
            lows = b.and_(b.lshr(lows, ir.Constant(i32, [low_shift] * 16)), ir.Constant(i32, [15] * 16))
            highs = b.and_(b.lshr(highs, ir.Constant(i32, [high_shift] * 16)), ir.Constant(i32, [3] * 16))
            value = b.or_(lows, b.shl(highs, ir.Constant(i32, [4] * 16)))
            return b.sitofp(b.sub(value, ir.Constant(i32, [32] * 16)), F32x16.llvm)

        return F32x16(array, types.intp, types.intp), codegen

    return load_six


def product_sum(b: Any, fused: bool, x: Any, y: Any, z: Any) -> Any:
    """Emits x * y + z, in one step or two."""
    return call(b, "llvm.fma.v16f32", F32x16.llvm, [x, y, z]) if fused else b.fadd(b.fmul(x, y), z)


def multiply_add(fused: bool) -> Any:
    """`fma(a, b, c)`: a * b + c lane by lane; fused where the CPU does it in one step (elsewhere a fused one would be a slow call)."""

    @intrinsic
    def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
        return F32x16(F32x16, F32x16, F32x16), lambda ctx, b, sig, args: product_sum(b, fused, *args)

    return fma
