"""Scaled rotations: what config.json says, through the file, to the tables of cos and sin that the kernels read.

The formulas here are written out again from arXiv 2309.00071; beside them stand transformers' own classes, over random sections.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.convert import convert
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.config import ARCHITECTURES, read_config
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import rope_tables

from . import embedding_models
from .builder import Sizes, random_model, write_model
from .families import model_of, write
from .reference import assert_agree, forward
from .test_oracle import compare, hf_of, oracle_of, prompts

Floats = NDArray[np.float32]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SECTIONS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "no type": {"factor": 2.0},
    "linear 1": {"rope_type": "linear", "factor": 1.0},
    "linear": {"type": "linear", "factor": 2.5},
    "linear, an integer": {"rope_type": "linear", "factor": 8},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "yarn 1": YARN | {"factor": 1.0},
    "yarn, the whole context": {"rope_type": "yarn", "factor": 2.0},
    "yarn, turns": YARN | {"beta_fast": 8, "beta_slow": 0.5},
    "yarn, no turns": YARN | {"beta_fast": None, "beta_slow": 0},
    "yarn, not truncated": YARN | {"truncate": False, "factor": 3.7},
    "yarn, an amplitude": YARN | {"attention_factor": 0.75},
    "yarn, DeepSeek's amplitude": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, half of DeepSeek's": YARN | {"mscale": 0.7},
    "yarn, nothing between": YARN | {"original_max_position_embeddings": 4, "factor": 40.0},
}


def tables(path: Path, count: int = 200) -> tuple[Floats, Floats]:
    with open_gguf(path) as file:
        return rope_tables(file, read_config(file), count)


def expected(section: dict[str, Any], head_dim: int, theta: float, context: int, count: int = 200) -> tuple[Floats, Floats]:
    """In float64."""
    kind = section.get("rope_type", section.get("type"))
    frequency, amplitude = theta ** (-np.arange(0, head_dim, 2) / head_dim), 1.0
    if kind == "linear":
        frequency = frequency / section["factor"]
    if kind == "yarn":
        factor, trained = section["factor"], section.get("original_max_position_embeddings", context)
        ends = [
            head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (section.get("beta_fast") or 32, section.get("beta_slow") or 1)
        ]
        if section.get("truncate", True):
            ends = [math.floor(ends[0]), math.ceil(ends[1])]
        low, high = max(ends[0], 0), min(ends[1], head_dim - 1)
        slow = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0, 1)
        frequency = frequency * (1 - slow) + frequency / factor * slow
        m, n = section.get("mscale"), section.get("mscale_all_dim")
        usual = [0.1 * scale * math.log(factor) + 1 for scale in (m or 1, n or 1)]
        amplitude = section.get("attention_factor") or (usual[0] / usual[1] if m and n else 0.1 * math.log(factor) + 1)
    angle = np.arange(count)[:, None] * frequency
    return (np.cos(angle) * amplitude).astype(np.float32), (np.sin(angle) * amplitude).astype(np.float32)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", SECTIONS)
def test_tables_are_those_of_the_formulas(name: str, place: str, models: ModuleType, tmp_path: Path) -> None:
    section = SECTIONS[name]
    places = {"rope_parameters": None, "rope_theta": 5000.0} | {place: section}
    folder = write(models, tmp_path / "hf", "llama", "C_packed", **places)
    convert(folder, tmp_path / "m.gguf", quiet=True)
    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    got, want = tables(tmp_path / "m.gguf"), expected(section, head_dim, 5000.0, config["max_position_embeddings"])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)  # of an angle of 200 radians, float32 has 1.5e-5


@pytest.mark.live
@pytest.mark.parametrize("name", SECTIONS)
def test_tables_are_those_of_transformers(name: str, models: ModuleType, transformers: ModuleType, tmp_path: Path) -> None:
    import torch

    folder = write(models, tmp_path / "hf", "llama", "C_packed", rope_parameters=None, rope_theta=5000.0, rope_scaling=SECTIONS[name])
    convert(folder, tmp_path / "m.gguf", quiet=True)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(folder))
    for got, want in zip(tables(tmp_path / "m.gguf"), rotary(torch.zeros(1), torch.arange(200)[None]), strict=True):
        np.testing.assert_allclose(got, want[0, :, : got.shape[1]].numpy(), atol=1.6e-5)


GEMMA3 = {"rope_type": "linear", "factor": 8.0}  # as published ones of 4B and more have it, for the layers without a window
NESTED = {"full_attention": GEMMA3 | {"rope_theta": 5e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}
LONG = YARN | {"original_max_position_embeddings": 128}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3, transformers 4": ("gemma3", {"rope_scaling": GEMMA3}),
    "gemma3, transformers 5": ("gemma3", {"rope_parameters": NESTED, "rope_theta": None, "rope_local_base_freq": None}),
    "gemma3, yarn": ("gemma3", {"rope_scaling": LONG | {"truncate": False}}),
    "qwen3, as Bonsai": ("qwen3", {"rope_scaling": LONG}),
    "qwen3, beside the section": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 128}),
}


@pytest.mark.live
@pytest.mark.parametrize("name", SMALL)
def test_tables_of_other_families_are_those_of_transformers(
    name: str, models: ModuleType, transformers: ModuleType, tmp_path: Path
) -> None:
    import torch

    kind, changes = SMALL[name]
    folder = embedding_models.write_folder(models, tmp_path / "hf", kind, **changes)
    convert(folder, tmp_path / "m.gguf", quiet=True)
    config, theirs, where = transformers.AutoConfig.from_pretrained(folder), transformers.models, torch.arange(200)[None]
    with open_gguf(tmp_path / "m.gguf") as file:
        cos, sin = rope_tables(file, read_config(file), 200)
    if kind == "qwen3":
        found = [theirs.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)(torch.zeros(1), where)]
    else:
        rotary = theirs.gemma3.modeling_gemma3.Gemma3RotaryEmbedding(config)
        found = [rotary(torch.zeros(1), where, layer) for layer in ("full_attention", "sliding_attention")]
    for got, want in ((cos, [pair[0] for pair in found]), (sin, [pair[1] for pair in found])):
        np.testing.assert_allclose(got, torch.cat(want, 1)[0, :, : got.shape[1]].numpy(), atol=1.6e-5)


LOGITS: dict[str, dict[str, Any]] = {
    "llama": YARN,
    "bitnet": YARN | {"attention_factor": 0.8},
    "1bitllm": {"rope_type": "linear", "factor": 3.0},
}


@pytest.fixture(scope="module", params=LOGITS)
def scaled(request: pytest.FixtureRequest, models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Folder, converted file, and the model of its formulas."""
    base, kind, section = tmp_path_factory.mktemp("scaled"), request.param, LOGITS[request.param]
    flavour = "E_master" if kind == "1bitllm" else "C_packed"
    model = model_of(models, kind)
    z = model.sizes
    folder = write(models, base / "hf", kind, flavour, rope_parameters=None, rope_theta=z.theta, rope_scaling=section)
    convert(folder, base / "m.gguf", quiet=True)
    cos, sin = expected(section, z.head_dim, z.theta, z.context, 2)
    model.rope_amplitude = float(np.hypot(cos[0, 0], sin[0, 0]))
    plain = z.theta ** (-np.arange(0, z.head_dim, 2) / z.head_dim)
    model.rope_factors = plain / np.arctan2(sin[1].astype(np.float64), cos[1])
    return folder, base / "m.gguf", model


def test_logits_are_those_of_the_formulas(scaled: tuple[Path, Path, Any], text_of: Callable[..., Sequence]) -> None:
    _, path, model = scaled
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 282, 40)]
    want = forward(model, ids)
    assert assert_agree(text_of(path).feed_all(ids), want.logits, want.margin) > 8


@pytest.mark.live
def test_logits_are_those_of_transformers(
    scaled: tuple[Path, Path, Any], transformers: ModuleType, text_of: Callable[..., Sequence]
) -> None:
    import torch

    folder, path, model = scaled
    if "BitnetForCausalLM" in (folder / "config.json").read_text():  # 1bitLLM's is not in transformers; BitNet's gets its weights
        reference = hf_of(transformers, model, LOGITS["1bitllm"])
    else:
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = prompts(282)
    assert compare(text_of(path), model, oracle_of(transformers, reference), texts) > 0.4 * sum(map(len, texts))


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_bitnet_without_sub_norms(activation: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """ReLU² as `bitnet-b1.58` with a key, SiLU as `llama`, with its rows in the other order."""
    folder = write(models, tmp_path / "hf", "bitnet", "C_packed", hidden_act=activation, use_sub_norms=False)
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    models.write_safetensors(folder / "model.safetensors", {k: v for k, v in tensors.items() if "sub_norm" not in k})
    convert(folder, tmp_path / "m.gguf", quiet=True)
    model = model_of(models, "bitnet")
    model.activation = activation
    model.norms = {name: value for name, value in model.norms.items() if "sub_norm" not in name}
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 282, 40)]
    want, text = forward(model, ids), text_of(tmp_path / "m.gguf")
    assert assert_agree(text.feed_all(ids), want.logits, want.margin) > 8
    text.rewind(0)
    assert_agree(np.stack([text.feed([token]).copy() for token in ids]), want.logits, want.margin)


@pytest.mark.slow
def test_half_of_a_head_rotates(tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    model = random_model(seed=5)
    model.rotated = 12
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 256, 40)]
    want, text = forward(model, ids), text_of(write_model(tmp_path / "m.gguf", model))
    assert assert_agree(text.feed_all(ids), want.logits, want.margin) > 12
    text.rewind(0)
    assert_agree(np.stack([text.feed([token]).copy() for token in ids]), want.logits, want.margin)


def test_layers_without_rotations(tmp_path: Path, text_of: Callable[..., Sequence], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a value of an architecture whose other layers see a window; no architecture here has it yet."""
    kind = replace(ARCHITECTURES["bitnet"], windows=True, global_rope=False)
    monkeypatch.setitem(ARCHITECTURES, "bitnet", kind)
    model = random_model(Sizes(layers=3), seed=5, activation="silu")
    model.windows, model.window_theta, model.still = {0: 9, 2: 9}, 500.0, frozenset({1})
    keys = {"attention.sliding_window": 9, "attention.sliding_window_pattern": 2, "rope.freq_base_swa": 500.0}
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 256, 40)]
    want, text = forward(model, ids), text_of(write_model(tmp_path / "m.gguf", model, arch="bitnet", metadata=keys))
    assert assert_agree(text.feed_all(ids), want.logits, want.margin) > 12
