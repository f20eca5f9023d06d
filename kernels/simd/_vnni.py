"""What the VNNI sets share: vpdpbusd sums four byte products into int32 at once, so nothing overflows and nothing is widened."""

from typing import Any

from . import vectors
from .vectors import Vector


def emitted(name: str, sums_type: Vector) -> Any:
    """`products(b, sums, codes, values)` emits sums[i] + the four products of bytes 4i .. 4i + 3; codes unsigned, values signed."""

    def products(b: Any, sums: Any, codes: Any, values: Any) -> Any:
        return vectors.call(b, name, sums_type.llvm, [sums, *(b.bitcast(a, sums_type.llvm) for a in (codes, values))])

    return products


def lane_fold(b: Any, wide: Any, narrow: Any) -> Any:
    """wide + narrow: sums are int32 already."""
    return b.add(wide, narrow)
