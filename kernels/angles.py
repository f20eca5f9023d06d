"""Tables of the angles by which RoPE rotates: made once, when a model is opened. The same bits on every machine (elementary.py)."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .elementary import TOGETHER, cos_sin, exp, log


class Scaling(NamedTuple):
    """How a model's rotations are slowed down, to reach further than `trained` positions. The default changes nothing.

    trained 0: linear scaling, all by `factor`. Else YaRN (arXiv 2309.00071, section 3): those that turn more than `beta_fast` times in
    `trained` positions stay, those that turn less than `beta_slow` times are slowed down by `factor`, others by something between; the
    two ends of this range are whole numbers of rotations where `truncate`.
    """

    factor: float = 1.0
    trained: int = 0  # positions
    beta_fast: float = 32.0  # turns
    beta_slow: float = 1.0
    truncate: bool = True
    amplitude: float = 1.0  # what cos and sin are multiplied by


UNSCALED = Scaling()


def yarn_amplitude(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by (arXiv 2309.00071, equation 22, whose root of 1 / t this is; mscale: DeepSeek's)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * float(log(factor)) + 1.0


def frequencies(head_dim: int, theta: float, scaling: Scaling = UNSCALED) -> NDArray[np.float32]:
    """Radians a position of each rotation, (head_dim / 2,) float32: theta^(-2i / head_dim), scaled.

    Every step is rounded to float32 where the training code rounds it (transformers, modeling_rope_utils.py).
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    length = exp(exponent.astype(np.float64) * log(theta)).astype(np.float32)  # positions a radian
    factor = np.float32(scaling.factor)
    if not scaling.trained:
        unscaled: NDArray[np.float32] = np.float32(1) / length
        return unscaled / factor
    low, high = (_rotation_of(turns, head_dim, theta, scaling.trained) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low if high != low else 0.001)
    kept = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    mixed: NDArray[np.float32] = np.float32(1) / (factor * length) * (np.float32(1) - kept) + np.float32(1) / length * kept
    return mixed


def _rotation_of(turns: float, head_dim: int, theta: float, trained: int) -> float:
    """Which rotation makes so many turns in `trained` positions: a fraction of the way from the first to the last."""
    return float(head_dim * log(trained / (turns * 2 * math.pi)) / (2 * log(theta)))


def angles(
    context: int, head_dim: int, theta: float, factors: NDArray[np.float32] | None = None, scaling: Scaling = UNSCALED
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of position * frequency[i] / factors[i], times the scaling's amplitude, each (context, head_dim / 2) float32.

    factors: (head_dim / 2,) float32, llama.cpp's `rope_freqs`, by which Llama 3.1 and later stretch slow rotations; None: all 1.

    Frequency and angle are rounded to float32 as the training code rounds them; the angle's rounding grows with the position, so
    computing it more exactly would move away from the model.
    """
    frequency = frequencies(head_dim, theta, scaling)
    if factors is not None:
        frequency = frequency / factors
    amplitude, rows = np.float32(scaling.amplitude), max(1, TOGETHER // len(frequency))
    cos, sin = (np.empty((context, len(frequency)), np.float32) for _ in range(2))
    for start in range(0, context, rows):
        angle = np.arange(start, min(start + rows, context), dtype=np.float32)[:, None] * frequency
        cos[start : start + rows], sin[start : start + rows] = cos_sin(angle.astype(np.float64))
    cos *= amplitude
    sin *= amplitude
    return cos, sin
