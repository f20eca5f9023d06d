"""AVX2: 32 bytes a register. Products of bytes are summed in pairs into int16 (vpmaddubsw), widened to int32 before they can overflow.

A pair of codes 0..2 with int8 values is within ±512, so 64 steps stay within int16: 64 * 508 = 32,512 upwards, 64 * 512 = 32,768 downwards.
"""

from typing import Any

from . import trits, vectors
from .vectors import I8, I16, I32, Vector, intrinsic

WIDTH = 32
REGISTERS = 16
UNSHIFTED = False
STEPS_PER_FOLD = 64
FUSED = True
ANY_BYTE = False
TILE_BLOCKS, TILE_TOKENS = 3, 4  # one of 12 sums lies on the stack, and still it is 8 % quicker than 8 sums (docs/log.md#tiles)

Bytes, Narrow, Wide = Vector(I8, 32), Vector(I16, 16), Vector(I32, 8)

triple = trits.tripled(Bytes, "x")
LaneSums = Narrow


def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
    """Emits sums[i] + codes[2i] * values[2i] + codes[2i + 1] * values[2i + 1]; codes unsigned, values signed."""
    return b.add(sums, vectors.call(b, "llvm.x86.avx2.pmadd.ub.sw", Narrow.llvm, [codes, values]))


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """Emits wide[i] + narrow[2i] + narrow[2i + 1]."""
    return b.add(wide, vectors.call(b, "llvm.x86.avx2.pmadd.wd", Wide.llvm, [narrow, Narrow.splat(1)]))


@intrinsic
def quad_dot(typingctx: Any, sums: Any, codes: Any, values: Any) -> Any:
    """sums[i] + the four products of bytes 4i .. 4i + 3; codes unsigned up to 64, values signed."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return lane_fold(b, args[0], vectors.call(b, "llvm.x86.avx2.pmadd.ub.sw", Narrow.llvm, list(args[1:])))

    return Wide(Wide, Bytes, Bytes), codegen
