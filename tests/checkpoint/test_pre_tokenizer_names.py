"""Steps of a tokenizer.json -> `tokenizer.ggml.pre`, or keys of ours, or a refusal."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_cli.checkpoint.byte_bpe import words_of
from bitnet_cli.errors import UnsupportedError
from bitnet_cli.text.pre_tokenizers import STEPS


def byte_level(use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def split(regex: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def named(pre_tokenizer: Any, normalizer: Any = None, *, ignore_merges: bool = False, alone: bool = False) -> str:
    """The name, and `+` where keys of ours say more."""
    data = {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    words = words_of(Path("tokenizer.json"), data, ignore_merges, alone)
    assert bool(words.own.get(STEPS)) is (words.pre == "tokenizer.json")
    return words.pre + ("+" if {key for key in words.own if key != STEPS} else "")


def test_names_of_pre_tokenizers(models: ModuleType) -> None:
    llama = models.PATTERN
    qwen = llama.replace(r"\p{N}{1,3}", r"\p{N}")
    nfc = {"type": "NFC"}
    of_llama = sequence(split(llama), byte_level(False))
    assert named(of_llama, ignore_merges=True) == "llama-bpe"
    assert named(of_llama) == "llama-bpe+"
    assert named(of_llama, alone=True) == "dbrx"
    assert named(of_llama, nfc, ignore_merges=True) == "llama-bpe+"
    assert named(sequence(split(qwen), byte_level(False)), nfc) == "qwen2"
    assert named(sequence(split(qwen), byte_level(False)), {"type": "Sequence", "normalizers": [nfc]}) == "qwen2"
    assert named(sequence(split(qwen), byte_level(False))) == "stablelm2"
    assert named(byte_level(True)) == named(sequence(byte_level(True))) == named(sequence(sequence(byte_level(True)))) == "gpt-2"
    assert named(byte_level(True), nfc) == "olmo"
    assert named(byte_level(True), {"type": "NFKD"}) == "gpt-2+"
    assert named(sequence(digits(True), byte_level(True))) == "smollm"
    assert named(sequence(digits(True), byte_level(True)), nfc) == "command-r"
    inverted = split(llama, "Removed") | {"invert": True}
    assert named(sequence(inverted, byte_level(False)), ignore_merges=True) == "llama-bpe"
    punctuation, three = {"type": "Punctuation", "behavior": "Contiguous"}, split("[0-9][0-9][0-9]")
    assert named(sequence(punctuation, byte_level(True), digits(False), three)) == "falcon"


def test_steps_without_a_name(models: ModuleType) -> None:
    llama = models.PATTERN
    for steps in (
        sequence(split(llama.replace("1,3", "1,2")), byte_level(False)),
        sequence(split(llama), byte_level(True)),
        sequence(split(llama), byte_level(False, add_prefix_space=True)),
        sequence(split(llama), split(llama), byte_level(False)),
        sequence(split(llama) | {"pattern": {"String": llama}}, byte_level(False)),
        sequence(split(llama, "MergedWithNext"), byte_level(False)),
        sequence(digits(False), byte_level(True)),
        sequence(digits(True), byte_level(False)),
        byte_level(False),
    ):
        assert named(steps) == "tokenizer.json"


def test_steps_that_are_refused(models: ModuleType) -> None:
    for refused in (
        sequence(split(models.PATTERN, "Removed"), byte_level(False)),
        sequence(split("x") | {"invert": True, "behavior": "Removed"}, byte_level(False)),
        sequence(split("("), byte_level(False)),
        sequence(split(""), byte_level(False)),
        sequence(split("x" * 20_000), byte_level(False)),
        sequence(byte_level(True), byte_level(True)),
        sequence(*[digits(True)] * 20, byte_level(True)),
        sequence({"type": "Whitespace"}, byte_level(True)),
        sequence(),
        {"type": "Sequence", "pretokenizers": 7},
        {"type": "Sequence", "pretokenizers": ["ByteLevel"]},
    ):
        with pytest.raises(UnsupportedError, match="pre_tokenizer"):
            named(refused)
