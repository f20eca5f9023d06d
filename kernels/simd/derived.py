"""What every instruction set has alike, once its module says which types it works on (simd/__init__.py has the names)."""

from types import ModuleType
from typing import Any

from . import floats, vectors
from .vectors import intrinsic


def operations(chosen: ModuleType) -> dict[str, Any]:
    """Names that the module of a set may leave to this one, and what they stand for."""
    values, wide, fused = chosen.Bytes, chosen.Wide, chosen.FUSED
    narrow, load_f16 = getattr(chosen, "Narrow", wide), floats.half_precision_loader(fused)

    @intrinsic
    def dot(typingctx: Any, sums: Any, codes: Any, x: Any) -> Any:
        return narrow(narrow, values, values), lambda ctx, b, sig, args: chosen.products(b, *args)

    @intrinsic
    def fold(typingctx: Any, sums: Any, more: Any) -> Any:
        return wide(wide, narrow), lambda ctx, b, sig, args: chosen.lane_fold(b, *args)

    return {
        "load": vectors.loader(values),
        "load_half": vectors.half_loader(values),
        "store": vectors.storer(values),
        "add_bytes": vectors.binary(values, "add"),
        "zero_bytes": vectors.constant(values),
        "total_bytes": vectors.integer_total(values),
        **{f"field{i}": vectors.two_bit_field(values, 6 - 2 * i) for i in range(4)},
        "zero_narrow": vectors.constant(narrow),
        "zero_wide": vectors.constant(wide),
        "dot": dot,
        "quad_dot": dot,  # of sets whose sums are int32 at once
        "fold": fold,
        "total": vectors.integer_total(wide),
        "totals": vectors.four_totals(wide),
        "load_f16": load_f16,
        "to_f16": floats.half_precision_bits(fused),
        "one_f16": floats.half_precision_scalar(fused),
        "load_float": floats.float_loader(load_f16),
        "fma": floats.multiply_add(fused),
    }
