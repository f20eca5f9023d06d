"""How a SentencePiece vocabulary's tokenizer writes spaces, and where it puts one that the text has not.

In: the values of `normalizer` and `pre_tokenizer` in tokenizer.json, which `convert` keeps in the GGUF file under keys of ours, or
`tokenizer.ggml.add_space_prefix` alone. Out: `Spaces`.

A space is `▁` (U+2581). Four ways to put one before words are in use (sources of tokenizers: metaspace.rs, prepend.rs):

    Prepend             before every stretch of text between added tokens, even one that begins with a space: Llama 1 and 2, and llama.cpp
    Metaspace, always   before every such stretch that does not begin with a space
    Metaspace, first    before the first stretch, if the text begins with it and not with a space: `legacy: false`, transformers 5
    Metaspace, never    nowhere: Gemma

transformers 5 also writes the first way as Metaspace `always` after a Replace that doubles a space at the start of a stretch: `every`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.pre_tokenizers import NORMALIZER, STEPS

SPACE = "▁"
_SCHEMES = ("always", "first", "never")
_WORD = re.compile(f"{SPACE}?[^{SPACE}]+|{SPACE}")


class Spaces(NamedTuple):
    prepend: bool  # as a normalizer: before every stretch
    metaspace: str = "never"  # as a pre-tokenizer, on what the normalizer left
    split: bool = False  # every ▁ begins a word, and nothing is merged across

    @property
    def adds_prefix(self) -> bool:
        """Whether a text may get a space before its first word."""
        return self.prepend or self.metaspace != "never"

    def normalize(self, text: str) -> str:
        """A stretch of text between added tokens, before tokens that are looked for in normalized text are found."""
        return (SPACE if self.prepend else "") + text.replace(" ", SPACE)

    def words(self, text: str, at_start: bool) -> list[str]:
        """Pieces of a normalized stretch, between which nothing is merged; at_start: it begins the text."""
        missing = not text.startswith(SPACE) and (self.metaspace == "always" or (self.metaspace == "first" and at_start))
        if missing or self.metaspace == "every":
            text = SPACE + text
        return _WORD.findall(text) if self.split else [text]


def read_spaces(metadata: Mapping[str, object], source: str, add_space_prefix: bool) -> Spaces:
    """As the file says. BadFileError: keys of ours that are not JSON; UnsupportedError: steps that are not known."""
    if NORMALIZER not in metadata and STEPS not in metadata:
        return Spaces(prepend=add_space_prefix)
    return spaces_of(_json(metadata, source, NORMALIZER), _json(metadata, source, STEPS), source)


def _json(metadata: Mapping[str, object], source: str, key: str) -> Any:
    text = metadata.get(key, "null")
    if isinstance(text, str) and len(text) < 1 << 16:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    raise BadFileError(source, key, "is not a text of JSON")


def spaces_of(normalizer: Any, pre_tokenizer: Any, where: str) -> Spaces:
    """From the values in a tokenizer.json; `where` names the file. UnsupportedError: anything else is done to text."""
    steps = _steps(normalizer, "normalizers")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    doubled = [replace, {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}"}, "content": SPACE * 2}]
    if steps not in ([], [replace], [prepend, replace], doubled):
        raise UnsupportedError(f"{where}: normalizer: {str(normalizer)[:200]} is not supported; spaces as {SPACE} and nothing else are")
    found = _steps(pre_tokenizer, "pretokenizers")
    if len(found) == 1 and found[0].get("type") == "Metaspace" and found[0].get("replacement", SPACE) == SPACE:
        step = found[0]
        scheme = step.get("prepend_scheme", "never" if step.get("add_prefix_space") is False else "always")
        if scheme == "always" and steps == doubled:
            scheme = "every"
        if scheme in (*_SCHEMES, "every") and (steps != doubled or scheme == "every"):
            return Spaces(prepend in steps, scheme, step.get("split", True) is not False)
    # Splitting at spaces does nothing: there are none any more.
    at_spaces = len(found) == 1 and found[0].get("type") == "Split" and found[0].get("pattern") == {"String": " "}
    if steps and steps != doubled and (not found or at_spaces):
        return Spaces(prepend in steps)
    if not steps and not found:
        raise UnsupportedError(f"{where}: normalizer: none is not supported without Metaspace: spaces have to be written as {SPACE}")
    raise UnsupportedError(f"{where}: pre_tokenizer: {str(pre_tokenizer)[:200]} is not supported in a vocabulary of SentencePiece")


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a pipeline; [{}] for what is none."""
    if value is None:
        return []
    if isinstance(value, dict) and value.get("type") == "Sequence":
        value = value.get(key)
    steps = value if isinstance(value, list) else [value]
    return steps if all(isinstance(step, dict) for step in steps) else [{}]
