"""tokenizer.json of a SentencePiece BPE vocabulary (Gemma, Llama 2) -> Vocabulary with scores, where there is no tokenizer.model.

transformers turns such a vocabulary into BPE over characters, with spaces as `▁` and bytes for characters that it lacks. Merges stand in
the order of SentencePiece's scores, so minus the rank of the first merge that makes a token is a score again (microsoft/BitNet,
utils/convert-bitnet-embedding-to-gguf.py does the same).
"""

from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.byte_bpe import is_byte_level, read_merges, read_tokens
from bitnet_cli.checkpoint.vocabulary import UNUSED_SCORE, TokenType, Vocabulary, check_text
from bitnet_cli.errors import BadFileError, UnsupportedError

SPACE = "▁"


def is_spaced(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is BPE over characters, with bytes for unknown ones, as SentencePiece's are."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return False
    return model.get("byte_fallback") is True and not is_byte_level(data)


def read(path: Path, data: dict[str, Any]) -> Vocabulary:
    """`data`: the JSON of `path`.

    Raises BadFileError for what contradicts itself, UnsupportedError for what is done to text and readers of `llama` do not do.
    """
    model = data["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedError(f"{path}: model.{key}: {str(model[key])[:40]!r} is not supported")
    prefix = _adds_space_prefix(path, data.get("normalizer"))
    _require_no_words(path, data.get("pre_tokenizer"))
    tokens, types = read_tokens(path, model.get("vocab"), data.get("added_tokens") or [])
    check_text(path, tokens)
    vocabulary = Vocabulary(path, "llama", tokens, types, adds_bos=True)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(read_merges(path, model.get("merges"), vocabulary)):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    scores = []
    for i, token in enumerate(tokens):
        if types[i] == TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = TokenType.BYTE
        made = len(token) == 1 or token in ranks
        scores.append(float(-ranks.get(token, 0)) if made or types[i] == TokenType.BYTE else UNUSED_SCORE * (1 + len(ranks)))
    unknown = vocabulary.find(str(model.get("unk_token")))
    if unknown is None:
        raise BadFileError(path, "model.unk_token", "is not in the vocabulary")
    types[unknown] = TokenType.UNKNOWN
    vocabulary.unknown, vocabulary.extra = unknown, {"scores": scores, "add_space_prefix": prefix}
    return vocabulary


def _adds_space_prefix(path: Path, normalizer: Any) -> bool:
    """Spaces become `▁`; whether one is put before the text first. Nothing else may be done to text."""
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" else [normalizer]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if steps == [replace]:
        return False
    if steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
        return True
    raise UnsupportedError(f"{path}: normalizer: {str(normalizer)[:200]} is not supported; spaces as {SPACE} and nothing else are")


def _require_no_words(path: Path, step: Any) -> None:
    """Splitting at spaces does nothing: there are none any more."""
    if step is not None and not (isinstance(step, dict) and step.get("type") == "Split" and step.get("pattern") == {"String": " "}):
        raise UnsupportedError(f"{path}: pre_tokenizer: {str(step)[:200]} is not supported in a vocabulary of SentencePiece")
