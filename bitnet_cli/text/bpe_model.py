"""Tokens and merges of a GGUF file -> the BPE model of the `tokenizers` library, for byte-level vocabularies and for SentencePiece's.

In: a checked vocabulary, the ids that plain text must never give, merges as `left right` in the order of their rank. Out: the model.
BadFileError: a merge is not of two tokens that make a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import models

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.vocabulary import PREFIX, Vocabulary, shown

MERGES = PREFIX + "merges"


def bpe_model(vocabulary: Vocabulary, hidden: set[int], merges: list[str], options: Mapping[str, Any]) -> models.BPE:
    """The library's model of the tokens that are not hidden. The library itself finds a merge to an unknown token, and does not say where:
    merges are looked at one by one only after that (0.2 s for 280,147)."""
    visible = dict(vocabulary.ids)
    for i in hidden:
        visible.pop(vocabulary.tokens[i], None)  # several may be empty
    try:
        return models.BPE(visible, _pairs(merges, visible), **options)
    except Exception as error:  # the library raises plain Exception
        usable = _usable_merges(vocabulary, hidden, merges)
        if len(usable) == len(merges):
            raise BadFileError(vocabulary.source, MERGES, str(error)) from None
        return models.BPE(visible, _pairs(usable, visible), **options)


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
