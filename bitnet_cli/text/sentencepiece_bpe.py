"""SentencePiece BPE (`tokenizer.ggml.model` = `llama`): Llama 1 and 2, the 1bitLLM models, Gemma.

In: metadata with tokens, scores and token types. Out: a `Tokenizer` around the `sentencepiece` library, which reads a ModelProto only;
it is written here by hand, six fields of protobuf, because the protobuf package would be one dependency more
(layout: google/sentencepiece, src/sentencepiece_model.proto).

Files that list merges too (`tokenizer.ggml.merges`; ours do where scores cannot say the same) are read with the `tokenizers` library, which
goes by them: a score is of a token, however it is put together, and a merge of two tokens.

Where spaces go is in spaces.py. Decoding takes off the first space of a text only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import sentencepiece

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.added import read_flags
from bitnet_cli.text.bpe_model import MERGES, bpe_model
from bitnet_cli.text.pre_tokenizers import IGNORE_MERGES
from bitnet_cli.text.spaces import SPACE, read_spaces
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    PREFIX,
    TOKENS,
    TYPES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    numbers,
    shown,
    strings,
)

SCORES = PREFIX + "scores"
_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")
_FLOAT32_MAX = 3.4028234e38


class Merger(NamedTuple):
    """A library: ids of one word with its spaces as ▁, and the text of a token."""

    encode: Callable[[str], list[int]]
    text: Callable[[int], str]


class SentencePieceBPE(Tokenizer):
    """Built by `tokenizer_from_metadata`, which documents the errors."""

    def __init__(self, metadata: Mapping[str, object], vocabulary: Vocabulary):
        source = vocabulary.source
        super().__init__(vocabulary, add_bos_default=True, flags=read_flags(metadata, source, len(vocabulary.tokens)))
        if TYPES not in metadata:
            raise BadFileError(source, TYPES, "is missing")
        scores = numbers(metadata, source, SCORES, self.vocab_size)
        for i, score in enumerate(scores):
            if not abs(score) <= _FLOAT32_MAX:  # also true of NaN, which would make the order of merges undefined
                raise BadFileError(source, f"{SCORES}[{i}]", f"is {score}, expected a finite number")
        self._spaces = read_spaces(metadata, source, vocabulary.add_space_prefix)
        self._bytes = _byte_tokens(vocabulary)
        # The library gives no text that is not UTF-8, and takes no empty one.
        self._literal = {i: vocabulary.tokens[i] for i in vocabulary.not_utf8()}
        if "" in vocabulary.ids:
            self._literal |= {i: "" for i, text in enumerate(vocabulary.tokens) if not text}
        if MERGES in metadata:
            self._merger = _by_merges(metadata, vocabulary)
        else:
            self._merger = _by_scores(vocabulary, scores, byte_fallback=bool(self._bytes))

    def _normalize(self, text: str) -> str:
        return self._spaces.normalize(text)

    def _encode_words(self, text: str, at_start: bool) -> list[int]:
        ids: list[int] = []
        for word in self._spaces.words(text, at_start):
            ids += self._merger.encode(word)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """As in `Tokenizer`."""
        self._check_id(token_id)
        byte = self._bytes.get(token_id)
        if byte is not None:
            return byte
        text = self._literal.get(token_id)
        if text is None:
            text = self._merger.text(token_id)
        if token_id not in self.special_ids:
            text = text.replace(SPACE, " ")
        return text.encode("utf-8", "surrogateescape")

    def _without_prefix(self, data: bytes) -> bytes:
        return data[1:] if self._spaces.adds_prefix and data[:1] == b" " else data


def _byte_tokens(vocabulary: Vocabulary) -> dict[int, bytes]:
    """Id -> byte of the tokens <0x00> to <0xFF>: all of them or none."""
    found = {}
    for i in vocabulary.ids_of(BYTE):
        match = _BYTE_NAME.fullmatch(vocabulary.tokens[i])
        if match is None:
            raise BadFileError(vocabulary.source, f"{TOKENS}[{i}]", f"is {shown(vocabulary.tokens[i])}, expected <0x00> to <0xFF>")
        found[i] = bytes.fromhex(match[1])
    if found and len(set(found.values())) != 256:
        raise BadFileError(vocabulary.source, TYPES, f"has {len(set(found.values()))} different byte tokens, expected 256 or none")
    return found


def _unknown_id(vocabulary: Vocabulary, has_bytes: bool) -> int:
    """The one token that stands for what the vocabulary cannot express; the number of tokens where bytes express all, and there is none."""
    marked = vocabulary.ids_of(UNKNOWN)
    if vocabulary.unknown_id is not None:
        return vocabulary.unknown_id
    if not marked and not has_bytes:
        raise BadFileError(vocabulary.source, PREFIX + "unknown_token_id", "is missing, and no token is of type 2 (unknown)")
    return marked[0] if marked else len(vocabulary.tokens)


def _by_scores(vocabulary: Vocabulary, scores: Iterable[float], *, byte_fallback: bool) -> Merger:
    """The `sentencepiece` library: of two neighbours that make a token, those of the highest score first."""
    proto = _model_proto(vocabulary, scores, byte_fallback=byte_fallback)
    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, ValueError) as error:
        raise BadFileError(vocabulary.source, TOKENS, f"sentencepiece refuses the vocabulary: {error}") from None
    return Merger(lambda text: list(library.encode(text, out_type=int)), lambda i: str(library.id_to_piece(i)))


def _by_merges(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Merger:
    """The `tokenizers` library: merges in their order, bytes for characters without a token."""
    from tokenizers import Tokenizer as Library

    ignore_merges = metadata.get(IGNORE_MERGES, False)
    if not isinstance(ignore_merges, bool):
        raise BadFileError(vocabulary.source, IGNORE_MERGES, "is not true or false")
    unknown = _unknown_id(vocabulary, has_bytes=bool(vocabulary.ids_of(BYTE)))
    hidden = {*vocabulary.ids_of(UNKNOWN, CONTROL, UNUSED), *vocabulary.not_utf8()} - {unknown}
    options: dict[str, object] = {"byte_fallback": True, "fuse_unk": True, "ignore_merges": ignore_merges}
    if unknown < len(vocabulary.tokens):
        options["unk_token"] = vocabulary.tokens[unknown]
    library = Library(bpe_model(vocabulary, hidden, strings(metadata, vocabulary.source, MERGES), options))
    texts = {i: vocabulary.tokens[i] for i in hidden}
    return Merger(
        lambda text: list(library.encode(text, add_special_tokens=False).ids), lambda i: texts.get(i) or library.id_to_token(i) or ""
    )


def _model_proto(vocabulary: Vocabulary, scores: Iterable[float], *, byte_fallback: bool) -> bytes:
    unknown = _unknown_id(vocabulary, byte_fallback)
    out = bytearray()
    for i, score in enumerate(scores):
        text, kind = vocabulary.tokens[i], vocabulary.types[i]
        if i == unknown:
            kind = UNKNOWN
        elif kind == UNKNOWN:  # a second one is refused
            kind = CONTROL
        elif kind == USER_DEFINED:  # found before the text comes here; merges may make it as well
            kind = NORMAL
        piece = text.encode("utf-8", "surrogateescape")
        if not piece:  # byte 0xFF is in no text: unreachable, and different from every other token
            piece, kind = b"\xff%d" % i, UNUSED
        out += _field(1, _field(1, piece) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    if unknown == len(vocabulary.tokens):  # the library does not work without one
        out += _field(1, _field(1, b"\xff") + _number(3, UNKNOWN))
    # trainer_spec: model type BPE, byte fallback, id of unk; bos and eos -1, they are put in by our own code
    trainer = _number(3, 2) + _number(35, int(byte_fallback)) + _number(40, unknown) + _number(41, -1) + _number(42, -1)
    # normalizer_spec: no Unicode normalisation, no space before a text (spaces.py), keep repeated spaces, write a space as `▁`
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    return bytes(out) + _field(2, trainer) + _field(3, normalizer)


def _varint(value: int) -> bytes:
    """Protobuf varint: 7 bits a byte, the lowest first; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
