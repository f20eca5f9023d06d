"""Metadata of a GGUF file: values that remember their GGUF type, and getters that check type and range.

    GGUF type             Python value
    integers              int
    FLOAT32, FLOAT64      float
    BOOL                  bool
    STRING                str
    ARRAY of STRING       list[str]
    ARRAY of BOOL         array('B') of 0 and 1
    ARRAY of numbers      array of the matching typecode: 4 bytes an INT32, where a list would take 36

Strings are decoded as UTF-8 with `surrogateescape`: vocabularies hold tokens that are not valid UTF-8, and their bytes come back
unchanged from `text.encode("utf-8", "surrogateescape")`.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from bitnet_cli.errors import BadFileError

Value: TypeAlias = "bool | int | float | str | list[str] | array[Any]"
Default = TypeVar("Default")


class ValueType(IntEnum):
    """Types of a metadata value (GGUF specification, `gguf_metadata_value_type`)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


TYPECODES: dict[ValueType, str] = {  # of struct and of array: they agree
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
INTEGERS = frozenset(TYPECODES) - FLOATS - {ValueType.BOOL}


class Typed(NamedTuple):
    """A metadata value with its GGUF type; `item_type` is set for an ARRAY and for nothing else."""

    value: Value
    type: ValueType
    item_type: ValueType | None = None


def with_type(value: Value | Typed | Sequence[int] | Sequence[float]) -> Typed:
    """`value` with the GGUF type that llama.cpp expects of it; a Typed value stays as it is.

    int -> UINT32 (INT32 when negative, 64 bits when 32 are too few), float -> FLOAT32, sequence of ints -> INT32, of floats -> FLOAT32.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(value, ValueType.BOOL)
    if isinstance(value, int):
        if value < 0:
            return Typed(value, ValueType.INT32 if value >= -(2**31) else ValueType.INT64)
        return Typed(value, ValueType.UINT32 if value < 2**32 else ValueType.UINT64)
    if isinstance(value, float):
        return Typed(value, ValueType.FLOAT32)
    if isinstance(value, str):
        return Typed(value, ValueType.STRING)
    if isinstance(value, array):
        item = next((t for t, code in TYPECODES.items() if code == value.typecode), None)
        if item is None:
            raise ValueError(f"an array of typecode {value.typecode!r} has no GGUF type")
        return Typed(value, ValueType.ARRAY, item)
    items = list(value)
    if items and all(isinstance(v, str) for v in items):
        return Typed(cast("list[str]", items), ValueType.ARRAY, ValueType.STRING)
    if items and all(isinstance(v, int) and not isinstance(v, bool) for v in items):
        return Typed(array("i", cast("list[int]", items)), ValueType.ARRAY, ValueType.INT32)
    if items and all(isinstance(v, float) for v in items):
        return Typed(array("f", cast("list[float]", items)), ValueType.ARRAY, ValueType.FLOAT32)
    raise ValueError("a metadata list needs items of one type (str, int or float); wrap an empty one in Typed")


class TypedMetadata:
    """Getters over metadata. Each raises BadFileError that names the file, the key, and the type and range it expected.

    `require_*` refuses an absent key, `optional_*` returns `default` for it; a key that is there is always checked.
    """

    path: Path
    typed_metadata: dict[str, Typed]

    def _take(self, key: str, types: frozenset[ValueType], expected: str, *, items: bool = False) -> Any:
        entry = self.typed_metadata.get(key)
        if entry is None:
            raise BadFileError(self.path, key, f"is missing, expected {expected}")
        if (entry.type is ValueType.ARRAY) is not items or (entry.item_type if items else entry.type) not in types:
            found = entry.type.name if entry.item_type is None else f"ARRAY of {entry.item_type.name}"
            raise BadFileError(self.path, key, f"is {found}, expected {expected}")
        return entry.value

    def _check_count(self, key: str, values: Sequence[Any], count: int | None) -> None:
        if count is not None and len(values) != count:
            raise BadFileError(self.path, key, f"has {len(values)} items, expected {count}")

    def require_int(self, key: str, low: int, high: int) -> int:
        """An integer of any width, low <= value <= high."""
        expected = f"an integer from {low} to {high}"
        value: int = self._take(key, INTEGERS, expected)
        if not low <= value <= high:
            raise BadFileError(self.path, key, f"is {value}, expected {expected}")
        return value

    def require_float(self, key: str, low: float, high: float) -> float:
        """A FLOAT32 or FLOAT64, low <= value <= high; never NaN."""
        expected = f"a float from {low} to {high}"
        value: float = self._take(key, FLOATS, expected)
        if not low <= value <= high:
            raise BadFileError(self.path, key, f"is {value}, expected {expected}")
        return value

    def require_bool(self, key: str) -> bool:
        """A BOOL."""
        value: bool = self._take(key, frozenset({ValueType.BOOL}), "a boolean")
        return value

    def require_str(self, key: str, choices: Collection[str] | None = None) -> str:
        """A string; one of `choices` where they are given."""
        expected = "a string" if choices is None else "one of " + ", ".join(sorted(choices))
        value: str = self._take(key, frozenset({ValueType.STRING}), expected)
        if choices is not None and value not in choices:
            shown = value if len(value) <= 60 else value[:60] + "..."
            raise BadFileError(self.path, key, f"is '{shown}', expected {expected}")
        return value

    def require_strings(self, key: str, count: int | None = None) -> list[str]:
        """The file's own list (not a copy) of strings, `count` of them where that is given."""
        values: list[str] = self._take(key, frozenset({ValueType.STRING}), "an array of strings", items=True)
        self._check_count(key, values, count)
        return values

    def require_ints(self, key: str, low: int, high: int, count: int | None = None) -> array[int]:
        """The file's own array of integers, each low <= value <= high."""
        expected = f"integers from {low} to {high}"
        values: array[int] = self._take(key, INTEGERS, f"an array of {expected}", items=True)
        self._check_count(key, values, count)
        self._check_items(key, values, low, high, expected)
        return values

    def require_floats(self, key: str, low: float, high: float, count: int | None = None) -> array[float]:
        """The file's own array of floats, each low <= value <= high; never NaN."""
        expected = f"floats from {low} to {high}"
        values: array[float] = self._take(key, FLOATS, f"an array of {expected}", items=True)
        self._check_count(key, values, count)
        self._check_items(key, values, low, high, expected)
        return values

    def _check_items(self, key: str, values: array[Any], low: float, high: float, expected: str) -> None:
        for i, value in enumerate(values):
            if not low <= value <= high:  # also true of NaN
                raise BadFileError(self.path, f"{key}[{i}]", f"is {value}, expected {expected}")

    def optional_int(self, key: str, low: int, high: int, default: Default) -> int | Default:
        """`require_int`, or `default` where the key is absent."""
        return self.require_int(key, low, high) if key in self.typed_metadata else default

    def optional_float(self, key: str, low: float, high: float, default: Default) -> float | Default:
        """`require_float`, or `default` where the key is absent."""
        return self.require_float(key, low, high) if key in self.typed_metadata else default

    def optional_bool(self, key: str, default: Default) -> bool | Default:
        """`require_bool`, or `default` where the key is absent."""
        return self.require_bool(key) if key in self.typed_metadata else default

    def optional_str(self, key: str, default: Default, choices: Collection[str] | None = None) -> str | Default:
        """`require_str`, or `default` where the key is absent."""
        return self.require_str(key, choices) if key in self.typed_metadata else default

    def optional_strings(self, key: str, default: Default, count: int | None = None) -> list[str] | Default:
        """`require_strings`, or `default` where the key is absent."""
        return self.require_strings(key, count) if key in self.typed_metadata else default

    def optional_ints(self, key: str, low: int, high: int, default: Default, count: int | None = None) -> array[int] | Default:
        """`require_ints`, or `default` where the key is absent."""
        return self.require_ints(key, low, high, count) if key in self.typed_metadata else default

    def optional_floats(self, key: str, low: float, high: float, default: Default, count: int | None = None) -> array[float] | Default:
        """`require_floats`, or `default` where the key is absent."""
        return self.require_floats(key, low, high, count) if key in self.typed_metadata else default
