"""Byte-level BPE (`tokenizer.ggml.model` = `gpt2`): Llama 3, Falcon 3, Qwen 2, GPT-2, and our own small models.

In: metadata with tokens, merges and the name of the word pattern. Out: a `Tokenizer` around Hugging Face's `tokenizers` library, which
gets normal tokens, merges and the pattern, and nothing else: special tokens are handled here, so that plain text cannot reach them.

Every byte of UTF-8 is written as one printable character (GPT-2's alphabet: space is `Ġ`), and a token is a string of those.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer as Library
from tokenizers import models

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.tokenizer import Tokenizer, any_of
from bitnet_cli.text.vocabulary import CONTROL, PREFIX, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, numbers, shown, strings
from bitnet_cli.text.words import words_of

MERGES, SCORES = PREFIX + "merges", PREFIX + "scores"


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
        super().__init__(vocabulary, add_bos_default=words.add_bos)
        if words.note:
            self.notes.append(words.note)
        merges = strings(metadata, source, MERGES)
        if SCORES in metadata:  # not used, but a wrong count tells of a damaged file
            numbers(metadata, source, SCORES, self.vocab_size)
        odd = vocabulary.not_utf8()
        hidden = {*vocabulary.ids_of(UNKNOWN, CONTROL, UNUSED), *odd}  # plain text never gives these
        user_defined = vocabulary.ids_of(USER_DEFINED)
        # Written in the file as they are, not in the byte alphabet. The library holds the text of all the others.
        self._literal = {i: vocabulary.tokens[i] for i in (*hidden, *user_defined)}
        self._user_ids = {vocabulary.tokens[i]: i for i in user_defined if vocabulary.tokens[i] and i not in hidden}
        self._user_pattern = any_of(self._user_ids) if self._user_ids else None
        self._library = Library(_model(vocabulary, hidden, merges, words.ignore_merges))
        if words.normalizer is not None:
            self._library.normalizer = words.normalizer
        self._library.pre_tokenizer = words.pre_tokenizer

    def _encode_plain(self, text: str) -> list[int]:
        if self._user_pattern is None:
            return self._encode_words(text)
        ids: list[int] = []
        at = 0
        for match in self._user_pattern.finditer(text):
            ids += self._encode_words(text[at : match.start()])
            ids.append(self._user_ids[match.group()])
            at = match.end()
        return ids + self._encode_words(text[at:])

    def _encode_words(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
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


def _model(vocabulary: Vocabulary, hidden: set[int], merges: list[str], ignore_merges: bool) -> models.BPE:
    """The library's model of the tokens that are not hidden. The library itself finds a merge to an unknown token, and does not say where:
    merges are looked at one by one only after that (0.2 s for 280,147)."""
    visible = dict(vocabulary.ids)
    for i in hidden:
        del visible[vocabulary.tokens[i]]
    try:
        return models.BPE(visible, _pairs(merges, visible), ignore_merges=ignore_merges)
    except Exception as error:  # the library raises plain Exception
        usable = _usable_merges(vocabulary, hidden, merges)
        if len(usable) == len(merges):
            raise BadFileError(vocabulary.source, MERGES, str(error)) from None
        return models.BPE(visible, _pairs(usable, visible), ignore_merges=ignore_merges)


def _pairs(merges: list[str], visible: dict[str, int]) -> list[tuple[str, str]]:
    """`Ġ t` -> (`Ġ`, `t`). The halves are the vocabulary's own strings: new ones would take 30 MB more for 280,147 merges.
    KeyError: a half is not a token."""
    same = dict(zip(visible, visible, strict=True))
    same.pop("", None)  # else a merge without a space would pass
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        pairs.append((same[left], same[right]))
    return pairs


def _usable_merges(vocabulary: Vocabulary, hidden: set[int], merges: list[str]) -> list[str]:
    """The merges without those that touch a hidden token: they could only make it out of plain text.
    BadFileError: a merge is not two tokens that make a third."""
    usable = []
    for index, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        field = f"{MERGES}[{index}]"
        if not left or not right:
            raise BadFileError(vocabulary.source, field, f"{shown(merge)} is not two tokens with a space between")
        for text in (left, right, left + right):
            if text not in vocabulary.ids:
                raise BadFileError(vocabulary.source, field, f"{shown(merge)} needs {shown(text)}, which is not a token")
        if hidden.isdisjoint((vocabulary.ids[left], vocabulary.ids[right], vocabulary.ids[left + right])):
            usable.append(merge)
    return usable
