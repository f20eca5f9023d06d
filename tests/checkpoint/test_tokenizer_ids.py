"""tokenizer.json -> GGUF file -> ids, beside the `tokenizers` library on the same tokenizer.json: what goes on around added tokens and
spaces, steps before the merges that no name stands for, and files as transformers 5 writes them."""

import copy
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from bitnet_cli.commands.convert import convert
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

Change = Callable[[dict[str, Any]], object]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
ADDED = ("<|user|>", "<|user|>>", "[X]", " lead", "a\u0301", "▁▁")
PARTS = (
    *ADDED,
    *(
        "hi",
        " hi",
        "net",
        " ",
        "  ",
        "    ",
        "\n",
        "▁",
        "the",
        " the",
        "ab",
        "abc",
        "aab",
        "don't",
        "!?",
        "...",
        "$1",
        "12",
        "1234567",
        "½",
        "²",
    ),
    *("м", "é", "e\u0301", "a\u0301", "世界", "😀", "\t", "\xa0", "\u3000", "x_", "<", "|", ">", "[", "A", "\0", "<s>", "<unk>", "</s>"),
)
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
DOUBLED = {"type": "Sequence", "normalizers": [REPLACE, {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}]}


def strings(seed: int, count: int = 1000) -> list[str]:
    random_ = random.Random(seed)
    return ["".join(random_.choices(PARTS, k=random_.randint(1, 9))) for _ in range(count)]


def agree(models: ModuleType, folder: Path, data: dict[str, Any], **settings: Any) -> Any:
    """Converts a model with this tokenizer.json, and compares the ids that the file gives."""
    models.write_folder(folder, "C_packed", vocab_size=320)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    out = folder / "model.gguf"
    convert(folder, out, quiet=True)
    with open_gguf(out) as file:
        values = dict(file.metadata)
    ours, library = tokenizer_from_metadata(values, "model.gguf", 320), Library.from_str(json.dumps(data))
    for text in strings(len(json.dumps(data))):
        assert ours.encode(text, special=True, bos=False) == library.encode(text, add_special_tokens=False).ids, text
    return values


def pieces(extra: tuple[str, ...]) -> dict[str, Any]:
    """A Llama-2-type tokenizer.json of 286 tokens. Merges: every way to put two tokens together to a third, best first, as transformers
    makes them of scores."""
    words = ("▁t", "▁▁", "th", "▁th", "▁the", "the", "ab", "abc", "bc", "aa", "hi", "▁hi", "net", "ne")
    singles = dict.fromkeys("▁" + "".join(words))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, *singles]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [[word[:at], word[at:]] for word in words for at in range(1, len(word)) if word[:at] in ids and word[at:] in ids]
    added = [{"id": i, "content": tokens[i]} | FLAGS | {"special": True} for i in range(3)]
    added += [{"id": ids.get(text, len(ids) + i), "content": text} | FLAGS for i, text in enumerate(extra)]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "vocab": ids, "merges": merges}
    return {"version": "1.0", "added_tokens": added, "normalizer": PREPEND, "pre_tokenizer": None, "model": model}


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def flagged(**flags: bool) -> Change:
    return lambda d: [entry.update(flags) for entry in d["added_tokens"] if not entry["special"]]


SPACES: dict[str, Change] = {
    "Prepend": lambda d: None,
    "Gemma": lambda d: d.update(normalizer=REPLACE),
    "doubled": lambda d: d.update(normalizer=DOUBLED, pre_tokenizer=metaspace("always", False)),
    "older Metaspace": lambda d: d.update(
        normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    ),
    "normalized": flagged(normalized=True),
    "lstrip": flagged(lstrip=True),
    "rstrip": flagged(rstrip=True),
    "single word": flagged(single_word=True),
    "fewer merges": lambda d: d["model"].update(merges=d["model"]["merges"][::2]),
    "other order": lambda d: d["model"]["merges"].reverse(),
    "no unknown": lambda d: (d["model"].update(unk_token=None), d.update(normalizer=None, pre_tokenizer=metaspace("first", False))),
    "ignore merges": lambda d: (d["model"].update(ignore_merges=True), d.update(normalizer=None, pre_tokenizer=metaspace("first", True))),
    "mixed order": lambda d: d["model"]["merges"].sort(key=lambda pair: pair[1]),
}
for _scheme in ("first", "always", "never"):
    for _split in (False, True):
        _step = metaspace(_scheme, _split)
        SPACES[f"Metaspace {_scheme} {_split}"] = partial(dict.update, normalizer=None, pre_tokenizer=_step)


# Scores cannot say the same as these merges, which are in the file therefore. With scores, `a` and U+0301 make an added token too.
BY_MERGES = ("normalized", "single word", "fewer merges", "mixed order", "ignore merges")


@pytest.mark.parametrize("name", SPACES)
def test_spaces(name: str, models: ModuleType, tmp_path: Path) -> None:
    data = pieces(ADDED if name in BY_MERGES else tuple(text for text in ADDED if text != "a\u0301"))
    SPACES[name](data)
    values = agree(models, tmp_path / "model", data, unk_token="<unk>")
    assert ("tokenizer.ggml.merges" in values) is (name in BY_MERGES)


def byte_level(models: ModuleType) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(models.tokenizer_json())
    data["added_tokens"] += [{"id": 300 + i, "content": text} | FLAGS for i, text in enumerate(ADDED)]
    data["model"]["vocab"] |= {entry["content"]: entry["id"] for entry in data["added_tokens"] if entry["id"] >= 300}
    data["post_processor"] = None
    return data


LETTERS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PLAIN = LETTERS | {"use_regex": False}
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


def split(pattern: str, behavior: str = "Isolated", key: str = "Regex", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {key: pattern}, "behavior": behavior, "invert": invert}


STEPS: dict[str, list[dict[str, Any]]] = {
    "Falcon-E's": [PUNCTUATION, LETTERS, split("[0-9]")],
    "Falcon's": [PUNCTUATION, LETTERS, digits(False), split("[0-9][0-9][0-9]")],
    "digits after letters": [PUNCTUATION | {"behavior": "Isolated"}, LETTERS, digits(True)],
    "digits before": [digits(True), PUNCTUATION | {"behavior": "MergedWithPrevious"}, LETTERS],
    "prefix": [LETTERS | {"add_prefix_space": True}],
    "text": [split("ab", key="String"), PLAIN],
    "next": [split(r"\p{N}", "MergedWithNext"), LETTERS],
    "runs": [split(r"[a-c]|\p{P}", "Contiguous"), PLAIN],
    "inverted": [split(r"\p{L}+", invert=True), PLAIN],
    "nothing": [PLAIN],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
def test_steps(steps: list[dict[str, Any]], models: ModuleType, tmp_path: Path) -> None:
    data = byte_level(models)
    data["pre_tokenizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    agree(models, tmp_path / "model", data)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("normalized", [False, True])
def test_normalizers(form: str, normalized: bool, models: ModuleType, tmp_path: Path) -> None:
    data = byte_level(models)
    data["normalizer"] = {"type": form}
    flagged(normalized=normalized)(data)
    agree(models, tmp_path / "model", data)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens(flag: str, models: ModuleType, tmp_path: Path) -> None:
    data = byte_level(models)
    for entry in data["added_tokens"]:
        entry[flag] = True
    agree(models, tmp_path / "model", data)


def test_no_merges(models: ModuleType, tmp_path: Path) -> None:
    data = byte_level(models)
    data["model"]["merges"] = []
    data["model"]["ignore_merges"] = False
    assert agree(models, tmp_path / "model", data)["tokenizer.ggml.merges"] == []
