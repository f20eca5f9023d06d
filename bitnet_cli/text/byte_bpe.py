"""Byte-level BPE (`tokenizer.ggml.model` = `gpt2`): Llama 3, Falcon 3, Qwen 2, GPT-2, and our own small models.

In: metadata with tokens, merges and the name of the word pattern. Out: a `Tokenizer` around Hugging Face's `tokenizers` library, which
gets normal tokens, merges and the pattern, and nothing else: special tokens are handled here, so that plain text cannot reach them.

Every byte of UTF-8 is written as one printable character (GPT-2's alphabet: space is `Ġ`), and a token is a string of those.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer as Library

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.text.added import read_flags
from bitnet_cli.text.bpe_model import MERGES, bpe_model
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import CONTROL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, numbers, strings
from bitnet_cli.text.words import words_of

SCORES = PREFIX + "scores"


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 bytes stand for themselves; the other 68 take U+0100 and up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in printable)
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


class ByteLevelBPE(Tokenizer):
    """Built by `tokenizer_from_metadata`, which documents the errors."""

    def __init__(self, metadata: Mapping[str, object], vocabulary: Vocabulary):
        source = vocabulary.source
        words = words_of(metadata, source, len(vocabulary.tokens))
        super().__init__(vocabulary, add_bos_default=words.add_bos, flags=read_flags(metadata, source, len(vocabulary.tokens)))
        if words.note:
            self.notes.append(words.note)
        if SCORES in metadata:  # not used, but a wrong count tells of a damaged file
            numbers(metadata, source, SCORES, self.vocab_size)
        odd = vocabulary.not_utf8()
        hidden = {*vocabulary.ids_of(UNKNOWN, CONTROL, UNUSED), *odd}  # plain text never gives these
        user_defined = vocabulary.ids_of(USER_DEFINED)
        # Written in the file as they are, not in the byte alphabet. The library holds the text of all the others.
        self._literal = {i: vocabulary.tokens[i] for i in (*hidden, *user_defined)}
        self._library = Library(bpe_model(vocabulary, hidden, strings(metadata, source, MERGES), {"ignore_merges": words.ignore_merges}))
        self._source, self._normalizer = source, words.normalizer
        self._library.pre_tokenizer = words.pre_tokenizer

    def _normalize(self, text: str) -> str:
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def _encode_words(self, text: str, at_start: bool) -> list[int]:
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # not an Exception; it has no public name
                raise
            reason = f"an expression that cuts text into words gives up on this text of {len(text)} characters: {error}"
            raise UnsupportedError(f"{self._source}: {reason}") from None
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """As in `Tokenizer`."""
        self._check_id(token_id)
        literal = self._literal.get(token_id)
        if literal is not None:
            return literal.encode("utf-8", "surrogateescape")
        text = self._library.id_to_token(token_id) or ""
        try:
            return bytes(map(BYTE_OF.__getitem__, text))
        except KeyError:  # a normal token that is not in the alphabet: text as it is
            return text.encode()
