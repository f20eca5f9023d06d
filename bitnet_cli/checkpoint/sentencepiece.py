"""tokenizer.model of SentencePiece -> FolderVocabulary with scores.

The file is a protocol buffer (sentencepiece_model.proto). Four of its fields are needed, so it is read here: the sentencepiece package
does not tell user-defined pieces, nor the kind of model.

    ModelProto       1 pieces: { 1 text, 2 score float32, 3 type }     2 trainer_spec     3 normalizer_spec
    trainer_spec     3 model_type: 1 unigram (default), 2 BPE
    normalizer_spec  2 precompiled_charsmap, 3 add_dummy_prefix (default true), 4 remove_extra_whitespaces (default true)
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.byte_bpe import added_flags
from bitnet_cli.checkpoint.spaced_bpe import add_spaces
from bitnet_cli.checkpoint.strict_json import MEGABYTE, read_bytes
from bitnet_cli.checkpoint.vocabulary import FolderVocabulary, TokenType, check_text
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.pre_tokenizers import STEPS
from bitnet_cli.text.spaces import SPACE
from bitnet_cli.text.vocabulary import UNUSED_SCORE, unused_name

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def read(path: Path, settings: dict[str, Any], added: dict[str, Any]) -> FolderVocabulary:
    """`settings`: tokenizer_config.json; `added`: added_tokens.json. Both may bring tokens beyond the pieces."""
    tokens: list[str] = []
    types: list[int] = []
    scores: list[float] = []
    model_type, normalizer = 1, dict[int, Any]()
    for number, value in _fields(read_bytes(path, 64 * MEGABYTE), path):
        if number == 1:
            text, score, kind = _piece(value, path, len(tokens))
            tokens.append(text)
            scores.append(score)
            types.append(kind)
        elif number == 2:
            model_type = next((v for n, v in _fields(value, path) if n == 3), model_type)
        elif number == 3:
            normalizer = dict(_fields(value, path))
    if not tokens:
        raise BadFileError(path, "pieces", "none; is this a SentencePiece model?")
    if model_type != 2:
        raise UnsupportedError(f"{path}: model_type: {model_type} is not supported; 2 (BPE) is")
    # Readers of `llama` vocabularies take text as it is; Llama's own models say the same.
    if normalizer.get(2) or normalizer.get(4, 1):
        what = "a character map (not identity)" if normalizer.get(2) else "remove_extra_whitespaces"
        raise UnsupportedError(f"{path}: normalizer_spec: {what} is not supported")
    if len(set(tokens)) != len(tokens):
        raise BadFileError(path, "pieces", "one piece has two ids")
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    _add_tokens(path, settings, added, tokens, types, scores)
    check_text(path, tokens)
    extra = {"scores": scores, "add_space_prefix": bool(normalizer.get(3, 1))}
    vocabulary = FolderVocabulary(path, "llama", tokens, types, adds_bos=True, unknown=unknown, extra=extra)
    if extra["add_space_prefix"] and settings.get("legacy") is False:  # transformers: a space before the first stretch of text only
        add_spaces(vocabulary, None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False})
    vocabulary.own |= added_flags(_decoder_entries(settings), normalized=STEPS not in vocabulary.own and bool(normalizer.get(3, 1)))
    return vocabulary


def _decoder_entries(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """added_tokens_decoder of tokenizer_config.json, as `added_tokens` of tokenizer.json has it."""
    decoder = settings.get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, dict) else ()
    return [entry | {"id": int(key)} for key, entry in entries if isinstance(entry, dict) and key.isascii() and key.isdigit()]


def _piece(data: Any, path: Path, i: int) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, int(TokenType.NORMAL)
    for number, value in _fields(data, path):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in list(TokenType):
        raise BadFileError(path, f"piece {i}", f"unknown type {kind}")
    if score != score:
        raise BadFileError(path, f"piece {i}", "score is NaN")
    try:
        return text.decode("utf-8"), score, kind
    except UnicodeDecodeError:
        raise BadFileError(path, f"piece {i}", "not UTF-8") from None


def _fields(data: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: an int for a varint, bytes for everything else."""
    if not isinstance(data, bytes):
        raise BadFileError(path, "protocol buffer", "expected a message")
    position = 0

    def varint() -> int:
        nonlocal position
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(data):
                break
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise BadFileError(path, "protocol buffer", "ends within a number; is this a SentencePiece model?", position)

    while position < len(data):
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            yield number, varint()
            continue
        if wire not in (FIXED64, BYTES, FIXED32) or number == 0:
            raise BadFileError(path, "protocol buffer", f"wire type {wire}; is this a SentencePiece model?", position)
        size = varint() if wire == BYTES else 8 if wire == FIXED64 else 4
        if size > len(data) - position:
            raise BadFileError(path, "protocol buffer", "a field is longer than the file", position)
        yield number, data[position : position + size]
        position += size


def _add_tokens(
    path: Path, settings: dict[str, Any], added: dict[str, Any], tokens: list[str], types: list[int], scores: list[float]
) -> None:
    """Tokens that transformers keeps beside the pieces, at the ids that follow theirs; those within the pieces change type only."""
    new: dict[int, tuple[str, TokenType]] = {}
    for text, i in added.items():
        _put(new, path, i, text, TokenType.USER_DEFINED)
    decoder = settings.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        special = isinstance(entry, dict) and entry.get("special") is True
        content = entry.get("content") if isinstance(entry, dict) else None
        i = int(key) if key.isascii() and key.isdigit() and len(key) < 9 else None
        _put(new, path, i, content, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    taken = {token: i for i, token in enumerate(tokens)}
    for i, (text, kind) in sorted(new.items()):
        if taken.get(text, i) != i or (i < len(tokens) and tokens[i] != text):
            raise BadFileError(path, f"token id {i}", f"added token {text[:40]!r} is not the piece with this id")
        if i < len(tokens):
            if types[i] == TokenType.NORMAL:
                types[i] = kind
            continue
        if i > len(tokens) + 4096:
            raise BadFileError(path, f"token id {i}", f"far beyond the {len(tokens)} pieces")
        while len(tokens) <= i:
            last = len(tokens) == i
            tokens.append(text if last else unused_name(len(tokens), taken))
            types.append(kind if last else TokenType.UNUSED)
            scores.append(UNUSED_SCORE)


def _put(new: dict[int, tuple[str, TokenType]], path: Path, i: Any, text: Any, kind: TokenType) -> None:
    if type(i) is not int or i < 0 or not isinstance(text, str) or not text:
        raise BadFileError(path.parent, "added tokens", f"{str(text)[:40]!r} with id {str(i)[:40]}: expected text and an id")
    if i in new and new[i][0] != text:
        raise BadFileError(path.parent, f"token id {i}", f"belongs to both {new[i][0][:40]!r} and {text[:40]!r}")
    new[i] = (text, kind)
