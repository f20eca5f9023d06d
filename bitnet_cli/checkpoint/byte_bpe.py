"""tokenizer.json of a byte-level BPE tokenizer -> FolderVocabulary with merges and the name of its pre-tokenizer.

`tokenizer.ggml.pre` names a way to cut text into words. Where the steps of the file are those of a name (text/pre_tokenizers.py), letter by
letter, the name is written. All others are kept as they are under keys of ours, which llama.cpp does not know: it refuses such a file.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.checkpoint.vocabulary import FolderVocabulary, TokenType, check_text
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.added import FLAGS
from bitnet_cli.text.pre_tokenizers import DIGIT, DIGITS, GPT2, IGNORE_MERGES, NORMALIZER, OWN_PRE, PRE_TOKENIZERS, PUNCTUATION, STEPS, flat
from bitnet_cli.text.vocabulary import unused_name

MAX_TOKENS = 1 << 21
MAX_TOKEN_LENGTH = 1 << 16


def is_byte_level(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json works on bytes, as GPT-2's and its successors' do."""
    return any(step.get("type") == "ByteLevel" for step in flat(data.get("pre_tokenizer"), "pretokenizers") or [])


def read(path: Path, data: dict[str, Any]) -> FolderVocabulary:
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
    tokens, types = read_tokens(path, model.get("vocab"), data.get("added_tokens") or [])
    check_text(path, tokens)
    vocabulary = FolderVocabulary(path, "gpt2", tokens, types)
    merges = read_merges(path, model.get("merges"), vocabulary)
    # Only with ignore_merges can a text give these, so without it a name that implies it must not be written if there are any.
    made = {merge.replace(" ", "", 1) for merge in merges}
    alone = any(len(t) > 1 and t not in made for t, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL)
    words = words_of(path, data, model.get("ignore_merges") is True, alone)
    vocabulary.extra = {"pre": words.pre, "merges": merges}
    vocabulary.own = words.own | added_flags(data.get("added_tokens") or [], normalized=bool(flat(data.get("normalizer"), "normalizers")))
    vocabulary.notes += words.notes
    vocabulary.adds_bos, vocabulary.adds_eos = added_ends(data.get("post_processor"), vocabulary)
    return vocabulary


class Words(NamedTuple):
    pre: str  # tokenizer.ggml.pre
    own: dict[str, Any]  # keys of ours
    notes: list[str]


def words_of(path: Path, data: dict[str, Any], ignore_merges: bool, alone: bool) -> Words:
    """How the file cuts text into words. `alone`: it has tokens that no merge makes.

    UnsupportedError: a step that drops text, or that is not known.
    """
    # Imported here: whoever reads no tokenizer.json need not wait for the library.
    from bitnet_cli.text.words import library_normalizer, library_steps

    normalizer, steps = data.get("normalizer"), _kept(data.get("pre_tokenizer"))
    library_normalizer(normalizer, f"{path}: normalizer")
    library_steps({"type": "Sequence", "pretokenizers": steps}, f"{path}: pre_tokenizer")
    kinds = [step.get("type") for step in flat(normalizer, "normalizers") or []]
    nfc, plain = kinds == ["NFC"], not kinds
    own: dict[str, Any] = {}
    notes = []
    patterns = _patterns(steps)
    fits = [name for name, entry in PRE_TOKENIZERS.items() if patterns == (entry.patterns, entry.byte_patterns) and name != "default"]

    def keys_of_ours(name: str) -> tuple[bool, bool]:
        """Whether a name needs them, for the normalizer and for merges."""
        implied = PRE_TOKENIZERS[name].ignore_merges
        return _differs(name, nfc, plain), not implied if ignore_merges else implied and alone

    if fits:
        pre = min(fits, key=keys_of_ours)
        differs = _differs(pre, nfc, plain)
        implied = PRE_TOKENIZERS[pre].ignore_merges
    else:
        pre, differs, implied = OWN_PRE, not plain, False
        own[STEPS] = json.dumps({"type": "Sequence", "pretokenizers": steps})
        notes.append(f"llama.cpp has no name for this way to cut text into words: it is kept under {STEPS}, and llama.cpp refuses the file")
    if differs:
        own[NORMALIZER] = json.dumps(normalizer)
        if fits:
            notes.append(f"the normalizer ({', '.join(map(str, kinds)) or 'none'}) is kept under {NORMALIZER}: llama.cpp goes without")
    if implied != ignore_merges:
        own[IGNORE_MERGES] = ignore_merges
        if fits and (ignore_merges or alone):
            state = "on" if ignore_merges else "off"
            notes.append(
                f"ignore_merges is {state}, which {pre} does not imply: kept under {IGNORE_MERGES}, and llama.cpp may give other ids"
            )
    return Words(pre, own, notes)


def _differs(name: str, nfc: bool, plain: bool) -> bool:
    """Whether the normalizer is not the one that a name implies."""
    return not nfc if PRE_TOKENIZERS[name].nfc else not plain


def _kept(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The steps, with one way of saying for two: to drop what lies between matches is to isolate them, if nothing lies between."""
    everything = {pattern for entry in PRE_TOKENIZERS.values() for pattern in entry.patterns if pattern.endswith((r"|\s+", r"|\s{1}"))}
    steps = flat(pre_tokenizer, "pretokenizers") or []
    for i, step in enumerate(steps):
        inverted = step.get("type") == "Split" and step.get("behavior") == "Removed" and step.get("invert") is True
        if inverted and isinstance(step.get("pattern"), dict) and step["pattern"].get("Regex") in everything:
            steps[i] = step | {"behavior": "Isolated", "invert": False}
    return steps


def _patterns(steps: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The steps as expressions whose matches are isolated: those before bytes are written as letters, and those after. None where they
    cannot be put so."""
    before: list[str] = []
    after: list[str] | None = None
    for step in steps:
        kind, behavior = step.get("type"), step.get("behavior")
        found: str | None = None
        if kind == "Digits":
            found = DIGIT if step.get("individual_digits") is True else DIGITS
        elif kind == "Punctuation" and behavior in ("Contiguous", "Isolated"):
            found = PUNCTUATION + ("+" if behavior == "Contiguous" else "")
        elif kind == "Split" and behavior == "Isolated" and not step.get("invert"):
            pattern = step.get("pattern")
            found = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(found, str):  # some files hold the characters themselves
                found = found.replace("\r", r"\r").replace("\n", r"\n")
        elif kind == "ByteLevel" and after is None and step.get("add_prefix_space") is False:
            before += [GPT2] if step.get("use_regex", True) is True else []
            after = []
            continue
        if not isinstance(found, str):
            return None
        (before if after is None else after).append(found)
    return tuple(before), tuple(after or ())


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


def added_flags(added: Any, normalized: bool) -> dict[str, list[int]]:
    """Keys of ours with the ids that have a flag in `added_tokens`, as read_tokens has checked them (text/added.py has the meaning).
    normalized: whether anything is done to text before, so that the flag means something."""
    flags = ("lstrip", "rstrip", "single_word", *(("normalized",) if normalized else ()))
    found = {FLAGS + flag: sorted(entry["id"] for entry in added if entry.get(flag) is True) for flag in flags}
    return {key: ids for key, ids in found.items() if ids}


def read_merges(path: Path, merges: Any, vocabulary: FolderVocabulary) -> list[str]:
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


def added_ends(post_processor: Any, vocabulary: FolderVocabulary) -> tuple[bool, int | None]:
    """Whether the template for one text starts with a special token, and the one that it ends with (embedding models: Qwen3-Embedding).

    The first is said even where it is not so: readers of `llama-bpe` add BOS by default.
    """
    for step in flat(post_processor, "processors") or []:
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
