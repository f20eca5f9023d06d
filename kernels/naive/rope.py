"""Twin of kernels/rope.py, and the tables of angles that both use."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def frequencies(head_dim: int, theta: float, scaling: Scaling = UNSCALED) -> NDArray[np.float32]:
    """Radians a position of each rotation, (head_dim / 2,) float32: theta^(-2i / head_dim), scaled.

    Every step is rounded to float32 where the training code rounds it (transformers, modeling_rope_utils.py).
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    length = np.power(float(theta), exponent.astype(np.float64)).astype(np.float32)  # positions a radian
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
    return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))


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
    angle = (np.arange(context, dtype=np.float32)[:, None] * frequency).astype(np.float64)
    amplitude = np.float32(scaling.amplitude)
    return np.cos(angle).astype(np.float32) * amplitude, np.sin(angle).astype(np.float32) * amplitude


def rotate(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """x: (tokens, heads, head_dim); cos, sin: (tokens, head_dim / 2). Pairs are (i, i + head_dim / 2)."""
    low, high = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], -1)


def rotate_pairs(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `rotate`, of pairs (2 i, 2 i + 1), which come out as (i, i + head_dim / 2)."""
    return rotate(np.concatenate([x[..., ::2], x[..., 1::2]], -1), cos, sin)
