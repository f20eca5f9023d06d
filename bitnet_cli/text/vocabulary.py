"""GGUF metadata -> checked vocabulary, the common part of every kind of tokenizer.

In: the `tokenizer.ggml.*` keys of a GGUF file. Out: `Vocabulary`. Every fault is a BadFileError that names the file and the key.
Meaning of the keys: GGUF specification, section "Tokenizer"; numbers of the token types: SentencePiece's `ModelProto.SentencePiece.Type`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from bitnet_cli.errors import BadFileError

PREFIX = "tokenizer.ggml."
TOKENS, TYPES = PREFIX + "tokens", PREFIX + "token_type"
ENDS = PREFIX + "eos_token_ids"  # array of every token that ends a text, where there are more than the keys of ENDING; Ollama's key too
ENDING = ("eos", "eot", "eom")  # `NAME_token_id`: the ends that llama.cpp has keys for

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # 0 means undefined and is read as NORMAL

# What ends an answer in the known chat formats. Files name one end token, but many models stop with another: BitNet-2B-4T declares
# <|end_of_text|> and ends its turns with <|eot_id|>.
END_NAMES = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "<|end_of_turn|>", "<|endofturn|>"),
    *("<end_of_turn>", "<eos>", "</s>", "<|eot|>", "<EOT>"),
)
BEGIN_NAMES = ("<|begin_of_text|>", "<s>", "<bos>")

UNUSED_SCORE = -1000.0  # of tokens that no merge may produce; llama.cpp's converter writes the same

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Vocabulary:
    """The checked keys. Ids are positions in `tokens`; None stands for a token that the file does not name."""

    source: str  # the file, for messages
    tokens: list[str]  # the file's own list; a token that is not valid UTF-8 holds its bytes by surrogateescape
    ids: dict[str, int]
    types: bytes  # one number a token
    bos_id: int | None
    eos_ids: frozenset[int]  # the end token first named by the file is in it too
    eos_id: int | None
    unknown_id: int | None
    silent_ids: frozenset[int]  # of tokens that stand for nothing
    add_bos: bool | None  # None: the file does not say
    add_eos: bool
    add_space_prefix: bool

    def ids_of(self, *types: int) -> list[int]:
        """Ids of all tokens of these types, ascending."""
        return [i for i, kind in enumerate(self.types) if kind in types]

    def not_utf8(self) -> list[int]:
        """Ids of the tokens that are not valid UTF-8."""
        if not _LONE_SURROGATE.search("".join(self.tokens)):  # 3 ms for 128,256 tokens where a look at each takes 40 ms
            return []
        return [i for i, text in enumerate(self.tokens) if _LONE_SURROGATE.search(text)]


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which no UTF-8 can hold, become U+FFFD."""
    return _LONE_SURROGATE.sub("�", text)


def shown(text: str) -> str:
    """A string from a file in quotes, short enough for a message."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


def unused_name(i: int, taken: Mapping[str, int]) -> str:
    """Name for a token id that has no token; not one that the vocabulary has."""
    name = f"[PAD{i}]"
    while name in taken:
        name = f"[{name}]"
    return name


def strings(metadata: Mapping[str, object], source: str, key: str) -> list[str]:
    """The list of strings under `key`, not copied."""
    values = _required(metadata, source, key)
    try:
        if isinstance(values, list):
            "".join(values)  # proves that every item is a string, in 5 ms for 280,147 of them
            return values
    except TypeError:
        pass
    raise BadFileError(source, key, "is not an array of strings")


def numbers(metadata: Mapping[str, object], source: str, key: str, count: int) -> list[float]:
    """The array of `count` numbers under `key`."""
    values = _required(metadata, source, key)
    if not isinstance(values, (list, array)) or not all(isinstance(v, (int, float)) for v in values):
        raise BadFileError(source, key, "is not an array of numbers")
    if len(values) != count:
        raise BadFileError(source, key, f"has {len(values)} items, expected {count}, one a token")
    return list(values)


def read_vocabulary(metadata: Mapping[str, object], source: str) -> Vocabulary:
    """Checks and collects. BadFileError: a missing key, a wrong type or length, a duplicate token, an id out of range."""
    tokens = strings(metadata, source, TOKENS)
    if not tokens:
        raise BadFileError(source, TOKENS, "is empty")
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    empty = tokens.count("") if "" in ids else 1  # any number of them: holes in the numbering, which llama.cpp gives names of its own
    if len(ids) != len(tokens) - empty + 1:
        first = next(i for i, text in enumerate(tokens) if text and ids[text] != i)
        raise BadFileError(source, f"{TOKENS}[{first}]", f"{shown(tokens[first])} is there again as token {ids[tokens[first]]}")

    def named(name: str) -> int | None:
        return _token_id(metadata, source, f"{name}_token_id", len(tokens))

    bos, unknown, eos = named("bos"), named("unknown"), named("eos")
    padding = metadata.get(PREFIX + "padding_token_id")  # not used: one sequence at a time needs none; files name tokens that are not there
    if padding is not None and type(padding) is not int:
        raise BadFileError(source, PREFIX + "padding_token_id", f"is {padding!r:.40}, expected an id")
    ending = _named_ends(metadata, source, len(tokens))
    types = _token_types(metadata, source, len(tokens), ending | ({bos} if bos is not None else set()))
    if bos is None:
        bos = next((ids[n] for n in BEGIN_NAMES if n in ids and types[ids[n]] == CONTROL), None)
    ends = {ids[n] for n in END_NAMES if n in ids and types[ids[n]] == CONTROL}
    add_bos, add_eos = _flag(metadata, source, "add_bos_token"), _flag(metadata, source, "add_eos_token")
    if add_bos and bos is None:
        raise BadFileError(source, PREFIX + "add_bos_token", "is true, and the file has no bos token")
    if add_eos and eos is None:
        raise BadFileError(source, PREFIX + "add_eos_token", "is true, and the file has no eos token")
    return Vocabulary(
        source=source,
        tokens=tokens,
        ids=ids,
        types=types,
        bos_id=bos,
        eos_ids=frozenset(ends | ending),
        eos_id=eos,
        unknown_id=unknown,
        silent_ids=frozenset(silent_ids(metadata, source, len(tokens))),
        add_bos=add_bos,
        add_eos=bool(add_eos),
        add_space_prefix=_flag(metadata, source, "add_space_prefix") is not False,
    )


def silent_ids(metadata: Mapping[str, object], source: str, rows: int) -> list[int]:
    """Ids of a model with so many rows of logits that are never chosen, ascending: tokens of type unused, and rows past the tokenizer.

    A token that the file names as an end is one to be chosen, whatever its type. Quick: called for every model that is opened.
    BadFileError: a named end is out of range, or no token is left.
    """
    tokens, types = metadata.get(TOKENS), metadata.get(TYPES)
    count = len(tokens) if isinstance(tokens, list) else rows
    if isinstance(types, (list, array)) and UNUSED in types:
        unused = {i for i, kind in enumerate(types) if kind == UNUSED}
    else:
        unused = set()
    silent = sorted(i for i in (unused | set(range(count, rows))) - _named_ends(metadata, source, count) if i < rows)
    if len(silent) == rows:
        raise BadFileError(source, TYPES, f"is {UNUSED} (unused) for every token: there is none to choose")
    return silent


def _named_ends(metadata: Mapping[str, object], source: str, count: int) -> set[int]:
    """The ids under the keys of ENDING and under ENDS."""
    values = metadata.get(ENDS, [])
    if not isinstance(values, (list, array)) or not all(isinstance(i, int) and 0 <= i < count for i in values):
        raise BadFileError(source, ENDS, f"is not an array of ids from 0 to {count - 1}")
    one_each = (_token_id(metadata, source, f"{name}_token_id", count) for name in ENDING)
    return {*values, *(i for i in one_each if i is not None)}


def _required(metadata: Mapping[str, object], source: str, key: str) -> object:
    if key not in metadata:
        raise BadFileError(source, key, "is missing")
    return metadata[key]


def _token_types(metadata: Mapping[str, object], source: str, count: int, named: set[int]) -> bytes:
    """One number a token. A file without the key has normal tokens, and control tokens where it names them as begin or end."""
    if TYPES not in metadata:
        return bytes(CONTROL if i in named else NORMAL for i in range(count))
    values = numbers(metadata, source, TYPES, count)
    for i, value in enumerate(values):
        if value not in range(BYTE + 1):
            raise BadFileError(source, f"{TYPES}[{i}]", f"is {value}, expected a type from 0 to {BYTE}")
    return bytes(int(v) or NORMAL for v in values)


def _token_id(metadata: Mapping[str, object], source: str, name: str, count: int) -> int | None:
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise BadFileError(source, PREFIX + name, f"is {value!r:.40}, expected an id from 0 to {count - 1}")
    return value


def _flag(metadata: Mapping[str, object], source: str, name: str) -> bool | None:
    value = metadata.get(PREFIX + name)
    if value is None or isinstance(value, bool):
        return value
    raise BadFileError(source, PREFIX + name, f"is {value!r:.40}, expected a boolean")
