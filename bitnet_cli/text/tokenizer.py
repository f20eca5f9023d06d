"""Text <-> token ids. What all tokenizers have in common; from_gguf.py makes one from the metadata of a GGUF file alone.

Two kinds are read: `gpt2` (byte-level BPE, `byte_bpe.py`) and `llama` (SentencePiece BPE, `sentencepiece_bpe.py`).

Control tokens (`<|eot_id|>`, `<s>`) come from text only where the caller says so. A user who types `<|eot_id|>` has typed ten
characters: with `special=False` they are encoded as such, so nobody can forge the end of a turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property

from bitnet_cli.text.added import AddedTokens, Flags
from bitnet_cli.text.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, replace_surrogates


class Tokenizer(ABC):
    """Immutable after it is built, and safe to use from several threads.

    vocab_size   tokens in the file; the model's output may be wider, and those ids mean nothing
    bos_id       token that begins a text, or None
    eos_id       token that ends a text when one is appended, or None
    eos_ids      every token that ends generation
    special_ids  control tokens and the unknown token: hidden in decoded text
    control_ids  control tokens
    silent_ids   unused tokens: never chosen
    user_defined  texts of user-defined tokens, which any text that has them gives
    add_bos      whether `encode` prepends bos unless told otherwise
    notes        what the user should know about how the file was read, a sentence each
    add_eos      whether the model expects eos at the end of its input (embedding models do); `encode(eos=None)` follows it
    """

    def __init__(self, vocabulary: Vocabulary, *, add_bos_default: bool, flags: Flags):
        self.vocab_size = len(vocabulary.tokens)
        self.notes: list[str] = []
        self.bos_id, self.eos_id, self.eos_ids = vocabulary.bos_id, vocabulary.eos_id, vocabulary.eos_ids
        self.special_ids = frozenset(vocabulary.ids_of(CONTROL, UNKNOWN))
        self.control_ids = frozenset(vocabulary.ids_of(CONTROL))
        self.silent_ids = vocabulary.silent_ids
        self.user_defined = frozenset(vocabulary.tokens[i] for i in vocabulary.ids_of(USER_DEFINED))
        self.add_bos = (add_bos_default if vocabulary.add_bos is None else vocabulary.add_bos) and self.bos_id is not None
        self.add_eos = vocabulary.add_eos
        # The unknown token's name is one that a template may write, as in llama.cpp and Hugging Face's library.
        self._control_ids = {
            vocabulary.tokens[i]: i for i in (*vocabulary.ids_of(UNKNOWN), *vocabulary.ids_of(CONTROL)) if vocabulary.tokens[i]
        }
        self._controls = AddedTokens(self._control_ids, flags)
        odd = {*vocabulary.not_utf8()}  # in no text
        added = {vocabulary.tokens[i]: i for i in vocabulary.ids_of(USER_DEFINED) if vocabulary.tokens[i] and i not in odd}
        self._flags = flags
        self._normalized_added = {text: i for text, i in added.items() if i in flags.normalized}
        self._added = AddedTokens({text: i for text, i in added.items() if i not in flags.normalized}, flags)

    @abstractmethod
    def _normalize(self, text: str) -> str:
        """What is done to every stretch of text between added tokens before anything else; `text` is not empty."""

    @abstractmethod
    def _encode_words(self, text: str, at_start: bool) -> list[int]:
        """Ids of normalized text that holds neither control nor added tokens; at_start: nothing comes before it."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; often a part of a UTF-8 character. IndexError: no such id."""

    def encode(self, text: str, *, special: bool = False, bos: bool | None = None, eos: bool | None = False) -> list[int]:
        """Ids of a text.

        special   True: names of control tokens in the text become those tokens. For templates; never for what a user typed.
        bos, eos  prepend / append that token; None: as the file says. Never a second time, and not at all where the file has none.

        Lone surrogates are read as U+FFFD. A byte that the vocabulary cannot express becomes the unknown token
        (SentencePiece) or nothing (byte-level BPE, as in llama.cpp); vocabularies of real models express all bytes.
        """
        return self.encode_parts([(text, special)], bos=bos, eos=eos)

    def encode_parts(
        self, parts: Iterable[tuple[str, bool]], *, bos: bool | None = None, eos: bool | None = False, at_start: bool = True
    ) -> list[int]:
        """Ids of the joined text of (text, special) parts; control tokens come from the special parts only.

        A chat prompt is such a list: template text is special, messages are not. Words that begin in one part and end in the next are
        encoded as words (`Assistant:` and ` Hi`), which separate calls to `encode` would break; control tokens never form across parts.
        at_start: False where the parts continue a text; some SentencePiece vocabularies put a space before its first word only.
        """
        ids: list[int] = []
        controls: set[int] = set()  # positions in `ids` of control tokens
        plain: list[str] = []

        def flush() -> None:
            text = "".join(plain)
            plain.clear()
            if text:
                ids.extend(self._encode_plain(text, at_start and not ids))

        for part, special in parts:
            text, at = replace_surrogates(part), 0
            if special and self._control_ids:
                for start, stop, token in self._controls.matches(text):
                    plain.append(text[at:start])
                    flush()
                    controls.add(len(ids))
                    ids.append(token)
                    at = stop
            plain.append(text[at:])
        flush()
        has_bos = 0 in controls and ids[0] == self.bos_id
        has_eos = len(ids) - 1 in controls and ids[-1] == self.eos_id
        if (self.add_bos if bos is None else bos) and self.bos_id is not None and not has_bos:
            ids.insert(0, self.bos_id)
        if (self.add_eos if eos is None else eos) and self.eos_id is not None and not has_eos:
            ids.append(self.eos_id)
        return ids

    def _encode_plain(self, text: str, at_start: bool) -> list[int]:
        """Ids of text that holds no control token; `text` has no lone surrogates. at_start: nothing comes before it."""
        ids: list[int] = []
        for position, stretch in self._added.cut(text):
            if isinstance(stretch, int):
                ids.append(stretch)
                continue
            first = at_start and position == 0
            for inner, piece in self._added_to_normalized.cut(self._normalize(stretch)):
                ids += [piece] if isinstance(piece, int) else self._encode_words(piece, first and inner == 0)
        return ids

    @cached_property
    def _added_to_normalized(self) -> AddedTokens:
        return AddedTokens({self._normalize(text): i for text, i in self._normalized_added.items()}, self._flags)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, at_start: bool = True) -> str:
        """Text of the ids; U+FFFD stands for bytes that are not valid UTF-8, and for nothing else.

        skip_special  leave out control tokens and the unknown token
        at_start      the ids begin a text: SentencePiece puts a space before the first word, and it is taken off again.
                      False for ids that continue a text.
        """
        data = bytearray()
        for token_id in ids:
            piece, at_start = self.output_bytes(token_id, skip_special=skip_special, at_start=at_start)
            data += piece
        return data.decode("utf-8", "replace")

    def output_bytes(self, token_id: int, *, skip_special: bool, at_start: bool) -> tuple[bytes, bool]:
        """The bytes that a token adds to a text, and whether the next token is still at its start."""
        data = self.token_bytes(token_id)
        if token_id in self.special_ids:
            return (b"" if skip_special else data), at_start
        return (self._without_prefix(data) if at_start else data), False

    def _without_prefix(self, data: bytes) -> bytes:
        """The first token's bytes without what `_encode_plain` puts before every text."""
        return data

    def token_text(self, token_id: int) -> str:
        """One token for display; bytes that are no whole character are written `\\xe2`."""
        return self.token_bytes(token_id).decode("utf-8", "backslashreplace")

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise IndexError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
