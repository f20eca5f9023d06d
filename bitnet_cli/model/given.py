"""What a caller of the Python API gives: a value that is of a wrong type or out of range is a UsageError that names its parameter."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from operator import index
from typing import Any

from bitnet_cli.errors import UsageError, option


def wrong(name: str, value: Any, expected: str) -> UsageError:
    """The error for a value that cannot be."""
    what = "bytes" if isinstance(value, (bytes, bytearray)) else f"{value!r:.60}"
    return UsageError(f"{option(name)} is {what}, expected {expected}")


def number(name: str, value: Any, low: float, high: float = math.inf, *, whole: bool = False) -> Any:
    """`value`, a number from `low` to `high`; NumPy's are numbers, bool is none."""
    good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # also true of NaN
        bounds = "a number" if low == -math.inf else f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise wrong(name, value, f"a whole number, {bounds}" if whole else bounds)
    return value


def text(name: str, value: Any) -> str:
    """`value`, a text."""
    if not isinstance(value, str):
        raise wrong(name, value, "text")
    return value


def several(name: str, value: Any, expected: str) -> list[Any]:
    """What a list, a tuple, an array or another iterable holds. A text is none, nor are bytes."""
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Iterable):
        raise wrong(name, value, expected)
    return list(value)


def texts(name: str, value: Any) -> list[str]:
    """One text, or several, as a list."""
    if isinstance(value, str):
        return [value]
    return [text(f"{name}[{i}]", one) for i, one in enumerate(several(name, value, "text, or a list of texts"))]


def token_ids(name: str, value: Any, expected: str = "a list of token ids") -> list[int]:
    """Token ids, as a list: of a list, a NumPy array or the like."""
    ids = []
    for i, one in enumerate(several(name, value, expected)):
        try:
            ids.append(index(one))
        except TypeError:
            raise wrong(f"{name}[{i}]", one, "a token id") from None
    return ids


def prompt(name: str, value: Any) -> str | list[int]:
    """A text, or token ids."""
    return value if isinstance(value, str) else token_ids(name, value, "text or a list of token ids")


def prompts(name: str, value: Any) -> list[str | list[int]]:
    """Several of these."""
    listed = several(name, value, "a list of texts, or of lists of token ids")
    return [prompt(f"{name}[{i}]", one) for i, one in enumerate(listed)]
