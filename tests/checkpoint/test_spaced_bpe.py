"""tokenizer.json of a SentencePiece vocabulary -> the ids that the library gives which the file is for; tokens at the end of a text."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from bitnet_cli.checkpoint import spaced_bpe
from bitnet_cli.checkpoint.config import read_config
from bitnet_cli.checkpoint.tokenizer import tokenizer_metadata
from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

K = "tokenizer.ggml."
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA2 = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
TEXT = "The quick brown fox  jumps over\n\n  the lazy dog's  back.\tGröße, naïve — 你好 😀 12345 ▁_<s> "


def tokenizer_json(tokens: list[str], scores: list[float], gemma: bool) -> dict[str, Any]:
    """As transformers' converter makes it of pieces and scores: every way to put two pieces together to a third, best first."""
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], [left, right]))
    merges.sort(key=lambda merge: merge[:3])
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i in range(3)],
        "normalizer": REPLACE if gemma else LLAMA2,
        "pre_tokenizer": SPACES if gemma else None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [merge for *_, merge in merges],
        },
    }


def built(data: dict[str, Any]) -> Tokenizer:
    v = spaced_bpe.read(Path("tokenizer.json"), data, {})
    values = {K + "model": v.model, K + "tokens": v.tokens, K + "token_type": v.types, K + "unknown_token_id": v.unknown}
    return tokenizer_from_metadata(values | {K + key: value for key, value in v.extra.items()} | v.own, "made")


@pytest.mark.parametrize("gemma", [False, True], ids=["Llama 2", "Gemma"])
def test_a_real_vocabulary(shared_vocab: Path, gemma: bool) -> None:
    with open_gguf(shared_vocab / "ggml-vocab-llama-spm.gguf") as file:
        data = tokenizer_json(file.metadata[K + "tokens"], list(file.metadata[K + "scores"]), gemma)
        types = list(file.metadata[K + "token_type"])
    ours, library = built(data), Library.from_str(json.dumps(data))
    assert spaced_bpe.is_spaced(data)
    assert spaced_bpe.read(Path("x"), data, {}).types == types
    cases = (shared_vocab / "ggml-vocab-llama-spm.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    for text in [*cases, *(TEXT[i:] for i in range(0, len(TEXT), 7))]:
        if "<s>" not in text:  # the library reads control tokens in any text
            assert ours.encode(text, bos=False) == library.encode(text, add_special_tokens=False).ids, text
    if not gemma:
        wanted = (shared_vocab / "ggml-vocab-llama-spm.gguf.out").read_text().splitlines()
        for text, line in zip(cases, wanted, strict=False):
            assert ours.encode(text, bos=False) == [int(i) for i in line.split()]


SMALL = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "zz"]
SCORES = [0.0] * 262 + [-1.0, -2.0, 0.0]


def test_scores_and_types() -> None:
    v = spaced_bpe.read(Path("x"), tokenizer_json(SMALL, SCORES, gemma=True), {})
    assert v.types == [2, 3, 3, *[6] * 256, *[1] * 6]
    assert v.extra["scores"][259:264] == [0.0, 0.0, 0.0, 0.0, -1.0]
    assert v.extra["scores"][264] < -1000  # no merge makes it
    assert (v.unknown, v.adds_bos, v.extra["add_space_prefix"]) == (0, True, False)


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        (lambda d: d.update(normalizer={"type": "NFKC"}), UnsupportedError, "normalizer"),
        (lambda d: d.update(normalizer=None, pre_tokenizer=None), UnsupportedError, "normalizer"),
        (lambda d: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "_"}), UnsupportedError, "pre_tokenizer"),
        (lambda d: d.update(pre_tokenizer={"type": "Metaspace", "prepend_scheme": "last"}), UnsupportedError, "pre_tokenizer"),
        (lambda d: d["model"].update(dropout=0.1), UnsupportedError, "model.dropout"),
        (lambda d: d["model"].update(unk_token="none"), BadFileError, "model.unk_token"),
        (lambda d: d["model"].update(merges=[["a", "c"]]), BadFileError, "'c' is not in the vocabulary"),
    ],
)
def test_faults(change: Callable[[dict[str, Any]], object], kind: type[BitnetError], expected: str) -> None:
    data = tokenizer_json(SMALL, SCORES, gemma=True)
    change(data)
    with pytest.raises(kind) as caught:
        spaced_bpe.read(Path("x"), data, {})
    assert expected in str(caught.value)


def test_a_folder_with_such_a_file_alone(models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "model", "C_packed")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(SMALL, SCORES, gemma=True)))
    values = tokenizer_metadata(folder, read_config(folder)).values
    assert values[K + "model"] == "llama" and len(values[K + "scores"]) == len(values[K + "tokens"]) == 320
    assert values[K + "add_space_prefix"] is False and values[K + "unknown_token_id"] == 0


def test_a_token_at_the_end_of_every_text(models: ModuleType, tmp_path: Path) -> None:
    """Qwen3-Embedding's template ends with <|endoftext|>, which config.json does not name as eos: it becomes eos, as upstream has it."""
    folder = models.write_folder(tmp_path / "model", "C_packed")
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["post_processor"]["single"].append({"SpecialToken": {"id": models.SPECIAL[2], "type_id": 0}})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    values = tokenizer_metadata(folder, read_config(folder)).values
    assert values[K + "add_eos_token"] is True
    assert (values[K + "eos_token_id"], values[K + "eot_token_id"]) == (2, 1)
    tokenizer = tokenizer_from_metadata(values, "made")
    assert tokenizer.encode("a", eos=None)[-1] == 2 and tokenizer.eos_ids >= {1, 2}
