"""What the VNNI sets share: vpdpbusd sums four byte products into int32 at once, so nothing overflows and nothing is widened."""

from typing import Any

from . import vectors
from .vectors import Vector, intrinsic


def emitted(name: str, sums_type: Vector) -> Any:
    """`products(b, sums, codes, values)` emits sums[i] + the four products of bytes 4i .. 4i + 3; codes unsigned, values signed."""

    def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
        return vectors.call(b, name, sums_type.llvm, [sums, *(b.bitcast(a, sums_type.llvm) for a in (codes, values))])

    return products


def dot_product(products: Any, bytes_type: Vector, sums_type: Vector) -> Any:
    """`dot(sums, codes, values)`: those products."""

    @intrinsic
    def dot(typingctx: Any, sums: Any, codes: Any, values: Any) -> Any:
        return sums_type(sums_type, bytes_type, bytes_type), lambda ctx, b, sig, args: products(b, *args)

    return dot


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """wide + narrow: sums are int32 already."""
    return b.add(wide, narrow)
