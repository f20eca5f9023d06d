"""Text of a given form: which tokens may come next. In: a JSON schema or a regular expression. Out: token ids, anew after every token.

    json_grammar(schema), regex_grammar(pattern) ──> grammar ── Constraint(tokenizer, grammar, ends) ──> allowed, done
                                                                    ^── accept(token)

A token is allowed if the text so far and its bytes begin some text of that form, and an end token if the text has the form already. Nothing
else is decided here: among the allowed tokens the model's probabilities keep their proportions.

The library is llguidance, imported where a form is wanted: 20 ms that others do not pay.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model import given
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import replace_surrogates

if TYPE_CHECKING:
    from llguidance import LLTokenizer

ANY_OBJECT = {"type": "object"}  # what a plain JSON mode gives, as OpenAI's and Ollama's do
MAX_BYTES = 4 << 20  # of a schema or an expression; the library's own limits are on what becomes of it
# White space in JSON: at most one space, after a comma or a colon. Where JSON allows any, a small model writes some until its context is
# full; nothing or a new line with its indent, as in llama.cpp's grammars, still took half of the tokens.
SPACING = {"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": False}
# Else a text that can only go on in one way is spelt by the tokens that the tokenizer would choose, whatever the model prefers.
OPTIONS = '%llguidance {"no_forcing": true}\n'
LONGEST_MESSAGE = 200


def grammar_of(json_schema: str | bool | Mapping[str, Any] | None, regex: str | None) -> str | None:
    """The grammar that a caller asks for by one of these, if any. UsageError: both are given, or as below."""
    if json_schema is not None and json_schema is not False and regex is not None:
        raise UsageError("a text cannot have the form of a JSON schema and of a regular expression; give one of them")
    if regex is not None:
        return regex_grammar(given.text("regex", regex))
    return None if json_schema is None or json_schema is False else json_grammar(json_schema)


def json_grammar(schema: str | bool | Mapping[str, Any]) -> str:
    """Grammar of the JSON texts that a schema describes: a dictionary, or JSON text of one; True stands for any object.

    UsageError: it is not JSON, not a schema, or the library does not know what it asks for, or finds it too large.
    """
    given: Any = ANY_OBJECT if schema is True else schema
    if isinstance(given, str):
        _check_size(given, "the JSON schema")
        try:
            given = json.loads(given, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from None
    given = {} if given is True else given  # as text, `true` is the schema of all that is JSON
    if isinstance(given, Mapping) and isinstance(options := given.get("x-guidance", {}), Mapping):
        given = {**given, "x-guidance": {**SPACING, **options}}
    try:
        text = json.dumps(given, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from None
    _check_size(text, "the JSON schema")
    return checked(f"{OPTIONS}start: %json {text}", "the JSON schema")


def regex_grammar(pattern: str) -> str:
    """Grammar of the texts that a regular expression matches as a whole, in the syntax of Rust's `regex`: no look-around.

    UsageError: it is none, or too large.
    """
    from llguidance import LLMatcher

    _check_size(pattern, "the regular expression")
    lark = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]["lark_grammar"]
    return checked(OPTIONS + lark, "the regular expression")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_size(text: str, what: str) -> None:
    if len(text) > MAX_BYTES:
        raise UsageError(f"{what} is larger than {MAX_BYTES >> 20} MiB")
    if replace_surrogates(text) != text:  # how Python reads bytes of the command line that are no UTF-8
        raise UsageError(f"{what} is not UTF-8")


def checked(grammar: str, what: str) -> str:
    """A grammar in the library's language. UsageError: there is something wrong with it; `what` it is made of."""
    message = _fault(grammar)
    if message:
        raise UsageError(f"{what}: {_one_line(message)}")
    return grammar


def _fault(grammar: str) -> str:
    """What the library has against a grammar; empty where nothing."""
    from llguidance import LLMatcher

    try:
        with contextlib.nullcontext() if grammar.isascii() and "\\u" not in grammar else _without_stderr():
            is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
        return messages[0] if is_error else ""
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # llguidance 1.9.1 shortens what it quotes in a message to 100 bytes, and panics where that is in the middle of a character.
        letters = re.sub(r"\\u[0-9a-f]{4}|[^\x00-\x7f]", "?", grammar)
        return "llguidance fails on it" if letters == grammar else _fault(letters) or "llguidance fails on it"


_STDERR = threading.Lock()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """What is written to file descriptor 2 meanwhile, a millisecond, is lost: a library in Rust says there why it panics."""
    with _STDERR:
        try:
            stderr = os.dup(2)
        except OSError:  # closed
            yield
            return
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)


def _one_line(message: str) -> str:
    """A message of the library without the place in the grammar that was written here, and without the lines that point at it."""
    lines = re.split(r"\n   1 \| |<state>", message)[0].splitlines()
    text = " ".join(line.strip() for line in lines if line.strip(" ^"))
    text = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: ", "", text).strip()
    if text.startswith("NoExtension"):
        return "no text has it"
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."


class _Tokens:
    """What the library wants to know of a tokenizer. One token more than there are stands for the end of the text."""

    def __init__(self, tokenizer: Tokenizer):
        # Hidden and unused tokens have no bytes, so that no text allows them; nor has a token with the byte 0xFF, which UTF-8 lacks and
        # with which the library marks control tokens.
        without = tokenizer.special_ids | tokenizer.silent_ids
        texts = (b"" if i in without else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
        self.tokens = [b"" if b"\xff" in text else text for text in texts]
        self.tokens.append(b"")
        self.eos_token_id, self.bos_token_id = tokenizer.vocab_size, None
        self.special_token_ids: list[int] = []
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"), bos=False)


_LIBRARY: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()


def _library(tokenizer: Tokenizer) -> LLTokenizer:
    """Built once for a tokenizer: half a second with 128,256 tokens."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if tokenizer not in _LIBRARY:
        _LIBRARY[tokenizer] = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)))
    return _LIBRARY[tokenizer]


def constraint(tokenizer: Tokenizer, grammar: str | None, ends: Collection[int], *, endless: bool = False) -> Constraint | None:
    """A new text of that form; None where any will do."""
    return None if grammar is None else Constraint(tokenizer, grammar, ends, endless=endless)


class Constraint:
    """The state of one text.

    allowed  (vocab,) bool: the tokens that may come next; the ends among them where the text may end here
    done     whether the text is complete and nothing may follow
    """

    allowed: NDArray[np.bool_]
    done: bool

    def __init__(self, tokenizer: Tokenizer, grammar: str, ends: Collection[int] = (), *, endless: bool = False):
        """grammar: of json_grammar or regex_grammar. ends: tokens that end a text; endless: not even where it could end.

        UsageError: the grammar is too large, or no text has the form.
        """
        from llguidance import LLMatcher

        self._vocab, self._endless = tokenizer.vocab_size, endless
        self._ends = np.array(sorted(end for end in ends if end < self._vocab), np.int64)
        self._mask = np.zeros(-(-(self._vocab + 1) // 32), np.uint32)
        self._matcher = LLMatcher(_library(tokenizer), grammar, log_level=0)
        self._look(UsageError)

    def accept(self, token: int) -> None:
        """The text goes on with an allowed token. BitnetError: what may come next takes too long to find out."""
        self._matcher.consume_token(token)
        self._look(BitnetError)

    def _look(self, error: type[BitnetError]) -> None:
        """Find out what may come next."""
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise error(f"the form of the text cannot be followed: {_one_line(self._matcher.get_error())}")
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab + 1, bitorder="little").view(bool)
        may_end, self.allowed = bool(bits[-1]), bits[:-1]
        self.allowed[self._ends] = False
        goes_on = bool(self.allowed.any())
        self.allowed[self._ends] = may_end and not self._endless
        self.done = may_end and not goes_on
        if not goes_on and not may_end:
            raise error("no token of this model can go on with a text of the form that is asked for")
