"""Strings that know where each of their characters is from. For the child of jinja.py: only the standard library and MarkupSafe are used.

A `Text` is a string with a character of origin for each of its own: the template, an answer of the model, or anything else, a *message*.
What is done to a Text takes the origins along, character by character; where that is not known, or a string is no Text, its characters are
a message's. So nothing becomes the template's that is not: what a method here forgets costs the template a control token, and never makes
one. What it does and what it is, in all else, is a str.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

from markupsafe import Markup

MESSAGE, TEMPLATE = "\0", "\1"  # origins of a character; of the characters of an answer: numbers from FIRST on, one after the other
FIRST = 2


def _cased(method: Callable[[str], str]) -> Callable[[Any], "Text"]:
    """Letters may become more of them (`ß`), and never fewer: as long as before means one for one."""
    return lambda text: Text(method(text), text._from)


class Text(str):
    """A string that knows where its characters are from: `_from`, as long as itself."""

    __slots__ = ("_from",)
    _from: str

    def __new__(cls, text: str = "", origins: str | None = None) -> "Text":
        self = super().__new__(cls, text)
        self._from = origins if origins is not None and len(origins) == len(self) else MESSAGE * len(self)
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> "Text":
        return Text(str.__getitem__(self, key), self._from[key])

    def __iter__(self) -> Iterator[str]:
        return map(Text, str.__iter__(self), self._from)

    def __add__(self, other: Any) -> "Text":
        return Text(str.__add__(self, other), self._from + origins_of(other)) if _is_plain(other) else NotImplemented

    def __radd__(self, other: Any) -> "Text":
        return Text(str.__add__(other, self), origins_of(other) + self._from) if _is_plain(other) else NotImplemented

    def __mul__(self, count: Any) -> "Text":
        return Text(str.__mul__(self, count), self._from * count) if isinstance(count, int) else NotImplemented

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Text":
        return _printed(self, str.__mod__(self, values), values)

    def join(self, items: Iterable[str], /) -> "Text":
        """As in str, like the others below."""
        items = list(items)
        return Text(str.join(self, items), self._from.join(map(origins_of, items)))

    def strip(self, chars: str | None = None, /) -> "Text":
        """As in str."""
        return self.rstrip(chars).lstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Text":
        """As in str."""
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Text":
        """As in str."""
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> "Text":
        """As in str."""
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> "Text":
        """As in str."""
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As in str."""
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As in str."""
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As in str."""
        whole = self._found(str.splitlines(self, keepends=True), "")
        return [line[: len(bare)] for line, bare in zip(whole, str.splitlines(self, keepends), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As in str."""
        left, found, right = self._found(str.partition(self, sep), "")
        return left, found, right

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As in str."""
        left, found, right = self._found(str.rpartition(self, sep), "")
        return left, found, right

    def _found(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """Parts that follow one another, with `sep` between two of them; None: spaces, and no part but the first begins with one."""
        found: list[str] = []
        at = 0
        for part in parts:
            at = str.find(self, part, at) if sep is None else at
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> "Text":
        """As in str."""
        replaced = str.replace(self, old, new, count)
        return Text(replaced) if not old else Text(replaced, origins_of(new).join(map(origins_of, self.split(old, count))))

    upper, lower, title, capitalize, swapcase, casefold = map(
        _cased, (str.upper, str.lower, str.title, str.capitalize, str.swapcase, str.casefold)
    )


Text.__name__, Text.__module__ = "str", "builtins"  # in what Jinja says of errors


def _is_plain(value: Any) -> bool:
    return type(value) is Text or type(value) is str


class Safe(Markup):
    """Jinja's `safe`: what is put beside it is escaped as HTML, whether or not the template meant that."""

    __slots__ = ("_from",)
    _from: str

    def __new__(cls, text: Any = "", origins: str | None = None) -> "Safe":
        self = super().__new__(cls, text)
        self._from = origins if origins is not None and len(origins) == len(self) else MESSAGE * len(self)
        return self

    def __str__(self) -> str:
        return Text(str.__str__(self), self._from)

    def __add__(self, other: Any) -> "Safe":
        if not _is_plain(other) and type(other) is not Safe:
            return super().__add__(other)
        return Safe(*_both(self, _escaped(other)))

    def __radd__(self, other: Any) -> "Safe":
        return Safe(*_both(_escaped(other), self)) if _is_plain(other) else super().__radd__(other)


Safe.__name__, Safe.__module__ = "Markup", "markupsafe"


def _both(left: str, right: str) -> tuple[str, str]:
    return str.__add__(left, right), origins_of(left) + origins_of(right)


def _escaped(text: str) -> str:
    """`text` as MarkupSafe escapes it, which changes no character but some single ones."""
    return text if type(text) is Safe else joined(Text(part, origin * len(part)) for part, origin in _escapes(text))


def _escapes(text: str) -> Iterator[tuple[str, str]]:
    return ((str.__str__(Markup.escape(letter)), origin) for letter, origin in zip(str.__str__(text), origins_of(text), strict=True))


def safe(value: Any) -> Markup:
    """The filter."""
    return Safe(value, origins_of(value)) if isinstance(value, str) else Markup(value)


def origins_of(text: str) -> str:
    """The origins of a string's characters."""
    return text._from if type(text) is Text or type(text) is Safe else MESSAGE * len(text)


def joined(parts: Iterable[str]) -> Text:
    """The parts as one text."""
    return Text().join(parts)


def _assembled(form: Text, parts: list[Any], result: str) -> Text:
    """`result`, with the origins of `parts` if those are it, and if all of the form is the template's; else as a message."""
    if parts and form._from == TEMPLATE * len(form):
        whole = joined(part if isinstance(part, str) else str(part) for part in parts)
        if whole == result:
            return whole
    return Text(result)


def _printed(form: Text, result: str, values: Any) -> Text:
    """What the operator % made; origins for `%s` and `%%` alone."""
    parts, rest = [], list(values) if isinstance(values, tuple) else [values]
    for part in re.split("(%s|%%)", form):
        if part == "%s" and rest:
            parts.append(rest.pop(0))
        elif part == "%%" or "%" not in part:
            parts.append(told(part.replace("%%", "%")))
        else:
            return Text(result)
    return _assembled(form, parts, result)


def formatted(form: Text, result: str, args: tuple[Any, ...], names: dict[str, Any]) -> Text:
    """What str.format made; origins for fields that are an argument as it is, `{}`, `{0}`, `{name}`."""
    parts: list[Any] = []
    following = iter(args)
    for literal, field, spec, conversion in string.Formatter().parse(form):
        parts.append(told(literal))
        if field is None:
            continue
        if spec or conversion:
            return Text(result)
        if not field:
            parts += [next(following, "")]
        elif field.isdecimal() and int(field) < len(args):
            parts.append(args[int(field)])
        elif field in names:
            parts.append(names[field])
        else:
            return Text(result)
    return _assembled(form, parts, result)


def told(text: str) -> Text:
    """A text of the template's own."""
    return Text(text, TEMPLATE * len(text))


def as_texts(value: Any) -> Any:
    """JSON's value with every string in it a message's; the names of an object stay as they are."""
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, list):
        return [as_texts(item) for item in value]
    if isinstance(value, dict):
        return {name: as_texts(item) for name, item in value.items()}
    return value


def runs(origins: str) -> list[list[int]]:
    """[count, origin] of characters of one origin; of an answer's: consecutive ones, and the number of the first."""
    found: list[list[int]] = []
    for match in re.finditer("\0+|\1+|[^\0\1]+", origins):
        if match[0][0] in (MESSAGE, TEMPLATE):
            found.append([len(match[0]), ord(match[0][0])])
            continue
        for number in map(ord, match[0]):
            if found and found[-1][1] >= FIRST and sum(found[-1]) == number:
                found[-1][0] += 1
            else:
                found.append([1, number])
    return found
