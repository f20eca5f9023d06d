"""`bitnet inspect`: what it says of sound, foreign and damaged files, on a terminal's 80 columns and as JSON."""

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.inspect import describe, inspect
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file.reader import open_gguf

from ..hostile import forge

KEYS = ["path", "format", "version", "bytes", "files", "alignment", "trailing_bytes", "architecture", "name", "activations", "weights"]
KEYS += [
    "parts",
    "types",
    "bits_per_weight",
    "zeros",
    "i2_s_order",
    "head_note",
    "tokenizer",
    "chat_template",
    "commands",
    "check",
    "metadata",
    "tensors",
]


@pytest.fixture(scope="module")
def model(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, converted: 14 I2_S tensors, a float16 embedding, 9 norms."""
    path = tmp_path_factory.mktemp("inspect") / "model.gguf"
    convert(folders["C"], path, quiet=True)
    return path


@pytest.fixture
def inspected(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """inspected(path, check=False, problem=None): what `--json` prints, in this process; `problem`: words of the error that follows."""

    def run(path: Path | None = None, *, check: bool = False, problem: str | None = None) -> dict[str, Any]:
        expected = pytest.raises(BadFileError, match=re.escape(problem)) if problem else contextlib.nullcontext()
        with expected:
            inspect(path, full=check, tensors=False, as_json=True, quiet=True)
        text, errors = capsys.readouterr()
        assert text.isascii() and text.count("\n") == 1 and errors == ""
        return dict(json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")))

    return run


def test_numbers_of_a_model(inspected: Callable[..., Any], model: Path, models: Any) -> None:
    facts = inspected(model)
    assert list(facts) == KEYS
    parameters = models.masters(models.Shape())
    ternary = [models.ternary(w)[0] for name, w in parameters.items() if "_proj" in name]
    weights = sum(w.size for w in ternary)
    embedding = parameters["model.embed_tokens.weight"].size
    assert facts["weights"] == sum(w.size for w in parameters.values())
    assert facts["parts"]["ternary"] == {"tensors": 14, "weights": weights, "bytes": weights // 4 + 14 * 32}
    assert facts["parts"]["head_embedding"] == {"tensors": 1, "weights": embedding, "bytes": 2 * embedding}
    assert facts["parts"]["norms"]["tensors"] == 9 and facts["parts"]["other"]["tensors"] == 0
    assert facts["types"]["I2_S"]["weights"] == weights and set(facts["types"]) == {"I2_S", "F16", "F32"}
    assert facts["bits_per_weight"]["ternary"] == pytest.approx(2 + 8 * 14 * 32 / weights)
    zeros = sum(int((w == 0).sum()) for w in ternary)
    assert facts["zeros"] == {"share": zeros / weights, "weights": weights, "seen": weights, "exact": True}
    assert facts["architecture"] == "bitnet-b1.58" and facts["bytes"] == model.stat().st_size
    assert facts["tokenizer"]["special"]["bos"] == {"id": 0, "text": "<|begin_of_text|>"} and facts["tokenizer"]["stops_at"] == [1, 2]
    assert (facts["tokenizer"]["kind"], facts["tokenizer"]["pre"], facts["tokenizer"]["tokens"]) == ("gpt2", "llama-bpe", 320)
    assert facts["metadata"]["tokenizer.ggml.tokens"] == {"count": 320, "items": None}
    assert list(facts["commands"]) == ["run", "perplexity", "embed", "quantize"]
    assert "no embedding model" in facts["commands"].pop("embed")["reason"]
    for name, verdict in facts["commands"].items():
        assert verdict == {"works": True, "reason": None, "sampled": name == "quantize"}


def test_tensors_and_their_sums(inspected: Callable[..., Any], model: Path) -> None:
    quick, full = inspected(model), inspected(model, check=True)
    data = model.read_bytes()
    assert full["tensors"][0]["name"] == "token_embd.weight" and len(full["tensors"]) == 24
    for before, after in zip(quick["tensors"], full["tensors"], strict=True):
        assert set(after) == {"name", "type", "shape", "file", "offset", "bytes", "part", "sha256"}
        assert before == after | {"sha256": None}
        assert after["sha256"] == hashlib.sha256(data[after["offset"] : after["offset"] + after["bytes"]]).hexdigest()
    assert full["check"] == {"problems": [], "unchecked": []} and quick["check"] is None


def test_report_fits_80_columns(bitnet: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    short = tmp_path / "m"
    short.symlink_to(model)
    done = bitnet("inspect", "./m", "--tensors", "--check", cwd=tmp_path, env=os.environ | {"LANG": "C", "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80 and done.stdout.isprintable() is False and "\x1b" not in done.stdout
    for words in (
        "bits/weight",
        "% of the ternary weights (all of them counted)",
        "run           works",
        "blk.1.ffn_down.weight",
        "usable",
    ):
        assert words in done.stdout


def test_without_a_file_it_shows_the_embedded_model(inspected: Callable[..., Any]) -> None:
    facts = inspected()
    assert facts["path"] == str(EMBEDDED_MODEL) and facts["commands"]["run"]["works"]


def test_a_sample_is_labelled_and_near_the_truth(tmp_path: Path, bitnet: Callable[..., Any], inspected: Callable[..., Any]) -> None:
    """One I2_S tensor of 2 MiB, of which 64 KiB are looked at: zeros are rare in the first half and common in the second."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.choice([0, 1, 2], (512, 8192), p=p) for p in ((0.4, 0.2, 0.4), (0.2, 0.6, 0.2))]).astype(np.uint8)
    fields = values.reshape(-1, 4, 32)
    packed = (fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]).tobytes()
    tail = struct.pack("<f", 0.5).ljust(32, b"\0")
    path = tmp_path / "large.gguf"
    path.write_bytes(forge.forge([], [forge.tensor("blk.0.attn_q.weight", [8192, 1024], 36, 0)], packed + tail))
    facts, text = inspected(path), bitnet("inspect", path).stdout
    assert facts["zeros"]["share"] == pytest.approx(0.4, abs=0.01) and not facts["zeros"]["exact"]
    assert facts["zeros"]["seen"] == 4 << 16 and "a sample of 3.1 %" in text
    exact = inspected(path, check=True)["zeros"]
    assert exact["share"] == (values == 1).mean() and exact["exact"]


def patched(model: Path, target: Path, change: Callable[[bytearray, dict[str, Any]], None]) -> Path:
    """A copy with some bytes changed; `change` gets them and the tensor table by name."""
    data = bytearray(model.read_bytes())
    with open_gguf(model) as gguf:
        change(data, dict(gguf.tensors))
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("tensor", "at", "value", "words"),
    [
        ("blk.0.attn_q.weight", 5, b"\xff", "4 codes stand for no ternary value"),
        ("blk.1.ffn_down.weight", -32, struct.pack("<f", float("nan")), "scale is nan"),
        ("blk.1.ffn_down.weight", -32, struct.pack("<f", -1), "scale is -1"),
        ("output_norm.weight", 8, struct.pack("<f", float("inf")), "1 numbers are not finite"),
        ("token_embd.weight", 100, b"\x00\x7e", "1 numbers are not finite"),
    ],
)
def test_check_finds_what_cannot_be(
    bitnet: Callable[..., Any], inspected: Callable[..., Any], model: Path, tmp_path: Path, tensor: str, at: int, value: bytes, words: str
) -> None:
    def change(data: bytearray, tensors: dict[str, Any]) -> None:
        place = tensors[tensor].offset + (at if at >= 0 else tensors[tensor].nbytes + at)
        data[place : place + len(value)] = value

    path = patched(model, tmp_path / "bad.gguf", change)
    assert inspected(path)["check"] is None  # a look at the file is still a look
    done = bitnet("inspect", path, "--check")
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert str(path) in done.stderr and tensor in done.stderr and words in done.stderr and "byte" in done.stderr
    facts = inspected(path, check=True, problem=words)
    assert len(facts["check"]["problems"]) == 1 and words in facts["check"]["problems"][0]


def test_several_problems_are_counted(bitnet: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    def change(data: bytearray, tensors: dict[str, Any]) -> None:
        for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
            data[tensors[name].offset] = 255

    path = patched(model, tmp_path / "bad.gguf", change)
    done = bitnet("inspect", path, "--check")
    assert done.returncode == 3 and "and 2 more problems" in done.stderr and "3 problems" in done.stdout


def test_damaged_files_are_one_line(bitnet: Callable[..., Any], refused: Callable[..., None], model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-100])
    for option in ("--json", "--check", "--tensors"):
        refused(bitnet("inspect", cut, option), 3, "cut.gguf", "ends at byte")
    refused(bitnet("inspect", tmp_path / "absent.gguf"), 2, "No such file")
    (tmp_path / "text").write_text("hello")
    refused(bitnet("inspect", tmp_path / "text"), 3, "not a GGUF file")


def test_foreign_files_are_shown_as_far_as_they_can_be(bitnet: Callable[..., Any], inspected: Callable[..., Any], tmp_path: Path) -> None:
    """An architecture and types that are not supported, no tokenizer: reported, and why nothing works on it."""
    entries = [
        forge.entry("general.architecture", forge.STRING, forge.string("mamba\x1b[31m")),
        forge.entry("a.nan", forge.FLOAT32, forge.scalar(forge.FLOAT32, float("nan"))),
        forge.entry("tokenizer.chat_template", forge.STRING, forge.string(b"<|im_start|>\xff\n")),
    ]
    tensors = [
        forge.tensor("token_embd.weight", [256, 4], 13, 0),  # Q5_K: 176 bytes a row
        forge.tensor("output_norm.weight", [8], 0, 704),
        forge.tensor("blk.0.ffn_up.weight", [128, 2], 38, 736),  # TL1, to the end of the file
    ]
    path = tmp_path / "foreign.gguf"
    path.write_bytes(forge.forge(entries, tensors, bytes(736 + 96)))
    facts = inspected(path, check=True)
    assert [(t["name"], t["type"], t["bytes"]) for t in facts["tensors"]] == [
        ("token_embd.weight", "Q5_K", 704),
        ("output_norm.weight", "F32", 32),
        ("blk.0.ffn_up.weight", "TL1", 96),
    ]
    assert facts["parts"]["ternary"]["weights"] == 256 and facts["zeros"]["share"] is None and facts["tokenizer"] is None
    template = facts["chat_template"]
    assert (template["name"], template["trained"], template["characters"], template["also"]) == ("model", False, 14, [])
    assert "needs <|im_start|>, not a token here" in template["reason"] and facts["metadata"]["a.nan"] is None
    assert facts["check"]["unchecked"] == ["blk.0.ffn_up.weight"]
    assert not any(verdict["works"] for verdict in facts["commands"].values())
    done = bitnet("inspect", path)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "mamba\\x1b[31m" in done.stdout


@pytest.mark.parametrize("offsets", [(0, 64), (0, 0), (32, 64), (0, 1 << 40)])
def test_forged_offsets_of_tensors_that_are_not_read(
    bitnet: Callable[..., Any], refused: Callable[..., None], tmp_path: Path, offsets: tuple[int, int]
) -> None:
    tensors = [forge.tensor("a", [256], 38, offsets[0]), forge.tensor("b", [256], 38, offsets[1])]
    path = tmp_path / "forged.gguf"
    path.write_bytes(forge.forge([], tensors, bytes(64)))
    refused(bitnet("inspect", path), 3, "forged.gguf", "tensor")


def test_reasons_are_those_of_run(
    bitnet: Callable[..., Any], model: Path, tmp_path: Path, folders: dict[str, Path], refused: Callable[..., None]
) -> None:
    """For each fault, `run` refuses with the words that `inspect` gives."""
    kept = tmp_path / "kept.gguf"
    convert(folders["C"], kept, outtype="f16", quiet=True)
    no_norm = tmp_path / "no_norm.gguf"
    no_norm.write_bytes(model.read_bytes().replace(b"blk.1.ffn_sub_norm.weight", b"blk.1.ffn_sub_nrom.weight"))
    no_pre = tmp_path / "no_pre.gguf"
    no_pre.write_bytes(model.read_bytes().replace(b"llama-bpe", b"llama-bqe"))
    for path in (kept, no_norm, no_pre):
        with open_gguf(path, unread=True) as file:
            reason = describe(file)["commands"]["run"]["reason"]
        done = bitnet("run", "-m", path, "-p", "a", "-n", "1")
        assert done.returncode in (3, 4)
        # Where run gives the list of what is supported, inspect may be shorter.
        assert reason.split(";")[0].split(" are not run")[0] in done.stderr, (reason, done.stderr)


def test_folder(bitnet: Callable[..., Any], inspected: Callable[..., Any], folders: dict[str, Path]) -> None:
    facts = inspected(folders["B"])
    assert facts["format"] == "safetensors" and facts["plan"]["scale_rule"] == "multiply by weight_scale"
    assert len(facts["tensors"]) == 24 + 14 and facts["tensors"][0]["file"] == "model.safetensors"
    done = bitnet("inspect", folders["E"], "--tensors")
    assert done.returncode == 0 and "needs --ternarise" in done.stdout and "model.norm.weight" in done.stdout
