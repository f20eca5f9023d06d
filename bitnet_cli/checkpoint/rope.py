"""RoPE in config.json: the base of its frequencies, and what stretches them. Anything that the written file could not express is refused.

What transformers computes is what counts (transformers 5, modeling_rope_utils.py and the configurations of our families):
    the section is `rope_scaling` where that is there, else `rope_parameters`; Gemma3 has one of `rope_parameters` for each type of layer
    `rope_type`, or `type`, says which scaling; without either there is none, whatever else the section says
    `linear`: all rotations are slowed down by `factor`
    `dynamic`: nothing up to max_position_embeddings, which is as far as a text goes here
    `yarn`: arXiv 2309.00071; cos and sin are multiplied by `attention_factor`, by default 0.1 ln(factor) + 1
    `llama3` (Llama 3.1 and later): rotations slower than once in original_max_position_embeddings / low_freq_factor tokens are slowed down
    by `factor`, those faster than once in ... / high_freq_factor stay, and between the two the frequency is interpolated

In GGUF the first three are keys (`rope.scaling.*`, model/rope.py), the last is a tensor of one divisor a rotation, `rope_freqs.weight`
(llama.cpp, conversion/llama.py, generate_extra_tensors), which the architecture `llama` reads.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError

FULL, SLIDING = "full_attention", "sliding_attention"
WHOLE_HEADS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent")
KINDS = ("default", "none", "linear", "dynamic", "yarn", "llama3")
# Keys of a section that some type reads. Where the section's own type does not, they are passed over, and a note says so.
READ = {"linear": {"factor"}, "dynamic": {"factor"}, "llama3": {"factor", "low_freq_factor", "high_freq_factor"}}
READ["yarn"] = {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
ALL_READ = set().union(*READ.values())


class Fields(Protocol):
    """Typed access to a JSON object (config.py)."""

    path: Any
    prefix: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is absent or null."""
        ...

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in a range, or BadFileError."""
        ...

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number in a range, or BadFileError."""
        ...

    def boolean(self, key: str, default: bool) -> bool:
        """True or false, or BadFileError."""
        ...

    def section(self, key: str) -> "Fields | None":
        """An object inside; None where there is none."""
        ...


@dataclass(frozen=True)
class Rope:
    """Rotations of a model's layers, except those that see a window (windows.py)."""

    theta: float
    factors: tuple[float, ...] | None = None  # divisor of each rotation, head_dim / 2 of them; None: all 1
    scaling: tuple[tuple[str, Any], ...] = ()  # GGUF keys after `rope.scaling.`, with their values; none: nothing is scaled
    notes: tuple[str, ...] = ()  # what was passed over, and what llama.cpp will not do


def read_rope(fields: Fields, head_dim: int, default_theta: float, *, windows: bool, divisors: bool) -> Rope:
    """windows: whether the family has sections for types of layers; divisors: whether its GGUF architecture has a place for `factors`.

    UnsupportedError for every scaling that cannot be written.
    """
    _require_whole_heads(fields)
    section = _section(fields, windows, default_theta)
    theta = (section if section and section.get("rope_theta") is not None else fields).number("rope_theta", 1.0, 1e12, default_theta)
    if section is None:
        return Rope(theta)
    _require_whole_heads(section)
    named = section.get("rope_type", section.get("type"))
    kind = "default" if named is None else named
    where = f"{fields.path}: {section.prefix.rstrip('.')}"
    if kind not in KINDS or (kind == "llama3" and not divisors):
        known = ", ".join(name for name in KINDS if divisors or name != "llama3")
        raise UnsupportedError(f"{where}: RoPE scaling {str(kind)[:40]!r} is not supported; {known} are")
    notes = _passed_over(section, kind, named is None)
    if kind == "linear":
        factor = section.number("factor", 1e-3, 1e6)
        return Rope(theta, None, (("type", "linear"), ("factor", factor)) if factor != 1.0 else (), notes)
    if kind == "dynamic":
        section.number("factor", 1e-3, 1e6)
        context = fields.integer("max_position_embeddings", 1, 1 << 30)
        told = f"{section.prefix.rstrip('.')}: dynamic scaling begins after {context} tokens, where a text ends here"
        return Rope(theta, None, (), (*notes, told))
    if kind == "llama3":
        return Rope(theta, _llama3(section, head_dim, theta, _trained(fields, section)), (), notes)
    if kind == "yarn":
        # Where layers have sections of their own, transformers looks for `truncate` beside these.
        scaling, told_too = _yarn(fields, section, theta, fields.section("rope_parameters") if windows else section)
        return Rope(theta, None, scaling, (*notes, *told_too))
    return Rope(theta, None, (), notes)


def window_theta(fields: Fields) -> float:
    """Base of the layers that see a window (Gemma3): rope_parameters.sliding_attention, older files a top-level rope_local_base_freq.

    UnsupportedError where these are scaled: GGUF has a scaling for the others only.
    """
    section = fields.section("rope_parameters")
    sliding = section.section(SLIDING) if section else None
    if sliding is None:
        return fields.number("rope_local_base_freq", 1.0, 1e12, 10000.0)
    _require_whole_heads(sliding)
    kind = sliding.get("rope_type", sliding.get("type", "default"))
    identity = kind in ("default", "none", "dynamic") or (kind == "linear" and sliding.number("factor", 1e-3, 1e6) == 1.0)
    if not identity:
        raise UnsupportedError(f"{fields.path}: {sliding.prefix}rope_type: {str(kind)[:40]!r} is not supported in layers that see a window")
    return sliding.number("rope_theta", 1.0, 1e12, fields.number("rope_local_base_freq", 1.0, 1e12, 10000.0))


def _require_whole_heads(fields: Fields) -> None:
    """transformers' classes of our families rotate whole heads or fail, whatever these keys say, so nobody knows what the weights want."""
    for key in WHOLE_HEADS:
        if fields.get(key, 1.0) != 1.0:
            raise UnsupportedError(f"{fields.path}: {fields.prefix}{key}: {str(fields.get(key))[:40]} is not supported; only 1.0 is")


def _section(fields: Fields, windows: bool, default_theta: float) -> Fields | None:
    """That of the layers that see all positions."""
    scaling, parameters = fields.section("rope_scaling"), fields.section("rope_parameters")
    used = scaling if fields.get("rope_scaling") else parameters
    if parameters is None:
        return used
    nested, where = parameters.section(FULL), f"{fields.path}: rope_parameters"
    if nested is None and parameters.get(SLIDING) is None:
        # Gemma3's class looks into the sections of types of layers only.
        theta = fields.number("rope_theta", 1.0, 1e12, default_theta)
        flat = parameters.get("rope_type", parameters.get("type", "default")), parameters.number("rope_theta", 1.0, 1e12, theta)
        if windows and flat != ("default", theta):
            raise UnsupportedError(f"{where}: expected one for each type of layer in this family")
        return used
    if not windows:
        raise UnsupportedError(f"{where}: one for each type of layer is not supported in this family")
    if used is scaling and nested:
        raise UnsupportedError(f"{where}: here beside rope_scaling: both say how rotations are scaled")
    return nested or scaling


def _passed_over(section: Fields, kind: str, unnamed: bool) -> tuple[str, ...]:
    """A note for values that change nothing only because of the type, which transformers says has no use for them."""
    unread = sorted(ALL_READ - READ.get(kind, set()))
    left = [f"{key} {str(section.get(key))[:20]}" for key in unread if section.get(key) is not None and section.get(key) != 1.0]
    if not left:
        return ()
    why = "names no type, so rotations are not scaled, as transformers has it" if unnamed else f"type {kind} has no use for all of it"
    return (f"{section.prefix.rstrip('.')}: {why}; not applied: {', '.join(left)}",)


def _trained(fields: Fields, section: Fields) -> int:
    """Positions of the training before the scaling; a value beside the section goes before that in it."""
    context = fields.integer("max_position_embeddings", 1, 1 << 30)
    inside = section.integer("original_max_position_embeddings", 1, 1 << 30, context)
    return fields.integer("original_max_position_embeddings", 1, 1 << 30, inside)


def _yarn(fields: Fields, section: Fields, theta: float, ends: Fields | None) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...]]:
    """GGUF keys and notes. ends: the section that has `truncate`. Formula: transformers, _compute_yarn_parameters."""
    if theta == 1.0:
        raise BadFileError(fields.path, "rope_theta", "1, expected more for YaRN, which orders rotations by their length")
    trained = _trained(fields, section)
    factor = section.number("factor", 1e-3, 1e6, fields.integer("max_position_embeddings", 1, 1 << 30) / trained)
    usual = _amplitude(factor, 1.0)
    mscale, all_dim = section.number("mscale", 0.0, 1e3, 0.0), section.number("mscale_all_dim", 0.0, 1e3, 0.0)
    computed = _amplitude(factor, mscale) / _amplitude(factor, all_dim) if mscale and all_dim else usual
    amplitude = section.number("attention_factor", 1e-3, 1e3, computed)
    fast, slow = section.number("beta_fast", 0.0, 1e6, 32.0) or 32.0, section.number("beta_slow", 0.0, 1e6, 1.0) or 1.0
    keys: list[tuple[str, Any]] = [("type", "yarn"), ("factor", factor), ("original_context_length", trained)]
    turns = (("yarn_beta_fast", fast, 32.0), ("yarn_beta_slow", slow, 1.0))
    own: list[tuple[str, Any]] = [(name, value) for name, value, plain in turns if value != plain]
    if amplitude != usual:
        keys += [("attn_factor", amplitude / usual), ("yarn_attn_factor", amplitude)]
    truncate = ends is None or ends.boolean("truncate", True)
    if not truncate:
        own.append(("yarn_truncate", False))
    notes = [f"{', '.join(name for name, _ in own)}: `bitnet` applies them, llama.cpp does not in this architecture"] if own else []
    if truncate and not section.boolean("truncate", True):
        notes.append(f"{section.prefix}truncate: false is not applied, as transformers has it in this family")
    return (*keys, *own), tuple(notes)


def _amplitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(section: Fields, head_dim: int, theta: float, trained: int) -> tuple[float, ...]:
    factor, low = section.number("factor", 1.0, 1e6), section.number("low_freq_factor", 1e-6, 1e6)
    high = section.number("high_freq_factor", 1e-6, 1e6)
    if not low < high:
        raise BadFileError(section.path, f"{section.prefix}high_freq_factor", f"is {high:g}, expected more than low_freq_factor, {low:g}")
    # theta^(2i / head_dim) is a rotation's length in radians a token, of which 2 pi make a turn.
    turns: NDArray[np.float64] = trained / (2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = (turns - low) / (high - low)
    divisors = 1.0 / ((1 - smooth) / factor + smooth)
    return tuple(np.where(turns < low, factor, np.where(turns > high, 1.0, divisors)).tolist())
