"""exp, log, cos, sin and sums of elementary.py against exact arithmetic, and as they were: the last bit is what they are for."""

import hashlib
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from bitnet_kernels.angles import angles, frequencies
from bitnet_kernels.elementary import LN2, TOGETHER, cos_sin, exp, log, total
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def units_off(found: float, exact: Decimal) -> float:
    """In units of the last place."""
    return abs(float((Decimal(found) - exact) / Decimal(math.ulp(float(exact)))))


def spread(count: int, low: float, high: float) -> Doubles:
    """Numbers all over a range, the same everywhere."""
    return low + (high - low) * (np.arange(count) * 0.6180339887498949 % 1)


def test_exp() -> None:
    x = np.concatenate([spread(2000, -50, 0), spread(500, -708, 709), [0.0, -1e-300, -708.0, 709.0, LN2, -LN2 / 512]])
    with localcontext() as context:
        context.prec = 40
        assert max(units_off(y, Decimal(v).exp()) for v, y in zip(x.tolist(), exp(x).tolist(), strict=True)) < 2
    assert exp(np.zeros(1))[0] == 1.0
    assert np.all(exp(np.array([-1e4, -np.inf])) == exp(np.array([-708.0])))


def test_exp_of_many_is_that_of_each() -> None:
    x = spread(2 * TOGETHER + 3, -30, 0)
    assert np.array_equal(exp(x), np.concatenate([exp(part) for part in np.array_split(x, 300)]))
    assert np.array_equal(exp(x[:300].reshape(2, -1)).reshape(-1), exp(x[:300]))


def test_log() -> None:
    x = np.concatenate([spread(2000, 0.1, 4), 10 ** spread(500, -300, 300), [1.0, 2.0, 0.5, math.sqrt(0.5), math.pi]])
    with localcontext() as context:
        context.prec = 40
        assert max(units_off(y, Decimal(v).ln()) for v, y in zip(x.tolist(), log(x).tolist(), strict=True) if v != 1) < 1
    assert log(1.0) == 0.0
    assert log(2.0) == LN2


def test_cos_and_sin() -> None:
    """Angles as float32 has them, near multiples of pi / 2 too."""
    x = np.concatenate([spread(20_000, 0, 10), spread(20_000, 0, 131_072), np.arange(2000) * (math.pi / 2)]).astype(np.float32)
    cos, sin = cos_sin(x.astype(np.float64))
    exact = [math.cos(v) for v in x.tolist()], [math.sin(v) for v in x.tolist()]
    assert max(np.abs(cos - exact[0]).max(), np.abs(sin - exact[1]).max()) < 2.0**-52
    assert [part[0] for part in cos_sin(np.zeros(1))] == [1.0, 0.0]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1001])
def test_totals(count: int) -> None:
    x = spread(3 * count, 0, 1).reshape(3, count)
    assert np.allclose(total(x), [math.fsum(row) for row in x.tolist()], rtol=1e-15)
    assert total(x[0]) == total(x)[0]


def test_frequencies_are_rounded_once() -> None:
    with localcontext() as context:
        context.prec = 40
        for theta in (1e4, 5e5, 1e6):
            exact = [Decimal(theta) ** (Decimal(2 * i) / 128) for i in range(64)]
            assert np.array_equal(1 / frequencies(128, theta), 1 / (1 / np.array(exact, np.float64).astype(np.float32)))


def test_the_last_bits() -> None:
    """Of everything at once. They may change for a reason, but not by chance: texts change with them."""
    x = spread(5000, -40, 0)
    parts = [exp(x), log(1 - x), total(x), *cos_sin(-100 * x), *angles(600, 128, 1e6)]
    assert hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16] == "e4bf00d67132f3d4"
