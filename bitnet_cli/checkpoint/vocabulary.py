"""FolderVocabulary: the tokens of a model by id, with GGUF's token types. Filled by byte_bpe.py or sentencepiece.py."""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.vocabulary import UNUSED_SCORE, unused_name


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (llama.h, `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class FolderVocabulary:
    path: Path  # the file it came from
    model: str  # tokenizer.ggml.model
    tokens: list[str]
    types: list[int]
    adds_bos: bool | None = None
    adds_eos: int | None = None  # token that every text is given at its end
    unknown: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # further tokenizer.ggml.* keys; `scores` is padded with the tokens
    own: dict[str, Any] = field(default_factory=dict)  # keys of ours, in full
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def find(self, token: str) -> int | None:
        """Id of a token, None where there is none."""
        return self._ids.get(token)

    def pad(self, size: int, config: Path) -> None:
        """Add unused tokens up to the rows of the embedding: published models round the vocabulary up."""
        if len(self.tokens) > size:
            self._drop(size, config)
        for i in range(len(self.tokens), size):
            self.tokens.append(unused_name(i, self._ids))
            self.types.append(TokenType.UNUSED)
            if "scores" in self.extra:
                self.extra["scores"].append(UNUSED_SCORE)

    def _drop(self, size: int, config: Path) -> None:
        """Leave out the tokens past `size`, which have no row in the embedding: published tokenizers carry added tokens that the model was
        never trained with. BadFileError: an ordinary one is among them, which a text may need."""
        count, first = len(self.tokens), self.tokens[size]
        ordinary = [i for i in range(size, count) if self.types[i] not in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)]
        if ordinary:
            raise BadFileError(self.path, "tokens", f"{count} tokens, but {config.name} has vocab_size {size}")
        del self.tokens[size:], self.types[size:]
        if "scores" in self.extra:
            del self.extra["scores"][size:]
        for key, ids in self.own.items():
            if isinstance(ids, list):
                self.own[key] = [i for i in ids if i < size]
        self.own = {key: value for key, value in self.own.items() if value != []}
        self._ids = {token: i for token, i in self._ids.items() if i < size}
        self.notes.append(f"{count - size} tokens from {first[:40]!r} on have no row in the embedding of {size}: left out")


def check_text(path: Path, tokens: list[str]) -> None:
    """Refuse text that has no UTF-8 form: JSON can hold half of a surrogate pair."""
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError:
        i = next(i for i, token in enumerate(tokens) if any("\ud800" <= c <= "\udfff" for c in token))
        raise BadFileError(path, f"token {i}", "half of a surrogate pair") from None
