"""Fine-tuning to 1.58 bits on a tiny random Llama: the schedule, the layer's arithmetic at both ends, and the folder that comes out.

PyTorch is not among the package's requirements, so all of it runs where the extra `train` is installed.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.flavours import Flavour, read_ternary
from bitnet_cli.checkpoint.safetensors import read_table
from bitnet_cli.ternary.absmean import ternarise

pytestmark = pytest.mark.live
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEXT = "the king said unto the people, and the people heard the king. "


@pytest.fixture
def scripts(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/finetune.py. It imports its neighbours, as it does when it is run."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    reason = "PyTorch and transformers are not installed (extra `train`)"
    pytest.importorskip("torch", reason=reason).set_num_threads(1)
    for name in ("transformers", "accelerate", "safetensors"):
        pytest.importorskip(name, reason=reason)
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    return importlib.import_module("finetune")


@pytest.fixture
def source(scripts: ModuleType, tmp_path: Path) -> Path:
    """A folder of a random LlamaForCausalLM with a tied head, a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=257, num_hidden_layers=2, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=0, **sizes)
    folder = tmp_path / "source"
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text.txt").write_text(TEXT * 100)
    return folder


def tune(scripts: ModuleType, source: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of log.jsonl after a run of a few steps."""
    text = str(source.parent / "text.txt")
    given = [str(source), "--out", str(out), "--train", text, "--heldout", text, "--length", "32", "--windows", "8", "--threads", "1"]
    scripts.main([*given, *options])
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_lambda_rises_linearly(scripts: ModuleType) -> None:
    from bit_linear import mix_at

    assert [mix_at(progress, 0.25) for progress in (0, 0.125, 0.25, 0.9, 1)] == [0, 0.5, 1, 1, 1]
    assert mix_at(0.0, 0.0) == 1  # without a warm-up the first step is ternary


def test_layer_at_both_ends(scripts: ModuleType) -> None:
    """lambda 0: the float layer. lambda 1: int8 codes times ternary values, in integers, as the packed folder says."""
    import torch
    from bit_linear import BitLinear

    torch.manual_seed(1)
    weight, x, mix = torch.nn.Parameter(torch.randn(24, 96)), torch.randn(5, 96), torch.zeros(())
    layer = BitLinear(weight, mix, torch.float32)
    assert torch.allclose(layer(x), x @ weight.T, rtol=0, atol=1e-4)
    mix.fill_(1.0)
    values, scale = ternarise(weight.detach().numpy())
    factor = 127 / np.abs(x.numpy()).max(1, keepdims=True)
    sums = np.rint(x.numpy() * factor).astype(np.int64) @ values.astype(np.int64).T
    assert np.allclose(layer(x).detach().numpy(), sums * (scale / factor), rtol=1e-6, atol=0)
    layer.dtype = torch.bfloat16  # inputs stay exact, sums are rounded to 8 bits
    assert np.allclose(layer(x).detach().numpy(), sums * (scale / factor), rtol=2**-8, atol=0)


def test_gradients_pass_the_rounding(scripts: ModuleType) -> None:
    """Straight-through: at lambda 0 those of a float layer, at lambda 1 those of a float layer with the quantised operands."""
    import torch
    from activation_schemes import int8_per_token
    from bit_linear import BitLinear
    from bitnet_torch import ternary

    torch.manual_seed(2)
    for amount in (0.0, 1.0):
        weight, x = torch.nn.Parameter(torch.randn(8, 32)), torch.randn(3, 32, requires_grad=True)
        BitLinear(weight, torch.tensor(amount), torch.float32)(x).square().sum().backward()
        codes, factor = int8_per_token(x.detach())
        values, scale = ternary(weight.detach())
        inputs, matrix = (codes / factor, values * scale) if amount else (x.detach(), weight.detach())
        grad = 2 * inputs @ matrix.T
        assert x.grad is not None
        assert weight.grad is not None
        assert torch.allclose(x.grad, grad @ matrix, rtol=1e-4, atol=1e-4)
        assert torch.allclose(weight.grad, grad.T @ inputs, rtol=1e-4, atol=1e-3)


def test_distillation_loss(scripts: ModuleType) -> None:
    """Against the definition; equal logits leave the cross entropy's share alone."""
    import torch

    torch.manual_seed(3)
    ours, goal, targets = torch.randn(6, 11), torch.randn(6, 11), torch.randint(0, 11, (6,))
    entropy = torch.nn.functional.cross_entropy(ours, targets)
    p, q = (goal / 2).softmax(-1), (ours / 2).softmax(-1)
    expected = 0.75 * entropy + 0.25 * 4 * (p * (p / q).log()).sum(-1).mean()
    assert torch.allclose(scripts.distillation_loss(ours, goal, targets, 0.25, 2.0), expected)
    assert torch.allclose(scripts.distillation_loss(ours, ours, targets, 0.25, 2.0), 0.75 * entropy)
    assert torch.equal(scripts.distillation_loss(ours, None, targets, 0.25, 2.0), entropy)


def test_windows_are_spread(scripts: ModuleType) -> None:
    import torch

    ids = torch.arange(101)
    assert scripts.spread_windows(ids, 10, 0).shape == (10, 11)
    assert scripts.spread_windows(ids, 10, 5)[:, 0].tolist() == [0, 20, 40, 60, 80]


def test_the_folder_that_comes_out(scripts: ModuleType, source: Path, tmp_path: Path) -> None:
    """Packed weights are absmean of the masters; transformers loads the folder and has the perplexity of the log."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = tune(scripts, source, tmp_path / "out", "--steps", "40", "--lr", "3e-3", "--evaluate-every", "20")
    assert [row["what"].split(":")[0] for row in rows] == ["before", "abrupt", "training", "after", "after"]
    assert [row["lambda"] for row in rows] == [0, 1, 1, 1, 1]
    assert rows[-1]["perplexity"] < 0.5 * rows[0]["perplexity"]
    assert rows[-1]["tokens"] == 40 * 4 * 32
    packed, masters = (read_table(tmp_path / "out" / name) for name in ("packed/model.safetensors", "checkpoint.safetensors"))
    for name, weight in masters.items():
        if name.startswith("model.") and name.split(".")[-2] in PROJECTIONS:
            values, scale = ternarise(weight.float32())
            found = read_ternary(packed[name], packed[f"{name}_scale"], weight.shape, Flavour.PACKED_DIVIDE)
            assert np.array_equal(found.values(), values)
            assert abs(found.scale / scale - 1) < 1e-6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "packed")
    assert tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "packed", dtype=torch.float32)
    windows = scripts.spread_windows(scripts.tokens_of([tmp_path / "text.txt"], tokenizer), 32, 8)
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.flatten(0, 1)
    nats = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
    assert abs(nats.item() - rows[-1]["nats"]) < 2e-3  # the embedding became float16


def test_resuming_gives_the_same_model(scripts: ModuleType, source: Path, tmp_path: Path) -> None:
    """Twelve steps at once, or six, a checkpoint and six: the same batches, schedule and moments."""
    tune(scripts, source, tmp_path / "once", "--steps", "12")
    given = [str(source), "--out", str(tmp_path / "twice"), "--length", "32", "--threads", "1", "--steps", "12"]
    args = scripts.arguments(given)
    ids = scripts.tokens_of([tmp_path / "text.txt"], scripts.AutoTokenizer.from_pretrained(source))
    (tmp_path / "twice").mkdir()
    run = scripts.Tuning(args)
    for _ in range(6):
        run.schedule(run.step / args.steps)
        run.update(scripts.batch_of(ids, args, run.step))
    run.save(tmp_path / "twice" / "checkpoint.safetensors")
    tune(scripts, source, tmp_path / "twice", "--steps", "12", "--resume")
    once, twice = (read_table(tmp_path / name / "checkpoint.safetensors") for name in ("once", "twice"))
    assert all(np.array_equal(once[name].stored(), twice[name].stored()) for name in once)
