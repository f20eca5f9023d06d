"""What a byte-level BPE does to text before its merges, as objects of the `tokenizers` library.

In: an entry of pre_tokenizers.py, or the values of `normalizer` and `pre_tokenizer` in tokenizer.json, which `convert` keeps in the GGUF
file where llama.cpp has no name for them. Out: a normalizer (or None) and a pre-tokenizer.

Steps are built one by one from a list of known kinds: a file gives data, and nothing of it reaches the library's own reader. They must
write bytes as letters exactly once, and may not drop text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.pre_tokenizers import IGNORE_MERGES, MAX_STEPS, NORMALIZER, OWN_PRE, STEPS, PreTokenizer, flat, pre_tokenizer
from bitnet_cli.text.vocabulary import PREFIX

MAX_PATTERN = 1 << 14  # characters
# What becomes of a match: `removed` drops text, unless it is the rest that is dropped and there is none.
_BEHAVIORS = {
    "Isolated": "isolated",
    "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous",
    "MergedWithNext": "merged_with_next",
}
_FORMS = {"NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC, "NFKD": normalizers.NFKD}


class Words(NamedTuple):
    normalizer: normalizers.Normalizer | None
    pre_tokenizer: pre_tokenizers.PreTokenizer
    ignore_merges: bool
    add_bos: bool
    note: str | None  # what the user should know


def words_of(metadata: Mapping[str, object], source: str, vocab_size: int) -> Words:
    """As the file says; the errors are those of `pre_tokenizer` and `library_steps`."""
    entry, note = pre_tokenizer(metadata, source, vocab_size)
    if metadata.get(PREFIX + "pre") == OWN_PRE:
        steps = library_steps(_json(metadata, source, STEPS), f"{source}: {STEPS}")
    else:
        steps = _of_entry(entry)
    normalizer: normalizers.Normalizer | None = normalizers.NFC() if entry.nfc else None
    if NORMALIZER in metadata:
        normalizer = library_normalizer(_json(metadata, source, NORMALIZER), f"{source}: {NORMALIZER}")
    ignore_merges = metadata.get(IGNORE_MERGES, entry.ignore_merges)
    if not isinstance(ignore_merges, bool):
        raise BadFileError(source, IGNORE_MERGES, "is not true or false")
    return Words(normalizer, steps, ignore_merges, entry.add_bos, note)


def _json(metadata: Mapping[str, object], source: str, key: str) -> Any:
    text = metadata.get(key)
    if not isinstance(text, str) or len(text) > 1 << 18:
        raise BadFileError(source, key, "is missing or not a text of JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadFileError(source, key, "is not JSON") from None


def _of_entry(entry: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    def split(patterns: tuple[str, ...]) -> list[pre_tokenizers.PreTokenizer]:
        return [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]

    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*split(entry.patterns), as_letters, *split(entry.byte_patterns)])


def library_steps(value: Any, where: str) -> pre_tokenizers.PreTokenizer:
    """The value of `pre_tokenizer` in a tokenizer.json; `where` names it in messages.

    UnsupportedError: a step that is not known, drops text, or does not leave bytes written as letters, once.
    """
    steps = flat(value, "pretokenizers")
    if steps is None or not 0 < len(steps) <= MAX_STEPS:
        raise UnsupportedError(f"{where}: expected steps of tokenizer.json, 1 to {MAX_STEPS}")
    if [step.get("type") for step in steps].count("ByteLevel") != 1:
        raise UnsupportedError(f"{where}: expected one step ByteLevel")
    return pre_tokenizers.Sequence([_library_step(step, where) for step in steps])


def _library_step(step: dict[str, Any], where: str) -> pre_tokenizers.PreTokenizer:
    kind = step.get("type")
    if kind == "ByteLevel":
        return pre_tokenizers.ByteLevel(
            add_prefix_space=step.get("add_prefix_space", True) is True, use_regex=step.get("use_regex", True) is True
        )
    if kind == "Digits":
        return pre_tokenizers.Digits(individual_digits=step.get("individual_digits") is True)
    if kind == "Punctuation":
        return pre_tokenizers.Punctuation(_behavior(step, where, "Isolated"))
    if kind == "Split":
        pattern, regex = split_pattern(step)
        if pattern is None or len(pattern) > MAX_PATTERN:
            raise UnsupportedError(f"{where}: Split: expected a pattern, String or Regex, of at most {MAX_PATTERN} characters")
        try:
            wanted = Regex(pattern) if regex else pattern
        except Exception as error:  # the library raises plain Exception
            raise UnsupportedError(f"{where}: Split: the expression {pattern[:200]!r}: {error}") from None
        return pre_tokenizers.Split(wanted, _behavior(step, where, None), step.get("invert", False) is True)
    raise UnsupportedError(f"{where}: step {str(kind)[:40]!r} is not supported; Split, Digits, Punctuation and ByteLevel are")


def _behavior(step: dict[str, Any], where: str, default: str | None) -> str:
    name = step.get("behavior", default)
    if not isinstance(name, str) or name not in _BEHAVIORS:
        raise UnsupportedError(f"{where}: behavior {str(name)[:40]!r} is not supported; {', '.join(_BEHAVIORS)} are")
    return _BEHAVIORS[name]


def split_pattern(step: dict[str, Any]) -> tuple[str | None, bool]:
    """Text of a Split's pattern, None where there is none, and whether it is an expression."""
    pattern = step.get("pattern")
    for key in ("Regex", "String"):
        text = pattern.get(key) if isinstance(pattern, dict) else None
        if isinstance(text, str) and text:
            return text, key == "Regex"
    return None, False


def library_normalizer(value: Any, where: str) -> normalizers.Normalizer | None:
    """The value of `normalizer` in a tokenizer.json: Unicode's four forms and replacements of a String; None for none.

    UnsupportedError: anything else.
    """
    steps = flat(value, "normalizers")
    if steps is None or len(steps) > MAX_STEPS:
        raise UnsupportedError(f"{where}: expected steps of tokenizer.json, at most {MAX_STEPS}")
    made: list[normalizers.Normalizer] = []
    for step in steps:
        kind = step.get("type")
        make: Callable[[], normalizers.Normalizer] | None = _FORMS.get(str(kind))
        if kind == "Replace":
            pattern, regex = split_pattern(step)
            content = step.get("content")
            if pattern is None or regex or not isinstance(content, str):
                raise UnsupportedError(f"{where}: Replace is supported for a String")
            made.append(normalizers.Replace(pattern, content))
        elif make is None:
            raise UnsupportedError(f"{where}: {str(kind)[:40]} is not supported; {', '.join(_FORMS)} and Replace are")
        else:
            made.append(make())
    return None if not made else made[0] if len(made) == 1 else normalizers.Sequence(made)
