"""Vector types for Numba, and the operations that every instruction set shares.

A `Vector` is a Numba type whose data model is an LLVM vector; an `@intrinsic` emits one operation on it. Kernels over them are plain
Python and compile to the loop that a C programmer writes with <immintrin.h>. Offsets are in elements of the array.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

# Seen by type checkers as Any: Numba itself checks the types inside kernels, when it compiles them.
intrinsic: Any = numba_intrinsic

I8, I16, I32, I64, F32, F64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()


class Vector(types.Type):
    """A SIMD register: `lanes` elements of one LLVM scalar type."""

    def __init__(self, element: ir.Type, lanes: int):
        self.llvm = ir.VectorType(element, lanes)
        self.lanes = lanes
        super().__init__(name=f"vector({element} x {lanes})")

    def splat(self, value: float) -> ir.Constant:
        """The LLVM constant with every lane `value`."""
        return ir.Constant(self.llvm, [value] * self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector):
        super().__init__(dmm, fe_type, fe_type.llvm)


def element_pointer(ctx: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Address of element `offset` of a one-dimensional, contiguous array."""
    data = cgutils.create_struct_proxy(array_type)(ctx, builder, array).data
    return builder.gep(data, [offset])


@intrinsic
def flattened(typingctx: Any, array: Any) -> Any:
    """All elements of a contiguous array as one dimension, without the checks (and the code for them) of `reshape`."""
    kind = types.Array(array.dtype, 1, "C")

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        source, out = cgutils.create_struct_proxy(array)(ctx, b, args[0]), cgutils.create_struct_proxy(kind)(ctx, b)
        for name in ("meminfo", "parent", "nitems", "itemsize", "data"):
            setattr(out, name, getattr(source, name))
        out.shape, out.strides = (cgutils.pack_array(b, [size]) for size in (source.nitems, source.itemsize))
        return out._getvalue()

    return kind(array), codegen


def call(builder: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    """Call an LLVM intrinsic or external function by name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def loader(vector: Vector) -> Any:
    """`load(array, offset)`: `vector.lanes` elements, no alignment needed."""

    @intrinsic
    def load(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, array, *args)
            return b.load(b.bitcast(pointer, vector.llvm.as_pointer()), align=1)

        return vector(array, types.intp), codegen

    return load


def half_loader(vector: Vector) -> Any:
    """`load_half(array, offset)`: the lower half of the vector from memory, the upper half zero."""
    half = ir.VectorType(vector.llvm.element, vector.lanes // 2)

    @intrinsic
    def load_half(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, array, *args)
            low = b.load(b.bitcast(pointer, half.as_pointer()), align=1)
            lanes = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(vector.lanes)))
            return b.shuffle_vector(low, ir.Constant(half, [0] * half.count), lanes)

        return vector(array, types.intp), codegen

    return load_half


def storer(vector: Vector) -> Any:
    """`store(array, offset, value)`."""

    @intrinsic
    def store(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, array, args[0], args[1])
            b.store(args[2], b.bitcast(pointer, vector.llvm.as_pointer()), align=1)
            return ctx.get_dummy_value()

        return types.void(array, types.intp, vector), codegen

    return store


def prefetcher(locality: int, write: int = 0) -> Any:
    """`prefetch(array, offset)`: ask for the cache line of element `offset`; never faults, so it may lie past the array's end.

    locality: LLVM's; 3: into all caches, 2: into L2 only.
    """

    @intrinsic
    def prefetch(typingctx: Any, array: Any, offset: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = b.bitcast(element_pointer(ctx, b, array, *args), I8.as_pointer())
            call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(write), I32(locality), I32(1)])
            return ctx.get_dummy_value()

        return types.void(array, types.intp), codegen

    return prefetch


prefetch, prefetch_to_l2, prefetch_to_write = prefetcher(3), prefetcher(2), prefetcher(3, write=1)


def constant(vector: Vector, value: float = 0) -> Any:
    """`make()`: a vector with every lane `value`."""

    @intrinsic
    def make(typingctx: Any) -> Any:
        return vector(), lambda ctx, b, sig, args: vector.splat(value)

    return make


def binary(vector: Vector, operation: str) -> Any:
    """`apply(a, b)`: an LLVM instruction of the builder (`add`, `fadd`, `and_` ...) lane by lane."""

    @intrinsic
    def apply(typingctx: Any, x: Any, y: Any) -> Any:
        return vector(vector, vector), lambda ctx, b, sig, args: getattr(b, operation)(*args)

    return apply


def lanewise(argument: Vector, result: Vector, emit: Callable[[Any, Any], Any]) -> Any:
    """`apply(v)`: `emit(builder, value)` makes the result."""

    @intrinsic
    def apply(typingctx: Any, v: Any) -> Any:
        return result(argument), lambda ctx, b, sig, args: emit(b, args[0])

    return apply


def bit_field(vector: Vector, shift: int, bits: int) -> Any:
    """`field(v)`: `bits` bits of each byte, from `shift` on. Shifts run on 16-bit lanes (x86 has none on bytes); the mask drops strays."""
    wide = Vector(I16, vector.lanes // 2)

    def emit(b: Any, value: Any) -> Any:
        if shift:
            value = b.bitcast(b.lshr(b.bitcast(value, wide.llvm), wide.splat(shift)), vector.llvm)
        return b.and_(value, vector.splat((1 << bits) - 1))

    return lanewise(vector, vector, emit)


def two_bit_field(vector: Vector, shift: int) -> Any:
    """`field(v)`: bits shift, shift + 1 of each byte."""
    return bit_field(vector, shift, 2)


def masked(vector: Vector, bits: int) -> Any:
    """`keep(v)`: v and `bits`, in every byte."""
    return lanewise(vector, vector, lambda b, value: b.and_(value, vector.splat(bits)))


def shifted_right(vector: Vector, bits: int) -> Any:
    """`shift(v)`: each lane shifted right by `bits`, sign kept."""
    return lanewise(vector, vector, lambda b, value: b.ashr(value, vector.splat(bits)))


def interleave_four(vector: Vector) -> Any:
    """`interleave(a, b, c, d)`: four vectors of a0 b0 c0 d0 a1 b1 ... from each 16 bytes: the first has bytes 0-3 of each 16, then 4-7 ...

    Two rounds of x86's unpack or ARM's zip, which work on 16 bytes each.
    """
    lanes = range(0, vector.lanes, 16)

    def zipped(b: Any, x: Any, y: Any, unit: int, half: int) -> Any:
        """Units of `unit` bytes of x and y in turn, from the lower or upper half of each 16 bytes."""
        index = [
            source + lane + place + byte
            for lane in lanes
            for place in range(8 * half, 8 * half + 8, unit)
            for source in (0, vector.lanes)
            for byte in range(unit)
        ]
        return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, vector.lanes), index))

    @intrinsic
    def interleave(typingctx: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
        result = types.UniTuple(vector, 4)

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            parts = []
            for half in (0, 1):
                x, y = zipped(b, args[0], args[1], 1, half), zipped(b, args[2], args[3], 1, half)
                parts += [zipped(b, x, y, 2, 0), zipped(b, x, y, 2, 1)]
            return ctx.make_tuple(b, result, parts)

        return result(vector, vector, vector, vector), codegen

    return interleave


def repeat_word(vector: Vector) -> Any:
    """`repeat(word)`: the four bytes of an int32, over and over."""
    words = ir.VectorType(I32, vector.lanes // 4)

    @intrinsic
    def repeat(typingctx: Any, word: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            one = b.insert_element(ir.Constant(words, ir.Undefined), args[0], I32(0))
            return b.bitcast(b.shuffle_vector(one, one, ir.Constant(words, [0] * words.count)), vector.llvm)

        return vector(types.int32), codegen

    return repeat


def plain_quad_dot(codes: Vector, sums: Vector) -> Any:
    """`quad_dot(sums, codes, values)`: sums[i] + the four products of bytes 4i .. 4i + 3, with no CPU's instruction. Codes 0 to 127."""

    @intrinsic
    def quad_dot(typingctx: Any, total: Any, c: Any, v: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            wide = ir.VectorType(I16, codes.lanes)
            products = b.mul(b.sext(args[1], wide), b.sext(args[2], wide))
            result = args[0]
            for j in range(4):
                index = ir.Constant(ir.VectorType(I32, sums.lanes), list(range(j, codes.lanes, 4)))
                result = b.add(result, b.sext(b.shuffle_vector(products, products, index), sums.llvm))
            return result

        return sums(sums, codes, codes), codegen

    return quad_dot


def integer_total(vector: Vector) -> Any:
    """`total(v)`: sum over the lanes of a vector of 32-bit integers, as int32, or of bytes, modulo 256, as uint8."""

    @intrinsic
    def total(typingctx: Any, v: Any) -> Any:
        name, lane = f"llvm.vector.reduce.add.v{vector.lanes}{vector.llvm.element}", vector.llvm.element
        return (types.uint8 if lane == I8 else types.int32)(vector), lambda ctx, b, sig, args: call(b, name, lane, [args[0]])

    return total


def _halve(b: Any, x: Any, y: Any, part: int) -> Any:
    """Each `part` lanes of x and y hold one sum: parts / 2 lanes of x's sums, then of y's, in one register."""
    lanes = x.type.count
    starts = [s for base in (0, lanes) for s in range(base, base + lanes, part)]
    index = [[s + half + i for s in starts for i in range(part // 2)] for half in (0, part // 2)]
    return b.add(*(b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, lanes), i)) for i in index))


def sums_of_four(b: Any, v: Any) -> Any:
    """Four vectors of 32-bit integers -> the sum over the lanes of each, as a vector of 4.

    Vectors are halved together, two and then four in one register, so four sums cost little more than one.
    """
    lanes = v[0].type.count
    kind = ir.VectorType(I32, lanes)
    sums, part = _halve(b, _halve(b, v[0], v[1], lanes), _halve(b, v[2], v[3], lanes), lanes // 2), lanes // 4
    while part > 1:
        index = [[s + half + i % (part // 2) for s in range(0, lanes, part) for i in range(part)] for half in (0, part // 2)]
        sums = b.add(*(b.shuffle_vector(sums, sums, ir.Constant(kind, i)) for i in index))
        part //= 2
    return b.shuffle_vector(sums, sums, ir.Constant(ir.VectorType(I32, 4), [i * (lanes // 4) for i in range(4)]))


def four_totals(vector: Vector) -> Any:
    """`totals(a, b, c, d)`: the sum over the lanes of each of four vectors of 32-bit integers, as a tuple of int32."""

    @intrinsic
    def totals(typingctx: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
        result = types.UniTuple(types.int32, 4)

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            sums = sums_of_four(b, args)
            return ctx.make_tuple(b, result, [b.extract_element(sums, I32(i)) for i in range(4)])

        return result(vector, vector, vector, vector), codegen

    return totals
