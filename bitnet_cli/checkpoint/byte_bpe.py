"""tokenizer.json of a byte-level BPE tokenizer -> Vocabulary with merges and the name of its pre-tokenizer.

GGUF has no room for the regular expression that splits text into words: `tokenizer.ggml.pre` names one that readers know. So the
expression in the file is compared, letter by letter, with those that have a name, and any other is refused.
"""

from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.vocabulary import TokenType, Vocabulary, check_text, unused_name
from bitnet_cli.errors import BadFileError, UnsupportedError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    _WORDS % r"\p{N}{1,3}": "llama-bpe",  # Llama 3, Falcon 3
    _WORDS % r"\p{N}": "qwen2",  # Qwen 2 and 3
}
GPT2 = "gpt-2"  # its expression is built into the ByteLevel pre-tokenizer
SMOLLM = "smollm"  # digits one by one, then GPT-2's expression
NORMALIZERS = {"qwen2": "NFC"}  # what a name implies beside the expression; the others imply none
MAX_TOKENS = 1 << 21
MAX_TOKEN_LENGTH = 1 << 16


def is_byte_level(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json works on bytes, as GPT-2's and its successors' do."""
    return any(step.get("type") == "ByteLevel" for step in _steps(data.get("pre_tokenizer"), "pretokenizers"))


def read(path: Path, data: dict[str, Any]) -> Vocabulary:
    """`data`: the JSON of `path`.

    Raises BadFileError for what contradicts itself, UnsupportedError for what GGUF readers could not do as the file says.
    """
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedError(f"{path}: model.type: {str(kind)[:40]} is not supported; BPE is")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise UnsupportedError(f"{path}: model.{key}: {str(model[key])[:40]!r} is not supported")
    pre = pre_tokenizer_name(path, data.get("pre_tokenizer"))
    normalizer = data.get("normalizer")
    kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    left_out = pre == GPT2 and kind == "NFC"  # GPT-NeoX
    if kind != NORMALIZERS.get(pre) and not left_out:
        raise UnsupportedError(f"{path}: normalizer: {str(kind)[:40]} is not supported; {pre} implies {NORMALIZERS.get(pre, 'none')}")
    tokens, types = read_tokens(path, model.get("vocab"), data.get("added_tokens") or [])
    check_text(path, tokens)
    vocabulary = Vocabulary(path, "gpt2", tokens, types)
    merges = read_merges(path, model.get("merges"), vocabulary)
    vocabulary.extra = {"pre": pre, "merges": merges}
    if left_out:
        vocabulary.notes.append("normalizer NFC is left out, since gpt-2 implies none: text with uncomposed accents gets other tokens")
    vocabulary.adds_bos, vocabulary.adds_eos = added_ends(data.get("post_processor"), vocabulary)
    # Readers of `llama-bpe` look a whole word up before they merge. Without ignore_merges that changes words that no merge makes.
    if pre == "llama-bpe" and not model.get("ignore_merges"):
        made = {merge.replace(" ", "", 1) for merge in merges}
        alone = sum(len(t) > 1 and t not in made for t, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL)
        if alone:
            vocabulary.notes.append(f"ignore_merges is off, but {pre} implies it: {alone} tokens that no merge makes may be used")
    return vocabulary


def pre_tokenizer_name(path: Path, pre_tokenizer: Any) -> str:
    """`tokenizer.ggml.pre` for the pre_tokenizer of a tokenizer.json."""
    steps = _steps(pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space", True):
        regex_in_byte_level = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and regex_in_byte_level:
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and regex_in_byte_level and steps[0].get("individual_digits") is True:
            return SMOLLM
        if kinds == ["Split", "ByteLevel"] and not regex_in_byte_level:
            split = steps[0]
            pattern = split.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if split.get("behavior") == "Isolated" and not split.get("invert", False) and isinstance(regex, str):
                if regex in PRE_TOKENIZERS:
                    return PRE_TOKENIZERS[regex]
                known = ", ".join([*PRE_TOKENIZERS.values(), GPT2, SMOLLM])
                raise UnsupportedError(f"{path}: pre_tokenizer: the expression {regex[:300]} is not one of {known}")
    described = str(pre_tokenizer)
    raise UnsupportedError(
        f"{path}: pre_tokenizer: {described[:300]} is not supported; Split by an expression, or Digits, then ByteLevel, is"
    )


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    """A pipeline of tokenizer.json: one step, or a Sequence of them under `key`."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = value.get(key)
    steps = value if isinstance(value, list) else [value]
    return [step for step in steps if isinstance(step, dict)] if all(isinstance(step, dict) for step in steps) else []


def read_tokens(path: Path, vocab: Any, added: Any) -> tuple[list[str], list[int]]:
    """Tokens by id and their types, from `model.vocab` and `added_tokens`; ids between them that nobody has are unused."""
    if not isinstance(vocab, dict) or not isinstance(added, list) or not vocab:
        raise BadFileError(path, "model.vocab", "expected an object of token to id")
    by_id: dict[int, tuple[str, int]] = {}

    def put(token: Any, i: Any, kind: TokenType) -> None:
        if not isinstance(token, str) or not token or len(token) > MAX_TOKEN_LENGTH or type(i) is not int or not 0 <= i < MAX_TOKENS:
            raise BadFileError(path, "tokens", f"{str(token)[:40]!r} with id {str(i)[:40]}: expected text and an id below {MAX_TOKENS}")
        if i in by_id and by_id[i][0] != token:
            raise BadFileError(path, f"token id {i}", f"belongs to both {by_id[i][0][:40]!r} and {token[:40]!r}")
        by_id[i] = (token, kind)

    for token, i in vocab.items():
        put(token, i, TokenType.NORMAL)
    for entry in added:
        if not isinstance(entry, dict):
            raise BadFileError(path, "added_tokens", "expected objects")
        token = entry.get("content")
        i = entry.get("id")
        if isinstance(token, str) and vocab.get(token, i) != i:
            raise BadFileError(path, "added_tokens", f"{token[:40]!r} has id {str(i)[:40]}, and {vocab[token]} in model.vocab")
        put(token, i, TokenType.CONTROL if entry.get("special") is True else TokenType.USER_DEFINED)
    size = max(by_id) + 1
    if size > 2 * len(by_id) + 1024:
        raise BadFileError(path, "tokens", f"{len(by_id)} tokens, but ids up to {size - 1}")
    taken = {token: i for i, (token, _) in by_id.items()}
    if len(taken) != len(by_id):
        raise BadFileError(path, "added_tokens", "one token has two ids")
    rows = [by_id.get(i) or (unused_name(i, taken), TokenType.UNUSED) for i in range(size)]
    return [token for token, _ in rows], [int(kind) for _, kind in rows]


def read_merges(path: Path, merges: Any, vocabulary: Vocabulary) -> list[str]:
    """Merges in rank order as "left right": files before tokenizers 0.20 write them so, later ones as [left, right]."""
    if not isinstance(merges, list):
        raise BadFileError(path, "model.merges", "expected a list")
    result = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p and " " not in p for p in pair):
            raise BadFileError(path, f"model.merges[{rank}]", "expected two tokens without spaces")
        left, right = pair
        for part in (left, right, left + right):
            if vocabulary.find(part) is None:
                raise BadFileError(path, f"model.merges[{rank}]", f"{part[:40]!r} is not in the vocabulary")
        result.append(f"{left} {right}")
    return result


def added_ends(post_processor: Any, vocabulary: Vocabulary) -> tuple[bool, int | None]:
    """Whether the template for one text starts with a special token, and the one that it ends with (embedding models: Qwen3-Embedding).

    The first is said even where it is not so: readers of `llama-bpe` add BOS by default.
    """
    for step in _steps(post_processor, "processors"):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            first, last = (_special(single[0]), _special(single[-1])) if len(single) > 1 else (_special(single[0]), None)
            return first is not None, vocabulary.find(last) if last is not None else None
    return False, None


def _special(item: Any) -> str | None:
    """The name of a template's special token; None for the text and whatever else stands in a template."""
    token = item.get("SpecialToken") if isinstance(item, dict) else None
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None
