"""NEON with dot products (ARMv8.2, FEAT_DotProd): sdot sums four byte products into each int32, so nothing overflows.

As in neon.py a `Vector` of 32 bytes is two 16-byte registers.
"""

from typing import Any

from . import neon, vectors
from .vectors import I32, Vector, intrinsic

WIDTH = 32
REGISTERS = 32  # of 16 bytes, and sums need only that much
UNSHIFTED = False
STEPS_PER_FOLD = 1 << 30
FUSED = True
ANY_BYTE = False  # both factors of sdot are signed
TILE_BLOCKS, TILE_TOKENS = 3, 4

# Sums of one row take both halves of the bytes in registers of their own: two chains of additions instead of one. Kernels that keep
# 16 sums at once begin with zero_wide, and both halves go to one register.
Bytes, Narrow, Wide = neon.Bytes, Vector(I32, 8), Vector(I32, 4)

triple = neon.triple
field0, field1, field2, field3 = neon.field0, neon.field1, neon.field2, neon.field3
LaneSums = Narrow


def _sdot(b: Any, sums: Any, codes: Any, values: Any, which: int) -> Any:
    """Of half `which` of the bytes."""
    operands = [sums, *(neon.half(b, a, which) for a in (codes, values))]
    return vectors.call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", Wide.llvm, operands)


def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
    """Emits sums[i] + the products of bytes 4i .. 4i + 3, for narrow sums."""
    return neon.join(b, *(_sdot(b, neon.half(b, sums, which), codes, values, which) for which in (0, 1)))


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """wide + narrow: sums are int32 already."""
    return b.add(wide, narrow)


@intrinsic
def dot(typingctx: Any, sums: Any, codes: Any, values: Any) -> Any:
    """sums + the products of bytes 4i .. 4i + 3, of either half. Codes are below 128, so multiplying both as signed is right."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if sig.args[0] == Wide:
            return _sdot(b, _sdot(b, args[0], args[1], args[2], 0), args[1], args[2], 1)
        return products(b, *args)

    return sums(sums, Bytes, Bytes), codegen


@intrinsic
def fold(typingctx: Any, wide: Any, narrow: Any) -> Any:
    """wide[i] + narrow[i] + narrow[i + 4]; or wide + narrow where both are wide."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if sig.args[1] == Wide:
            return b.add(*args)
        return b.add(args[0], b.add(neon.half(b, args[1], 0), neon.half(b, args[1], 1)))

    return Wide(Wide, narrow), codegen


quad_dot = dot
