"""16 lanes of float64, for sums of float32 values whose order must not show: norms, and lengths for the head's proofs.

A product of two float32 numbers is exact in float64, so it makes no difference whether a CPU multiplies and adds in one step.
"""

from typing import Any

from llvmlite import ir
from numba import types

from .floats import F32x16, I32x16, float_total
from .vectors import F64, I32, Vector, binary, constant, intrinsic, lanewise

F64x16 = Vector(F64, 16)
zero_f64 = constant(F64x16, 0.0)
add_f64, sub_f64, mul_f64 = binary(F64x16, "fadd"), binary(F64x16, "fsub"), binary(F64x16, "fmul")
wide = lanewise(F32x16, F64x16, lambda b, value: b.fpext(value, F64x16.llvm))
of_i32 = lanewise(I32x16, F64x16, lambda b, value: b.sitofp(value, F64x16.llvm))
narrow = lanewise(F64x16, F32x16, lambda b, value: b.fptrunc(value, F32x16.llvm))
total_f64 = float_total(F64x16, types.float64)


@intrinsic
def splat_f64(typingctx: Any, value: Any) -> Any:
    """A vector with every lane `value` (float64)."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        one = b.insert_element(ir.Constant(F64x16.llvm, ir.Undefined), args[0], I32(0))
        return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, 16), [0] * 16))

    return F64x16(types.float64), codegen
