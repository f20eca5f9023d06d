"""What ends a text of a checkpoint: ids of three files, the chat template, known names; and the keys that they are written under."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.checkpoint.config import read_config
from bitnet_cli.checkpoint.tokenizer import TokenizerMetadata, tokenizer_metadata
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

K = "tokenizer.ggml."
# Bytes 3 to 258, merges up to 281, and the first free ids.
ADDED = {"<|turn_end|>": 282, "<|user|>": 283, "<|assistant|>": 284, "<|im_start|>": 285, "<|im_end|>": 286, "<|eom_id|>": 287, "</s>": 288}
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "none of its own": ("{{ messages[0]['content'] }}", []),
    "ChatML": (CHATML, ["<|im_end|>"]),
    "one that nobody knows": ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }} <|turn_end|>{% endfor %}", ["<|turn_end|>"]),
    "in a variable": (
        "{% set end = '<|turn_' + 'end|>' %}<|user|>{% for m in messages %}{{ m.content }}{{ end if m.role == 'assistant' }}{% endfor %}",
        ["<|turn_end|>"],
    ),
    "only in the middle": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last %}<|turn_end|>{% endif %}{% endfor %}",
        ["<|turn_end|>"],
    ),
    "the next turn": (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}\n{{ m.content }}\n{% endfor %}",
        ["<|user|>"],
    ),
    "the end token": ("{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}", []),
    "text between": ("{% for m in messages %}<|user|>{{ m.content }}.<|turn_end|>{% endfor %}", []),
    "refuses": ("<|user|>{{ raise_exception('no') }}", []),
    "wrong": ("<|user|>{% if %}", []),
}


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(data | changes), encoding="utf-8")


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Without its weights, which no test here reads."""
    written = tmp_path / "model"
    shutil.copytree(folders["C"], written, ignore=shutil.ignore_patterns("*.safetensors"))
    edit(written / "config.json", eos_token_id=None)
    edit(written / "tokenizer_config.json", eos_token=None, chat_template=None)
    return written


def add_tokens(folder: Path, names: list[str], special: bool = True) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["added_tokens"] += [{"id": ADDED[name], "content": name, "special": special} for name in names]
    path.write_text(json.dumps(data), encoding="utf-8")


def found(folder: Path) -> tuple[TokenizerMetadata, list[int | None]]:
    """What is read, and eos, eot and eom of it."""
    result = tokenizer_metadata(folder, read_config(folder))
    return result, [result.values.get(f"{K}{name}_token_id") for name in ("eos", "eot", "eom")]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_says_what_ends_a_turn(name: str, special: bool, folder: Path) -> None:
    template, ends = TEMPLATES[name]
    add_tokens(folder, ["<|turn_end|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "</s>"], special)
    edit(folder / "config.json", eos_token_id=288)
    edit(folder / "tokenizer_config.json", chat_template=template, eos_token="</s>")
    result, keys = found(folder)
    ids = [ADDED[end] for end in ends] or [2]  # else the name <|eot_id|>, which this vocabulary has
    assert keys[:2] == [288, *ids]
    assert set(ids) <= tokenizer_from_metadata(result.values, "m.gguf").eos_ids
    noted = name in ("refuses", "wrong")
    assert [("cannot be rendered" in note) for note in result.notes] == ([True] if noted else [])


def test_every_file_is_asked(folder: Path) -> None:
    add_tokens(folder, list(ADDED))
    edit(folder / "config.json", eos_token_id=[271, 1])
    edit(folder / "generation_config.json", eos_token_id=[1, 272, 273])
    edit(folder / "tokenizer_config.json", eos_token="</s>", chat_template=CHATML)
    result, keys = found(folder)
    assert keys == [271, 286, 287]  # the template's, and the one that is named for it
    assert result.values[K + "eos_token_ids"] == [271, 1, 272, 273, 288, 286, 287]
    assert {271, 1, 272, 273, 288, 286, 287} <= tokenizer_from_metadata(result.values, "m.gguf").eos_ids
    assert "stops at 7 tokens" in result.notes[0]


@pytest.mark.parametrize(
    ("config", "generation", "keys"),
    [
        (1, None, [1, 2, None]),
        ([1], 1, [1, 2, None]),
        (None, 5, [5, 2, None]),
        (None, [5, 6], [5, 2, 6]),
        ([1, 2, 271], None, [1, 2, 271]),
        (2, [2, 1], [2, 1, None]),
        (None, None, [None, 2, None]),
    ],
)
def test_keys(config: Any, generation: Any, keys: list[int | None], folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=config)
    if generation is not None:
        edit(folder / "generation_config.json", eos_token_id=generation)
    result, written = found(folder)
    assert written == keys and K + "eos_token_ids" not in result.values and result.notes == []


@pytest.mark.parametrize("wrong", [320, [1, 999], "</s>", [1.5], True, {"a": 1}, -7])
def test_ends_that_do_not_exist_are_told(wrong: Any, folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=1)
    edit(folder / "generation_config.json", eos_token_id=wrong)
    result, keys = found(folder)
    assert keys[0] == 1
    assert len(result.notes) == 1 and "eos_token_id names tokens that do not exist" in result.notes[0]


def test_a_number_beyond_the_embedding_does_no_harm(folder: Path) -> None:
    """An end in config.json is told as one in generation_config.json is; nothing is padded here."""
    edit(folder / "config.json", eos_token_id=[1, 320], pad_token_id=32000)
    result, keys = found(folder)
    assert keys[0] == 1 and K + "padding_token_id" not in result.values
    assert len(result.notes) == 1 and "eos_token_id names tokens that do not exist: [320]" in result.notes[0]


def test_a_template_with_a_mark_and_lines_of_windows(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert found(folder)[0].values["tokenizer.chat_template"] == "one\ntwo"
