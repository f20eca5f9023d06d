"""Which layers see a window of positions only (Gemma3), from config.json.

GGUF has a size and a period: of every so many layers the last one sees all positions (llama.cpp, `attention.sliding_window_pattern`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

from bitnet_cli.checkpoint import rope
from bitnet_cli.errors import BadFileError, UnsupportedError

PERIOD = 6  # where config.json has none (transformers, Gemma3TextConfig)
SLIDING, FULL = "sliding_attention", "full_attention"


class Fields(rope.Fields, Protocol):
    """Typed access to a JSON object (config.py)."""

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """The whole number under `key`, checked."""
        ...


@dataclass(frozen=True)
class Windows:
    size: int  # positions that a token sees, itself and those before it
    period: int
    theta: float  # base of the rotations in layers with a window


def read_windows(fields: Fields, known: bool) -> Windows | None:
    """None: every layer sees everything. known: whether the family may have windows.

    UnsupportedError for windows in another family, or in layers that no period describes.
    """
    layers = fields.integer("num_hidden_layers", 1, 1 << 12)
    types: Any = fields.get("layer_types")
    if types is None:
        period = fields.integer("sliding_window_pattern", 1, 1 << 12, fields.integer("_sliding_window_pattern", 1, 1 << 12, PERIOD))
        types = [SLIDING if known and (i + 1) % period else FULL for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not all(kind in (SLIDING, FULL) for kind in types):
        raise BadFileError(fields.path, "layer_types", f"expected {layers} times {SLIDING} or {FULL}")
    if SLIDING not in types:
        return None
    if not known:
        raise UnsupportedError(f"{fields.path}: layer_types: {SLIDING} is not supported in this family")
    for period in range(2, layers + 2):
        if all((kind == SLIDING) == bool((i + 1) % period) for i, kind in enumerate(types)):
            return Windows(fields.integer("sliding_window", 1, 1 << 30), period, rope.window_theta(fields))
    raise UnsupportedError(f"{fields.path}: layer_types: {FULL} in another order than once in every so many layers is not supported")
