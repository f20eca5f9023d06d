"""Any CPU: the same operations in plain LLVM vector arithmetic, with no instruction of one maker. LLVM picks what the CPU has.

A product of a code 0..2 with an int8 value is within ±256, so 127 steps stay within int16; 64 are taken, as with AVX2.
"""

from typing import Any

from llvmlite import ir

from . import trits, vectors
from .vectors import I8, I16, I32, Vector, intrinsic

WIDTH = 32
REGISTERS = 16
UNSHIFTED = False
STEPS_PER_FOLD = 64
FUSED = False
ANY_BYTE = False
TILE_BLOCKS, TILE_TOKENS = 1, 4

Bytes, Narrow, Wide = Vector(I8, 32), Vector(I16, 32), Vector(I32, 16)

triple = trits.tripled(Bytes)
quad_dot = vectors.plain_quad_dot(Bytes, Vector(I32, WIDTH // 4))
LaneSums = Narrow


def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
    """Emits sums[i] + codes[i] * values[i]; codes unsigned, values signed."""
    return b.add(sums, b.mul(b.zext(codes, Narrow.llvm), b.sext(values, Narrow.llvm)))


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """Emits wide[i] + narrow[4i] + ... + narrow[4i + 3]."""
    for j in range(4):
        lanes = ir.Constant(ir.VectorType(I32, WIDTH // 4), list(range(j, WIDTH, 4)))
        wide = b.add(wide, b.sext(b.shuffle_vector(narrow, narrow, lanes), ir.VectorType(I32, WIDTH // 4)))
    return wide


@intrinsic
def fold(typingctx: Any, wide: Any, narrow: Any) -> Any:
    """wide[i] + narrow[i] + narrow[i + 16]."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        sums = args[0]
        for start in (0, 16):
            lanes = ir.Constant(ir.VectorType(I32, 16), list(range(start, start + 16)))
            sums = b.add(sums, b.sext(b.shuffle_vector(args[1], args[1], lanes), Wide.llvm))
        return sums

    return Wide(Wide, Narrow), codegen
