"""GGUF metadata -> its tokenizer: the one place that knows all kinds. Their libraries are imported when one is built."""

from array import array
from collections.abc import Mapping
from typing import Any

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.added import FLAGS, Flags
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import (
    CONTROL,
    PREFIX,
    TOKENS,
    TYPES,
    UNUSED,
    UNUSED_SCORE,
    USER_DEFINED,
    read_vocabulary,
    shown,
    unused_name,
)


def tokenizer_from_metadata(metadata: Mapping[str, object], source: str, rows: int | None = None) -> Tokenizer:
    """The tokenizer that a GGUF file describes; `source` is the file's name, for messages.

    rows   of the embedding, where it is known: tokens past them have no vector, and are left out if no text needs them; rows past the
           tokens are tokens of type unused

    BadFileError: the metadata is inconsistent. UnsupportedError: a kind of tokenizer, or a way of splitting words, that is not known.
    The metadata is not kept: free it, it is half of the memory that loading a large vocabulary takes.
    """
    model = metadata.get(PREFIX + "model")
    if not isinstance(model, str):
        raise BadFileError(source, PREFIX + "model", "is missing or not a string, expected gpt2 or llama")
    if model not in ("gpt2", "llama"):
        raise UnsupportedError(f"{source}: {PREFIX}model: {shown(model)} is not supported, only gpt2 and llama are")
    metadata, notes = _with_rows(metadata, source, rows)
    tokenizer: Tokenizer
    if model == "gpt2":
        from bitnet_cli.text.byte_bpe import ByteLevelBPE

        tokenizer = ByteLevelBPE(metadata, read_vocabulary(metadata, source))
    else:
        from bitnet_cli.text.sentencepiece_bpe import SentencePieceBPE

        tokenizer = SentencePieceBPE(metadata, read_vocabulary(metadata, source))
    tokenizer.notes += notes
    return tokenizer


def _with_rows(metadata: Mapping[str, object], source: str, rows: int | None) -> tuple[Mapping[str, object], list[str]]:
    """The metadata with one token a row, and a note where the file has it otherwise.

    BadFileError: an ordinary token, which a text may need, has no row.
    """
    tokens, types = metadata.get(TOKENS), metadata.get(TYPES)
    if rows is None or not isinstance(tokens, list) or len(tokens) == rows:
        return metadata, []
    if 0 < len(tokens) < rows:
        return _with_unused(metadata, source, rows)
    if isinstance(types, (list, array)) and len(types) == len(tokens):
        unneeded = all(kind in (CONTROL, USER_DEFINED, UNUSED) for kind in types[rows:])
    else:
        unneeded = False
    if not unneeded:
        raise BadFileError(source, TOKENS, f"has {len(tokens)} tokens, but the model has {rows}, and those past it are not unused")
    fitted: dict[str, Any] = dict(metadata)
    for key in (TOKENS, TYPES, PREFIX + "scores"):
        values = metadata.get(key)
        if isinstance(values, (list, array)) and len(values) == len(tokens):
            fitted[key] = values[:rows]
    for key in (FLAGS + name for name in Flags._fields):
        ids = metadata.get(key)
        if isinstance(ids, (list, array)):
            fitted[key] = [i for i in ids if not (isinstance(i, int) and i >= rows)]
    return fitted, [
        f"{len(tokens) - rows} tokens of the tokenizer, from {shown(str(tokens[rows]))} on, have no row in the embedding: left out"
    ]


def _with_unused(metadata: Mapping[str, object], source: str, rows: int) -> tuple[Mapping[str, object], list[str]]:
    """The metadata with unused tokens for the rows past the file's own, and a note: heads are rounded up, and not every writer fills the
    vocabulary up with them."""
    found = read_vocabulary(metadata, source)
    count = len(found.tokens)
    padded = dict(metadata) | {TOKENS: [*found.tokens, *(unused_name(i, found.ids) for i in range(count, rows))]}
    padded[TYPES] = [*found.types, *[UNUSED] * (rows - count)]
    scores = metadata.get(PREFIX + "scores")
    if isinstance(scores, (list, array)) and len(scores) == count:
        padded[PREFIX + "scores"] = [*scores, *[UNUSED_SCORE] * (rows - count)]
    return padded, [f"{rows - count} rows of the embedding, from {count} on, have no token: they are never chosen"]
