"""How byte-level BPE cuts text into words before it merges bytes: `tokenizer.ggml.pre` -> patterns and flags.

Merges never cross the border of a word, so a wrong pattern gives ids that the model has not seen in training, without any error.
The patterns are those of the models' own `tokenizer.json`; the names are those that llama.cpp's converter writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.vocabulary import PREFIX, shown

# Oniguruma syntax: \p{L} letters, \p{N} numbers, (?i:...) without regard to case.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"


class PreTokenizer(NamedTuple):
    patterns: tuple[str, ...]  # applied one after the other; matches and what lies between them are words
    ignore_merges: bool = False  # a word that is in the vocabulary is that token, whatever the merges would make of it
    add_bos: bool = False  # where the file does not say
    nfc: bool = False  # composes characters first (Unicode NFC)


_LLAMA3_FAMILY = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2_FAMILY = PreTokenizer((_GPT2,))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "llama-bpe": _LLAMA3_FAMILY,
    "llama3": _LLAMA3_FAMILY,
    "llama-v3": _LLAMA3_FAMILY,
    "falcon3": _LLAMA3_FAMILY,
    "falcon_e": _LLAMA3_FAMILY,
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "smollm": PreTokenizer((_DIGIT, _GPT2)),
    "gpt-2": _GPT2_FAMILY,
    "default": _GPT2_FAMILY,
}
LLAMA3_VOCABULARY = 128_256


def pre_tokenizer(metadata: Mapping[str, object], source: str, vocab_size: int) -> PreTokenizer:
    """The entry that the file names. A file without a name (Microsoft's BitNet-2B-4T) has Llama 3's if its vocabulary is of that size, else
    GPT-2's."""
    key = PREFIX + "pre"
    name = metadata.get(key, "llama-bpe" if vocab_size == LLAMA3_VOCABULARY else "gpt-2")
    if not isinstance(name, str):
        raise BadFileError(source, key, "is not a string")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(f"{source}: {key}: {shown(name)} is not supported (supported: {', '.join(PRE_TOKENIZERS)})")
    return PRE_TOKENIZERS[name]
