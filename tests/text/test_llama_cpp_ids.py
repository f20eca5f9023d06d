"""Our ids beside llama.cpp's own tokenizer (llama-cpp-python), over forged vocabularies of every pre-tokenizer that it names.

The vocabulary is trained on the strings themselves with no borders of words, so that merges run across every place where a pre-tokenizer
cuts: a border that one has and the other has not gives other ids. For 500 strings they are the same, but where the models' own
tokenizer.json is known to say something else, which we follow:

    NFC                  the model composes characters first, and llama.cpp does not: strings in NFC are compared
    marks and cases      gpt-4o, tekken, kimi-k2, youtu, tiny_aya: to llama.cpp marks are no part of a word, or letters have no case
    falcon               the model cuts digits after bytes are letters, where bytes like B2 are digits
    deepseek             single digits; Chinese from U+0800 on has U+2028 in it, a space to llama.cpp
    afmoe, superbpe      what stands before digits is cut there; \\d is of any script

The counts for those are in docs/log.md#ids-beside-llama-cpp, and the tests hold them to be no more.
"""

import json
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.pre_tokenizers import PRE_TOKENIZERS

from .nasty import nasty_strings

needs_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
K = "tokenizer.ggml."
STRINGS = nasty_strings(1)
OUR_OWN = ("falcon_e",)  # bitnet.cpp's name
# Of strings in NFC: how many differ, where the model's own tokenizer.json does.
DIFFER = {
    "qwen35": 5,
    "exaone-moe": 5,
    "granite-embed-multi-97m": 10,
    "falcon": 250,
    "deepseek-llm": 150,
    "deepseek-coder": 50,
    "youtu": 40,
    "kimi-k2": 150,
    "tekken": 120,
    "superbpe": 30,
    "afmoe": 30,
    **dict.fromkeys(("tiny_aya", "cohere2moe"), 60),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), 120),
}


def ids_by_llama_cpp(vocabulary: Path, strings: list[str], folder: Path, *, special: bool = False) -> list[list[int]]:
    texts, out = folder / "strings.json", folder / "ids.json"
    texts.write_text(json.dumps(strings))
    script = Path(__file__).with_name("llama_cpp_ids.py")
    call = [sys.executable, str(script), str(vocabulary), str(texts), str(out), *(["special"] if special else [])]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def forged() -> dict[str, Any]:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=30000, min_frequency=1, initial_alphabet=alphabet, show_progress=False, max_token_length=64)
    library.train_from_iterator([*STRINGS, *(unicodedata.normalize("NFC", text) for text in STRINGS)], trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {K + "model": "gpt2", K + "tokens": tokens, K + "merges": [" ".join(pair) for pair in model["merges"]]}


def write(path: Path, values: dict[str, Any]) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(values[K + "model"])
    writer.add_token_list(values[K + "tokens"])
    writer.add_token_types(values.get(K + "token_type", [1] * len(values[K + "tokens"])))
    if K + "merges" in values:
        writer.add_token_merges(values[K + "merges"])
    if K + "scores" in values:
        writer.add_token_scores(values[K + "scores"])
    if K + "pre" in values:
        writer.add_tokenizer_pre(values[K + "pre"])
    if K + "add_space_prefix" in values:
        writer.add_add_space_prefix(values[K + "add_space_prefix"])
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unknown", writer.add_unk_token_id)):
        add(values.get(f"{K}{name}_token_id", 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@needs_llama_cpp
@pytest.mark.parametrize("pre", [*(name for name in PRE_TOKENIZERS if name not in OUR_OWN), None])
def test_pre_tokenizer(pre: str | None, forged: dict[str, Any], tmp_path: Path) -> None:
    values = forged if pre is None else forged | {K + "pre": pre}
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    theirs = ids_by_llama_cpp(write(tmp_path / "v.gguf", values), STRINGS, tmp_path)
    entry = PRE_TOKENIZERS[pre or "default"]
    differ = [
        text
        for text, ids in zip(STRINGS, theirs, strict=True)
        if tokenizer.encode(text, bos=False) != ids and (not entry.nfc or unicodedata.is_normalized("NFC", text))
    ]
    assert len(differ) <= DIFFER.get(pre or "default", 0), differ[:5]


def test_the_comparison_sees_borders(forged: dict[str, Any]) -> None:
    """Two entries that cut otherwise give other ids: of all pairs of ways, on at least one string."""
    entries = {entry: name for name, entry in PRE_TOKENIZERS.items()}
    found = {}
    for name in entries.values():
        tokenizer = tokenizer_from_metadata(forged | {K + "pre": name}, "m.gguf")
        found[name] = tuple(tuple(tokenizer.encode(text, bos=False)) for text in STRINGS)
    ways = {(entry.patterns, entry.byte_patterns, entry.nfc) for entry in entries}
    assert len(set(found.values())) == len(ways) - 1  # Bailing's and Qwen 2's expressions match the same


@needs_llama_cpp
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, spm: dict[str, Any], tmp_path: Path) -> None:
    """Spaces around user-defined and control tokens; the file says nothing about them."""
    values = spm | {K + "add_space_prefix": prefix}
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    path = write(tmp_path / "v.gguf", values)
    marks = ["<image>", "   ", "<s>", "</s>", "<unk>", "the", " ", "▁"]
    strings = [f"{text}{marks[i % 8]}{STRINGS[-1 - i]}{marks[i // 8 % 8]}" for i, text in enumerate(STRINGS)]
    for special in (False, True):
        theirs = ids_by_llama_cpp(path, strings, tmp_path, special=special)
        assert [tokenizer.encode(text, special=special, bos=False) for text in strings] == theirs
