"""Values of a JSON body. Each function gives the value, or raises ApiError 400 with `param`; a field that is null counts as absent."""

from __future__ import annotations

import math
from typing import Any

from bitnet_cli.checkpoint.strict_json import parse_object
from bitnet_cli.errors import BadFileError
from bitnet_cli.serving.errors import ApiError

LONGEST_SHOWN = 60  # characters of a wrong value in a message


def parse_body(data: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys; ApiError 400 for anything else."""
    try:
        return parse_object(data, "request", "body")
    except BadFileError as error:
        raise ApiError(
            400, f"the body is {error.reason}" if not error.reason.startswith("expected") else f"the body: {error.reason}"
        ) from None


def wrong(field: str, value: Any, expected: str) -> ApiError:
    """A value that is not what was expected."""
    return ApiError(400, f"{field} is {value!r:.{LONGEST_SHOWN}}, expected {expected}", param=field, code="invalid_value")


def number(body: dict[str, Any], field: str, default: float, low: float, high: float) -> float:
    """A number in a range, both ends included."""
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise wrong(field, value, f"a number from {low:g} to {high:g}" if high != math.inf else f"a number of {low:g} or more")
    return float(value)


def integer(body: dict[str, Any], field: str, default: int, low: int, high: int) -> int:
    """A whole number in a range, both ends included; 3.0 is one as well."""
    value = body.get(field)
    if value is None:
        return default
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (isinstance(value, float) and value.is_integer())) or not low <= value <= high:
        raise wrong(field, value, f"a whole number from {low} to {high}")
    return int(value)


def flag(body: dict[str, Any], field: str, default: bool = False) -> bool:
    """true or false."""
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(field, value, "true or false")
    return value


def text(body: dict[str, Any], field: str, default: str | None = None) -> str:
    """A text; one that must be there where there is no default."""
    value = body.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise wrong(field, value, "a text")
    return value


def object_of(body: dict[str, Any], field: str) -> dict[str, Any]:
    """An object; empty where there is none."""
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(field, value, "an object")
    return value


def objects(body: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """A list of objects; empty where there is none."""
    value = body.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise wrong(field, value, "a list of objects")
    return value


def texts(body: dict[str, Any], field: str, most: int) -> list[str]:
    """A text or a list of at most `most`, none of them empty; empty where there is none."""
    value = body.get(field)
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > most or not all(isinstance(one, str) and one for one in found):
        raise wrong(field, value, f"a text that is not empty, or a list of at most {most} such")
    return found


def token_ids(value: Any, field: str, vocab: int) -> list[int]:
    """Token ids of the vocabulary, a list; kernels trust them."""
    if not isinstance(value, list):
        raise wrong(field, value, "a list of token ids")
    for token in value:
        if type(token) is not int or not 0 <= token < vocab:
            raise wrong(field, token, f"token ids from 0 to {vocab - 1}")
    return value
