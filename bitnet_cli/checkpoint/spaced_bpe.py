"""tokenizer.json of a SentencePiece BPE vocabulary (Gemma, Llama 2) -> FolderVocabulary with scores, where there is no tokenizer.model.

transformers turns such a vocabulary into BPE over characters, with spaces as `▁` and bytes for characters that it lacks. Merges stand in
the order of SentencePiece's scores, so minus the rank of the first merge that makes a token is a score again (microsoft/BitNet,
utils/convert-bitnet-embedding-to-gguf.py does the same).
"""

import json
from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.byte_bpe import added_flags, is_byte_level, read_merges, read_tokens
from bitnet_cli.checkpoint.vocabulary import FolderVocabulary, TokenType, check_text
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.pre_tokenizers import IGNORE_MERGES, NORMALIZER, STEPS
from bitnet_cli.text.spaces import Spaces, spaces_of
from bitnet_cli.text.vocabulary import UNUSED_SCORE

LONGEST = 256  # characters of a token that are looked at for other ways to put it together


def is_spaced(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE over characters, with bytes for unknown ones, as SentencePiece's are."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return False
    return model.get("byte_fallback") is True and not is_byte_level(data)


def read(path: Path, data: dict[str, Any], settings: dict[str, Any]) -> FolderVocabulary:
    """`data`: the JSON of `path`; `settings`: tokenizer_config.json.

    Raises BadFileError for what contradicts itself, UnsupportedError for what is done to text and readers of `llama` do not do.
    """
    model = data["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(f"{path}: model.{key}: {str(model[key])[:40]!r} is not supported")
    normalizer, pre_tokenizer = data.get("normalizer"), data.get("pre_tokenizer")
    spaces = spaces_of(normalizer, pre_tokenizer, str(path))
    added = data.get("added_tokens") or []
    tokens, types = read_tokens(path, model.get("vocab"), added)
    check_text(path, tokens)
    vocabulary = FolderVocabulary(path, "llama", tokens, types)
    vocabulary.adds_bos = True
    merges = read_merges(path, model.get("merges"), vocabulary)
    vocabulary.unknown = _unknown(path, model, settings, vocabulary)
    if vocabulary.unknown is not None:
        types[vocabulary.unknown] = TokenType.UNKNOWN
    scores, exact = _scores(vocabulary, merges)
    vocabulary.extra = {"scores": scores}
    if not exact or model.get("ignore_merges"):
        vocabulary.extra["merges"] = merges
        vocabulary.notes.append(
            "merges are kept beside the scores, which cannot say the same: llama.cpp goes by scores and may give other ids"
        )
        if model.get("ignore_merges"):
            vocabulary.own[IGNORE_MERGES] = True
    add_spaces(vocabulary, normalizer, pre_tokenizer)
    vocabulary.own |= added_flags(added, normalized=spaces.prepend)
    return vocabulary


def add_spaces(vocabulary: FolderVocabulary, normalizer: Any, pre_tokenizer: Any) -> None:
    """Adds to the keys where spaces go, by the values in a tokenizer.json: under GGUF's key, and under ours where that cannot say it."""
    spaces = spaces_of(normalizer, pre_tokenizer, str(vocabulary.path))
    vocabulary.extra["add_space_prefix"] = spaces.adds_prefix
    if spaces not in (Spaces(True), Spaces(False)):
        vocabulary.own |= {NORMALIZER: json.dumps(normalizer), STEPS: json.dumps(pre_tokenizer)}
        vocabulary.notes.append("spaces as Metaspace writes them: llama.cpp puts one before every stretch of text between added tokens")


def replace_spaces(vocabulary: FolderVocabulary, data: dict[str, Any]) -> None:
    """Where spaces go, and the flags of added tokens, by a tokenizer.json beside the tokenizer.model that the rest came from. One that does
    more to text than spaces is passed over: the pieces say what their model was trained with."""
    try:
        spaces = spaces_of(data.get("normalizer"), data.get("pre_tokenizer"), "")
    except UnsupportedError:
        return
    vocabulary.own, vocabulary.notes = {}, []
    add_spaces(vocabulary, data.get("normalizer"), data.get("pre_tokenizer"))
    added = [entry for entry in data.get("added_tokens") or [] if isinstance(entry, dict) and type(entry.get("id")) is int]
    vocabulary.own |= added_flags([e for e in added if 0 <= e["id"] < len(vocabulary.tokens)], normalized=spaces.prepend)


def _unknown(path: Path, model: dict[str, Any], settings: dict[str, Any], vocabulary: FolderVocabulary) -> int | None:
    """The token for what cannot be expressed; transformers 5 writes null in the model and its name in tokenizer_config.json."""
    name = model.get("unk_token")
    if name is not None:
        unknown = vocabulary.find(name) if isinstance(name, str) else None
        if unknown is None:
            raise BadFileError(path, "model.unk_token", "is not in the vocabulary")
        return unknown
    value = settings.get("unk_token")
    name = value.get("content") if isinstance(value, dict) else value
    return vocabulary.find(name if isinstance(name, str) else "<unk>")


def _scores(vocabulary: FolderVocabulary, merges: list[str]) -> tuple[list[float], bool]:
    """Minus the rank of the first merge that makes a token, and whether that says all that the merges say: readers of scores put any two
    neighbours together that make a token, so all such pairs must be merges, and those of one token beside each other.

    Marks the byte tokens in `vocabulary.types`.
    """
    tokens, types = vocabulary.tokens, vocabulary.types
    ranks: dict[str, int] = {}
    pairs: dict[str, int] = {}  # token -> how many merges make it
    exact, last = True, ""
    for rank, merge in enumerate(merges):
        made = merge.replace(" ", "", 1)
        exact = exact and (made == last or made not in ranks)
        ranks.setdefault(made, rank)
        pairs[made] = pairs.get(made, 0) + 1
        last = made
    for i, token in enumerate(tokens):
        if types[i] == TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = TokenType.BYTE
    kinds = (TokenType.NORMAL, TokenType.USER_DEFINED)
    by_scores = _ways([token for token, kind in zip(tokens, types, strict=True) if kind in kinds])
    exact = exact and by_scores == pairs
    scores = []
    for i, token in enumerate(tokens):
        made_so = len(token) == 1 or token in ranks
        scores.append(float(-ranks.get(token, 0)) if made_so or types[i] == TokenType.BYTE else UNUSED_SCORE * (1 + len(ranks)))
    return scores, exact


def _ways(tokens: list[str]) -> dict[str, int]:
    """In how many ways a reader of scores may put each token together, without those that it cannot: of characters, which need not be
    tokens, and of tokens that it can put together."""
    ways: dict[str, int] = {}
    for token in sorted(tokens, key=len):
        if 1 < len(token) <= LONGEST:
            halves = ((token[:at], token[at:]) for at in range(1, len(token)))
            found = sum((len(a) == 1 or a in ways) and (len(b) == 1 or b in ways) for a, b in halves)
            if found:
                ways[token] = found
    return ways
