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

    UnsupportedError for windows in another family that are shorter than the context, or in layers that no period describes.
    """
    layers = fields.integer("num_hidden_layers", 1, 1 << 12)
    if not known:
        _refuse_short(fields, layers)
        return None
    types: Any = fields.get("layer_types")
    if types is None:
        period = fields.integer("sliding_window_pattern", 1, 1 << 12, fields.integer("_sliding_window_pattern", 1, 1 << 12, PERIOD))
        types = [SLIDING if (i + 1) % period else FULL for i in range(layers)]
    _check_types(fields, types, layers)
    if SLIDING not in types:
        return None
    for period in range(2, layers + 2):
        if all((kind == SLIDING) == bool((i + 1) % period) for i, kind in enumerate(types)):
            return Windows(fields.integer("sliding_window", 1, 1 << 30), period, rope.window_theta(fields))
    raise UnsupportedError(f"{fields.path}: layer_types: {FULL} in another order than once in every so many layers is not supported")


def _check_types(fields: Fields, types: Any, layers: int) -> None:
    if not isinstance(types, list) or len(types) != layers or not all(kind in (SLIDING, FULL) for kind in types):
        raise BadFileError(fields.path, "layer_types", f"expected {layers} times {SLIDING} or {FULL}")


def _refuse_short(fields: Fields, layers: int) -> None:
    """Windows as Qwen3 has them: `layer_types`, or the layers from max_window_layers on where `use_sliding_window` says so.

    One that reaches over the whole context changes nothing. Defaults: transformers, Qwen3Config.
    """
    types: Any = fields.get("layer_types")
    key = "layer_types" if types is not None else "use_sliding_window"
    if types is None:
        used = fields.boolean("use_sliding_window", False)
        types = [SLIDING if used and i >= fields.integer("max_window_layers", 0, 1 << 30, 28) else FULL for i in range(layers)]
    _check_types(fields, types, layers)
    window = fields.integer("sliding_window", 1, 1 << 30, 4096)
    if SLIDING in types and window < fields.integer("max_position_embeddings", 1, 1 << 30):
        raise UnsupportedError(f"{fields.path}: {key}: windows of {window} positions are not supported in this family")
