"""exp of 16 floats at once, for softmax and SiLU: written out, because the C library's expf is one call a value."""

from .jit import inlined
from .simd import floats, selected
from .simd.floats import F32x16
from .simd.vectors import constant

add, mul, fma, larger = floats.add_f32, floats.mul_f32, selected.fma, floats.max_f32
nearest, power_of_two = floats.nearest_f32, floats.power_of_two_f32

_LOG2E, _LOWEST = constant(F32x16, 1.4426950408889634), constant(F32x16, -87.0)
# ln 2 in two parts, negative (Cody and Waite): the first has few bits, so n * part is exact.
_LN2_HIGH, _LN2_LOW = constant(F32x16, -0.693359375), constant(F32x16, 2.12194440e-4)
_C6, _C5, _C4 = constant(F32x16, 1.3888889e-3), constant(F32x16, 8.3333333e-3), constant(F32x16, 4.1666667e-2)
_C3, _C2, _ONE = constant(F32x16, 1.6666667e-1), constant(F32x16, 0.5), constant(F32x16, 1.0)


@inlined
def exp(x):
    """exp(x) for x <= 0, not under e^-87: 2^n * exp(r), r = x - n ln 2 within ±0.35, by a polynomial of degree 6 (error under 2.5e-7)."""
    y = larger(x, _LOWEST())
    n = nearest(mul(y, _LOG2E()))
    r = fma(n, _LN2_LOW(), fma(n, _LN2_HIGH(), y))
    p = fma(fma(fma(fma(_C6(), r, _C5()), r, _C4()), r, _C3()), r, _C2())
    return mul(add(fma(mul(p, r), r, r), _ONE()), power_of_two(n))
