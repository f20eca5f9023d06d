"""RoPE in config.json: the base of its frequencies, and what stretches them. Anything that the written file could not express is refused.

`llama3` (Llama 3.1 and later): rotations slower than once in original_max_position_embeddings / low_freq_factor tokens are slowed down by
`factor`, those faster than once in ... / high_freq_factor stay, and between the two the frequency is interpolated (transformers,
modeling_rope_utils.py, _compute_llama3_parameters). GGUF has one divisor a rotation, the tensor `rope_freqs.weight` (llama.cpp,
conversion/llama.py, generate_extra_tensors), which the architecture `llama` reads.
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError

SECTIONS = ("rope_scaling", "rope_parameters")  # before transformers 5 the scaling stood in the first; since then in the second


class Fields(Protocol):
    """Typed access to a JSON object (config.py)."""

    path: Any
    prefix: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is absent or null."""
        ...

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number in a range, or BadFileError."""
        ...

    def section(self, key: str) -> "Fields | None":
        """An object inside; None where there is none."""
        ...


def rope_theta(fields: Fields, default: float) -> float:
    """transformers 5 writes rope_parameters.rope_theta, older files a top-level rope_theta."""
    section = next(iter(_sections(fields, "rope_parameters")), None)
    source = section if section and section.get("rope_theta") is not None else fields
    return source.number("rope_theta", 1.0, 1e12, default)


def window_theta(fields: Fields) -> float:
    """Base of the layers that see a window (Gemma3): rope_parameters.sliding_attention, older files a top-level rope_local_base_freq."""
    section = fields.section("rope_parameters")
    sliding = section.section("sliding_attention") if section else None
    if sliding and sliding.get("rope_theta") is not None:
        return sliding.number("rope_theta", 1.0, 1e12)
    return fields.number("rope_local_base_freq", 1.0, 1e12, 10000.0)


def _sections(fields: Fields, key: str) -> list[Fields]:
    """The section `key`; where it is one of each type of layer, these, that of layers that see all positions first."""
    section = fields.section(key)
    parts = [section.section(kind) for kind in ("full_attention", "sliding_attention")] if section else []
    return [part for part in parts if part] or ([section] if section else [])


def rope_factors(fields: Fields, head_dim: int, theta: float, can_stretch: bool) -> tuple[float, ...] | None:
    """Divisor of each rotation, head_dim / 2 of them; None: nothing is stretched.

    can_stretch: whether the model's GGUF architecture has a place for divisors. UnsupportedError for every other scaling.
    """
    factors = None
    for key, section in ((k, s) for k in SECTIONS for s in _sections(fields, k)):
        kind = section.get("rope_type", section.get("type", "default"))
        if section.get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedError(f"{fields.path}: {key}.partial_rotary_factor: only 1.0 is supported")
        if kind == "llama3" and can_stretch:
            factors = _llama3(section, head_dim, theta)
        elif kind != "default":
            known = "default and llama3 are" if can_stretch else "default is"
            raise UnsupportedError(f"{fields.path}: {key}: RoPE scaling {str(kind)[:40]!r} is not supported; {known}")
    return factors


def _llama3(section: Fields, head_dim: int, theta: float) -> tuple[float, ...]:
    factor, low = section.number("factor", 1.0, 1e6), section.number("low_freq_factor", 1e-6, 1e6)
    high = section.number("high_freq_factor", 1e-6, 1e6)
    trained = section.number("original_max_position_embeddings", 1, 1 << 30)
    if not low < high:
        raise BadFileError(section.path, f"{section.prefix}high_freq_factor", f"is {high:g}, expected more than low_freq_factor, {low:g}")
    # theta^(2i / head_dim) is a rotation's length in radians a token, of which 2 pi make a turn.
    turns: NDArray[np.float64] = trained / (2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = (turns - low) / (high - low)
    divisors = 1.0 / ((1 - smooth) / factor + smooth)
    return tuple(np.where(turns < low, factor, np.where(turns > high, 1.0, divisors)).tolist())
