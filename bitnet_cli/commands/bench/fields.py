"""What a row of `bitnet bench` holds, as far as `compare` and `report` read it: a file may come from anywhere."""

import math
import re
from collections.abc import Mapping
from typing import Any

WORDS = {"test", "type_k", "weights", "activations", "cpu_info", "isa", "system", "model_filename", "model_type", "model_sha256"}
WORDS |= {"hidden_act", "head_type", "tokens", "test_time", "build_commit", "method", "energy_not_measured"}
COUNTS = {"n_prompt", "n_gen", "n_depth", "n_threads", "n_top", "model_size", "model_n_params"}
NUMBERS = re.compile(r".*(_a_token|_per_s|_per_s_median|_of_read|_of_peak_ops)|skipped_\w+|spread")
ABOVE_ZERO = {"median_ts", "bytes_a_token", "read_bytes_per_s", "read_bytes_per_s_median"}
# Where the first is, the others are.
TOGETHER = (
    ("bytes_a_token", "ops_a_token", "bytes_per_s", "ops_per_s"),
    ("read_bytes_per_s", "read_bytes_per_s_median", "bytes_a_token"),
    ("skipped_up", "skipped_down"),
    ("layers_ns_a_token", "attention_ns_a_token", "head_ns_a_token", "rest_ns_a_token"),
    ("layers_ns_a_token", "ternary_bytes_a_token", "kv_bytes_a_token", "head_bytes_a_token"),
)
MOST = 1e30  # of any number: products of two are still finite
KERNEL = {"name": str, "ns_a_token": float, "bytes_a_token": int, "ops_a_token": int}
RUNG = {"method": str, "note": str, "joules": int, "low": int, "high": int}


def wrong_field(row: Mapping[str, Any]) -> str | None:
    """The first field with a value that `bitnet bench` does not write, or that is missing beside another; None: there is none."""
    for key, value in row.items():
        if not _fits(key, value):
            return key
    return next((key for first, *others in TOGETHER if first in row for key in others if key not in row), None)


def is_number(value: Any, above_zero: bool = False) -> bool:
    """Whether a field holds a number that can be: finite, under MOST, and not negative, or above zero."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return (value > 0 if above_zero else value >= 0) and value < MOST and math.isfinite(value)


def _is_text(value: Any) -> bool:
    """Whether it can be written: JSON may hold halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _fits(key: str, value: Any) -> bool:
    if key in WORDS:
        return _is_text(value)
    if key in COUNTS:
        return isinstance(value, int) and is_number(value)
    if key in ABOVE_ZERO:
        return is_number(value, above_zero=True)
    if key == "samples_ts":
        return isinstance(value, list) and len(value) > 0 and all(is_number(rate, above_zero=True) and rate < 1e12 for rate in value)
    if key == "versions":
        return isinstance(value, dict) and all(map(_is_text, value.values()))
    if key in ("kernels", "energy"):
        shape = KERNEL if key == "kernels" else RUNG
        return isinstance(value, list) and all(isinstance(each, dict) and _has(each, shape) for each in value)
    return NUMBERS.fullmatch(key) is None or is_number(value) or (key == "spread" and value is None)


def _has(given: Mapping[str, Any], shape: Mapping[str, type]) -> bool:
    """shape: str, int for a number, float for one above 0."""
    fits = (_is_text(given.get(key)) if kind is str else is_number(given.get(key), kind is float) for key, kind in shape.items())
    return all(fits) and all(is_number(value) for key, value in given.items() if key == "share_of_limit")
