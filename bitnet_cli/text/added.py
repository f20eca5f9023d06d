"""Tokens that stand in a text as they are: where they are found, and what of the spaces around them belongs to them.

In: a text. Out: the stretches between such tokens, and the tokens. Found from left to right, the longest where several begin at one place,
as Hugging Face's `AddedVocabulary` does (tokenizers, src/tokenizer/added_vocabulary.rs).

GGUF has no keys for the flags of `added_tokens` in a tokenizer.json, so `convert` writes arrays of ids under keys of ours. Files without
them have tokens without flags, as in llama.cpp.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bitnet_cli.errors import BadFileError

FLAGS = "bitnet.tokenizer.added."  # + lstrip, rstrip, single_word, normalized
# White_Space of Unicode, as Rust's expressions have it; Python's \s has U+001C to U+001F as well.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


class Flags(NamedTuple):
    """Ids of tokens. lstrip, rstrip: spaces before / after are part of the token; single_word: not within a word; normalized: looked for
    in the text as the normalizer leaves it."""

    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    single_word: frozenset[int] = frozenset()
    normalized: frozenset[int] = frozenset()


def read_flags(metadata: Mapping[str, object], source: str, count: int) -> Flags:
    """The flags of a file with `count` tokens. BadFileError: not arrays of ids."""

    def ids(name: str) -> frozenset[int]:
        values = metadata.get(FLAGS + name, [])
        if not isinstance(values, (list, array)) or not all(type(i) is int and 0 <= i < count for i in values):
            raise BadFileError(source, FLAGS + name, f"expected an array of ids from 0 to {count - 1}")
        return frozenset(values)

    return Flags(*(ids(name) for name in Flags._fields))


class AddedTokens:
    """`ids`: token's text -> id."""

    def __init__(self, ids: Mapping[str, int], flags: Flags):
        self._ids, self._flags = ids, flags
        self._pattern = any_of(ids) if ids else None

    def cut(self, text: str) -> Iterator[tuple[int, int | str]]:
        """(position, stretch of text that is not empty) and (position, token's id), in the order of the text."""
        end = 0
        for start, stop, token in self.matches(text):
            if end < start:
                yield end, text[end:start]
            yield start, token
            end = stop
        if end < len(text):
            yield end, text[end:]

    def matches(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(start, end, id) of the tokens, with the spaces that belong to them."""
        end, flags = 0, self._flags
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            token, (start, stop) = self._ids[match.group()], match.span()
            if token in flags.single_word and (_in_word(text[start - 1 : start]) or _in_word(text[stop : stop + 1])):
                continue
            if token in flags.lstrip:
                start = max(end, _spaces_before(text, start))
            if token in flags.rstrip:
                stop = _spaces_end(text, stop)
            yield start, stop, token
            end = stop


def _spaces_before(text: str, at: int) -> int:
    while at and text[at - 1] in _SPACE:
        at -= 1
    return at


def _spaces_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _in_word(character: str) -> bool:
    """Whether it is of \\w in Unicode's sense: letters, marks, decimal numbers, connectors, joiners."""
    if not character:
        return False
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in "\u200c\u200d" or "\u24b6" <= character <= "\u24e9"


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Pattern that finds any of the names; the longest where several begin at one place."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
