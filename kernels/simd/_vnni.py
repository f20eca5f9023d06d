"""What the VNNI sets share: vpdpbusd sums four byte products into int32 at once, so nothing overflows and nothing is widened."""

from typing import Any

from . import vectors
from .vectors import Vector, intrinsic


def dot_product(name: str, bytes_type: Vector, sums_type: Vector) -> Any:
    """`dot(sums, codes, values)`: sums[i] + the four products of bytes 4i .. 4i + 3; codes unsigned, values signed."""

    @intrinsic
    def dot(typingctx: Any, sums: Any, codes: Any, values: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            as_int32 = [b.bitcast(a, sums_type.llvm) for a in args[1:]]
            return vectors.call(b, name, sums_type.llvm, [args[0], *as_int32])

        return sums_type(sums_type, bytes_type, bytes_type), codegen

    return dot
