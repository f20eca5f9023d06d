"""scripts/train.py on a tiny shape: the second stage goes on from the first's weights, optimizer state and batches."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.safetensors import read_table

pytestmark = pytest.mark.live
TEXT = "the king said unto the people, and the people heard the king in the 12 cities of the land. "
SIZES = ["--vocab-size", "280", "--hidden", "64", "--feed-forward", "96", "--layers", "1", "--heads", "2", "--kv-heads", "1"]
SIZES += ["--context", "16", "--batch", "4", "--micro-batch", "2", "--threads", "1", "--warm-up", "2"]


@pytest.fixture
def script(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/train.py. It imports its neighbours, as it does when it is run."""
    reason = "PyTorch is not installed (extra `train`)"
    torch = pytest.importorskip("torch", reason=reason)
    pytest.importorskip("safetensors")
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    module = importlib.import_module("train")
    monkeypatch.setattr(module, "faster_type", lambda _: torch.float32)  # the choice is by the clock
    return module


@pytest.fixture
def stage_1(script: ModuleType, tmp_path: Path) -> Path:
    """Checkpoint after six steps."""
    (tmp_path / "corpus").mkdir()
    for part in ("train", "heldout"):
        (tmp_path / "corpus" / f"{part}.txt").write_text(TEXT * 60)
    run(script, tmp_path / "first", "--steps", "6")
    return tmp_path / "first" / "checkpoint.safetensors"


def run(script: ModuleType, out: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    script.main(["--out", str(out), "--corpus", str(out.parent / "corpus"), *SIZES, *options])
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.float32() for name, tensor in read_table(folder / "checkpoint.safetensors").items()}


def test_the_first_step_uses_the_carried_moments(script: ModuleType, stage_1: Path, tmp_path: Path) -> None:
    """Adam by hand from the first stage's moments; the gradient is what the first moment moved by. No weight decay."""
    rows = run(script, tmp_path / "second", "--from", str(stage_1), "--activations", "a4.8", "--steps", "1", "--lr", "1e-2")
    assert [(row["step"], row["tokens"]) for row in rows] == [(6, 6 * 64), (7, 7 * 64)]
    before, after = weights(stage_1.parent), weights(tmp_path / "second")
    for name in ("layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight", "embed_tokens.weight"):
        (m, v, t), (m2, v2, t2) = ([w[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")] for w in (before, after))
        assert np.abs(m).max() > 0
        assert (t, t2) == (6, 7)
        gradient = (m2.astype(np.float64) - 0.9 * m) / 0.1
        assert np.abs(gradient).max() > 0
        assert np.allclose(v2, 0.95 * v + 0.05 * gradient**2, rtol=1e-3, atol=1e-12)
        rate = 1e-2 / 2  # the first of two steps of warm-up
        moved = rate * (m2 / (1 - 0.9**7)) / (np.sqrt(v2 / (1 - 0.95**7)) + 1e-8)
        assert np.allclose(after[name], before[name] - moved, rtol=0, atol=2e-6)


def test_every_scheme_sees_the_batches_that_come_next(script: ModuleType, stage_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}
    update = script.Training.update

    def recorded(self: Any, batch: Any) -> float:
        seen.setdefault(name, []).append(str(batch.tolist()))
        loss: float = update(self, batch)
        return loss

    monkeypatch.setattr(script.Training, "update", recorded)
    name, root = "whole", stage_1.parent.parent
    run(script, root / name, "--steps", "9")
    for name in ("int8", "a4.8", "a4.8-fp4", "v2-a8", "v2-a4"):
        run(script, root / name, "--from", str(stage_1), "--activations", name, "--steps", "3")
        assert seen[name] == seen["whole"][6:]


def test_resuming_gives_the_same_model(script: ModuleType, stage_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, second = stage_1.parent.parent, ["--from", str(stage_1), "--activations", "a4.8", "--steps", "6", "--evaluate-every", "3"]
    run(script, root / "once", *second)
    with monkeypatch.context() as patch:
        patch.setattr(script.Training, "save", saving_once(script.Training.save, stop=9))
        with pytest.raises(KeyboardInterrupt):
            run(script, root / "twice", *second)
    run(script, root / "twice", *second, "--resume")
    once, twice = weights(root / "once"), weights(root / "twice")
    assert once.keys() == twice.keys()
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    with pytest.raises(SystemExit, match=r"a4\.8 activations, not int8"):
        run(script, root / "twice", "--resume")


def saving_once(save: Any, stop: int) -> Any:
    """`save`, and then an interruption after step `stop`."""

    def replacement(self: Any, path: Path) -> None:
        save(self, path)
        if self.step == stop:
            raise KeyboardInterrupt

    return replacement


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("int8", {}), ("a4.8", {"activation_type": "a4.8", "top_k": 0.5}), ("a4.8-fp4", {"activation_type": "a4.8-fp4"})]
    + [(name, {"activation_type": name}) for name in ("v2-a8", "v2-a4")],
)
def test_the_folder_names_the_scheme(script: ModuleType, stage_1: Path, scheme: str, expected: dict[str, object]) -> None:
    out = stage_1.parent.parent / scheme
    run(script, out, "--from", str(stage_1), "--activations", scheme, "--steps", "1")
    quantization = json.loads((out / "hf" / "config.json").read_text())["quantization_config"]
    assert quantization == {"quant_method": "bitnet", "linear_class": "bitlinear", "modules_to_not_convert": None} | expected


def test_the_second_stage_learns(script: ModuleType, stage_1: Path) -> None:
    rows = run(script, stage_1.parent.parent / "second", "--from", str(stage_1), "--activations", "a4.8", "--steps", "40", "--lr", "3e-3")
    assert rows[-1]["heldout_nats"] < rows[0]["heldout_nats"] - 0.5
