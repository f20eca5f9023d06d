"""NEON, which every aarch64 CPU has. A `Vector` of 32 bytes is two of its 16-byte registers, so kernels see the width of AVX2.

A product of a code 0..2 with an int8 value is within ±256. Each int16 sum takes two products a step, one of each half of the bytes, so
it moves by ±512 as with AVX2 and 64 steps stay within int16: 64 * 508 = 32,512 upwards, 64 * 512 = 32,768 downwards.
"""

from typing import Any

from llvmlite import ir

from . import trits, vectors
from .vectors import I8, I16, I32, Vector, intrinsic

WIDTH = 32
REGISTERS = 16  # of 32 bytes
UNSHIFTED = False
STEPS_PER_FOLD = 64
FUSED = True
ANY_BYTE = False
TILE_BLOCKS, TILE_TOKENS = 1, 4

Bytes, Narrow, Wide = Vector(I8, 32), Vector(I16, 16), Vector(I32, 4)
LaneSums = Vector(I16, 32)  # one product a step: half of what Narrow takes


def half(b: Any, value: Any, which: int) -> Any:
    """Half `which` of a vector's lanes, counted from the first."""
    lanes = value.type.count // 2
    index = ir.Constant(ir.VectorType(I32, lanes), list(range(which * lanes, (which + 1) * lanes)))
    return b.shuffle_vector(value, value, index)


def join(b: Any, low: Any, high: Any) -> Any:
    """The lanes of `low`, then those of `high`."""
    lanes = low.type.count * 2
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))


def byte_field(shift: int) -> Any:
    """`field(v)`: bits shift, shift + 1 of each byte. NEON shifts bytes, so the uppermost field needs no mask."""

    def emit(b: Any, value: Any) -> Any:
        value = b.lshr(value, Bytes.splat(shift)) if shift else value
        return value if shift == 6 else b.and_(value, Bytes.splat(3))

    return vectors.lanewise(Bytes, Bytes, emit)


triple = trits.tripled(Bytes)
field0, field1, field2, field3 = (byte_field(shift) for shift in (6, 4, 2, 0))
quad_dot = vectors.plain_quad_dot(Bytes, Vector(I32, WIDTH // 4))


@intrinsic
def dot(typingctx: Any, sums: Any, codes: Any, values: Any) -> Any:
    """sums[i] + codes[i] * values[i] + codes[i + 16] * values[i + 16]. Codes are below 128, so multiplying both as signed is right."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        parts = []
        for lanes in (0, 1):
            part = half(b, args[0], lanes)
            for register in (0, 1):
                pair = [half(b, half(b, a, register), lanes) for a in args[1:]]
                product = vectors.call(b, "llvm.aarch64.neon.smull.v8i16", ir.VectorType(I16, 8), pair)
                part = b.add(part, product)  # LLVM makes one smlal of the two
            parts.append(part)
        return join(b, *parts)

    return Narrow(Narrow, Bytes, Bytes), codegen


@intrinsic
def fold(typingctx: Any, wide: Any, narrow: Any) -> Any:
    """wide[i] + narrow[2i] + narrow[2i + 1] + narrow[2i + 8] + narrow[2i + 9]."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        sums = args[0]
        for which in (0, 1):
            pairs = vectors.call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", Wide.llvm, [half(b, args[1], which)])
            sums = b.add(sums, pairs)  # one sadalp
        return sums

    return Wide(Wide, Narrow), codegen


def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
    """Emits sums[i] + codes[i] * values[i]."""
    eighths = [[half(b, half(b, a, register), lanes) for register in (0, 1) for lanes in (0, 1)] for a in (codes, values)]
    kind = ir.VectorType(I16, 8)
    found = [vectors.call(b, "llvm.aarch64.neon.smull.v8i16", kind, list(pair)) for pair in zip(*eighths, strict=True)]
    return b.add(sums, join(b, join(b, *found[:2]), join(b, *found[2:])))


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """Emits wide[i] + narrow[4i] + ... + narrow[4i + 3]."""
    parts = []
    for register in (0, 1):
        eights = [half(b, half(b, narrow, register), lanes) for lanes in (0, 1)]
        pairs = [vectors.call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", Wide.llvm, [eight]) for eight in eights]
        parts.append(vectors.call(b, "llvm.aarch64.neon.addp.v4i32", Wide.llvm, pairs))
    return b.add(wide, join(b, *parts))
