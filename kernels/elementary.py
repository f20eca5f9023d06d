"""exp, log, cos, sin and sums of NumPy arrays: the same bits on every machine.

NumPy's own functions take other instructions on other CPUs and differ in the last bit; the C library's differ between its versions. Here is
nothing but sums, products and roundings to integers, each an operation of its own, which IEEE 754 defines to the last bit. Not compiled:
who samples, or makes a table of angles, needs no Numba for it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

# ln 2 in two parts: the first has 33 bits, so that its product with an integer of 20 is exact (Cody and Waite). pi / 2 in three.
LN2_HIGH, LN2_REST = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
HALF_PI = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a6p-34"), float.fromhex("0x1.3198a2e037073p-69")
LN2 = LN2_HIGH + LN2_REST
LOG2E, TWO_OVER_PI = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.45f306dc9c883p-1")
ROOTS = 256  # of 2: the table of `exp`
TOGETHER = 8192  # values: what is between two operations on them stays in the L2 cache; 128,256 at once take ten times as long
LOWEST = -708.0  # exponent: float64 has no normal numbers much further down


def _powers() -> Doubles:
    """2^(i / ROOTS) for i < ROOTS, computed in integers and rounded once."""
    bits = 200
    root, powers = 2 << bits, [1 << bits]
    for _ in range(ROOTS.bit_length() - 1):
        root = math.isqrt(root << bits)
    while len(powers) < ROOTS:
        powers.append(powers[-1] * root >> bits)
    return np.array([power / (1 << bits) for power in powers])


_POWERS = _powers()


def exp(x: Doubles) -> Doubles:
    """e^x for x up to 709, and not under e^-708; off by at most two units of the last place.

    x = (256 n + i) ln 2 / 256 + r, |r| < 0.0014: e^x = 2^n 2^(i / 256) e^r, the last by its series up to r⁴ (the next term is 3.4e-17).
    """
    if x.ndim == 1 and len(x) > TOGETHER:
        return np.concatenate([exp(x[start : start + TOGETHER]) for start in range(0, len(x), TOGETHER)])
    x = np.fmax(x, LOWEST)
    steps = np.rint(x * (ROOTS * LOG2E))
    r = x - steps * (LN2_HIGH / ROOTS) - steps * (LN2_REST / ROOTS)
    whole = steps.astype(np.int64)
    power = _POWERS[whole & (ROOTS - 1)]
    y: Doubles = power + power * (r + r * r * (0.5 + r * (1 / 6 + r * (1 / 24))))
    y.view(np.int64)[...] += (whole & -ROOTS) << (52 - 8)  # n is added to the exponent
    return y


def total(x: Doubles) -> Doubles:
    """Sums along the last axis, by halving: value i and i + half of them are added, and the last of an odd number to the first."""
    while (size := x.shape[-1]) > 1:
        half = size // 2
        y = x[..., :half] + x[..., half : 2 * half]
        if size % 2:
            y[..., 0] += x[..., -1]
        x = y
    return x[..., 0]


# Coefficients of FreeBSD's msun (e_log.c, k_sin.c, k_cos.c), each series off by less than 2^-57: of log(1 + f) in (f / (2 + f))², and of
# sin and cos within pi / 4.
_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_SIN = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def _series(coefficients: tuple[float, ...], z: Any) -> Any:
    """c[0] + z (c[1] + z (c[2] + ...))."""
    value: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = coefficient + z * value
    return value


def log(x: Doubles | float) -> Doubles:
    """ln x, x > 0 and finite; off by at most one unit of the last place. A scalar is taken as an array of no dimensions."""
    fraction, power = np.frexp(x)
    small = fraction < math.sqrt(0.5)
    f, n = np.where(small, 2 * fraction, fraction) - 1, power - small.astype(np.int64)
    s, half = f / (2 + f), 0.5 * f * f
    z = s * s
    y: Doubles = n * LN2_HIGH - (half - (s * (half + z * _series(_LOG, z)) + n * LN2_REST) - f)
    return y


def cos_sin(x: Doubles) -> tuple[Doubles, Doubles]:
    """cos and sin of angles, 0 <= x < 2^24 radians; off by at most 2^-52, and from 2^20 on by 2^-29.

    x = k pi / 2 + r, |r| <= pi / 4: cos r and sin r by their series, and k says which of them is which, and with which sign.
    """
    turns = np.rint(x * TWO_OVER_PI)
    r = x - turns * HALF_PI[0] - turns * HALF_PI[1] - turns * HALF_PI[2]
    z, quarter = r * r, turns.astype(np.int64)
    sin = r + r * (z * _series(_SIN, z))
    cos = 1 - (0.5 * z - z * (z * _series(_COS, z)))
    odd = (quarter & 1).astype(np.bool_)
    return np.where(odd, sin, cos) * (1 - (quarter + 1 & 2)), np.where(odd, cos, sin) * (1 - (quarter & 2))
