"""scripts/evaluate.py on a tiny run: perplexity as training logs it, zeros as counted by hand, differences paired."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitnet_cli.checkpoint.safetensors import read_table

pytestmark = pytest.mark.live
TEXT = "the king said unto the people, and the people heard the king in the 12 cities of the land. "
SIZES = ["--vocab-size", "280", "--hidden", "64", "--feed-forward", "96", "--layers", "2", "--heads", "2", "--kv-heads", "1"]
SIZES += ["--context", "16", "--batch", "4", "--threads", "1", "--steps", "4"]


@pytest.fixture
def script(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)").set_num_threads(1)
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    return importlib.import_module("evaluate")


@pytest.fixture
def root(script: ModuleType, tmp_path: Path) -> Path:
    """Runs `int8`, `a4.8` (second stage of it) and `float` beside their corpus."""
    train = importlib.import_module("train")
    for part in ("train", "heldout"):
        (tmp_path / f"{part}.txt").write_text((TEXT * 30 + "<|endoftext|>") * 2)
    first = str(tmp_path / "int8" / "checkpoint.safetensors")
    for name, options in {"int8": [], "a4.8": ["--from", first, "--activations", "a4.8"], "float": ["--float"]}.items():
        train.main(["--out", str(tmp_path / name), "--corpus", str(tmp_path), *SIZES, *options])
    return tmp_path


def test_rows_and_tables(script: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", *(str(root / name) for name in ("int8", "a4.8", "float")), "--text", str(root / "heldout.txt")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    capsys.readouterr()
    script.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["model"], row["scheme"]) for row in rows] == [(name, name) for name in ("int8", "a4.8", "float")]
    for row in rows:
        logged = json.loads((root / row["model"] / "log.jsonl").read_text().splitlines()[-1])
        assert row["nats"] == pytest.approx(logged["heldout_nats"], abs=2e-3)  # the embedding became float16
        assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
    assert "difference" not in rows[0]
    for row in rows[1:]:
        assert row["difference"] == pytest.approx(row["nats"] - rows[0]["nats"], abs=1e-9)
        assert 0 < row["difference_error"] < row["nats_error"]  # nearly the same model and the same tokens
    assert rows[1]["sparsity"]["o"] == pytest.approx(0.5, abs=0.02)
    assert rows[1]["sparsity"]["qkv"] > rows[0]["sparsity"]["qkv"] + 0.05
    assert rows[2]["sparsity"] == {}
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    printed = capsys.readouterr().out
    assert f"| a4.8 | a4.8 | {rows[1]['perplexity']:.3f} ±" in printed
    assert f"| a4.8 | {100 * rows[1]['sparsity']['qkv']:.1f} | {100 * rows[1]['sparsity']['o']:.1f} |" in printed


def test_zeros_by_hand(script: ModuleType, root: Path) -> None:
    """The first layer's q, k, v input and the gate's zeros of one window, in NumPy, and the weighted sum over the projections."""
    import torch

    model, _ = script.load(root / "a4.8")
    ids = torch.arange(16)[None] * 7
    counters = script.counted(model)
    with torch.no_grad():
        model(ids)
    masters = read_table(root / "a4.8" / "checkpoint.safetensors")
    x = masters["embed_tokens.weight"].float32()[ids[0].numpy()].astype(np.float16).astype(np.float64)
    x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * masters["layers.0.input_layernorm.weight"].float32()
    codes = np.rint(x * np.sqrt(7) / np.maximum(np.abs(x).mean(1, keepdims=True), 1e-5))
    assert np.allclose(counters[0]["qkv"].zero_codes[0].numpy(), (codes == 0).mean(1), atol=1e-3)
    found = script.sparsity(model, counters)
    closed, inputs = (
        np.stack([getattr(c[name], key)[0].numpy() for c in counters]) for name, key in (("down", "zero_values"), ("gate_up", "zero_codes"))
    )
    assert found["gate <= 0"] == pytest.approx(closed.mean())
    assert found["up"] == pytest.approx((1 - (1 - closed) * (1 - inputs)).mean())
    parts = {"qkv": 64 * 128, "o": 64 * 64, "gate": 64 * 96, "up": 64 * 96, "down": 64 * 96}
    assert found["read"] == pytest.approx(sum((1 - found[k]) * n for k, n in parts.items()) / sum(parts.values()))
