"""Qwen2: biases of queries, keys and values, in a GGUF file, in a folder, beside the formulas and beside transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.sequence import Sequence

from .builder import Model, Sizes, f32, random_model, write_model
from .embedding_models import PROJECTIONS, tokenizer_json
from .group_models import write_grouped
from .reference import FLOAT, Activations, assert_agree, forward
from .test_float_activations import relative_rms
from .test_groups import BOUND

Make = Callable[..., Sequence]
IDS = [int(i) for i in np.random.default_rng(6).integers(0, 256, 40)]
OURS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
OURS |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
OURS |= {"ffn_norm": "post_attention_layernorm"}


def with_biases(model: Model, seed: int = 0) -> Model:
    """As Qwen2 has them, and without the norms that it lacks."""
    rng = np.random.default_rng(seed)
    model.norms = {name: value for name, value in model.norms.items() if "sub_norm" not in name and "head_norm" not in name}
    model.norms = {name: value for name, value in model.norms.items() if not name.endswith(("attn_q_norm", "attn_k_norm"))}
    for name, weights in model.ternary.items():
        if name.endswith(("attn_q", "attn_k", "attn_v")):
            model.biases[name] = rng.normal(0, 1, len(weights)).astype(np.float32)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return with_biases(random_model(Sizes(vocab=320), seed=4, activation="silu"))


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_those_of_the_formulas(threads: int, model: Model, tmp_path: Path, text_of: Make) -> None:
    want = forward(model, IDS)
    text = text_of(write_model(tmp_path / "m.gguf", model, arch="qwen2"), threads=threads)
    assert assert_agree(text.feed_all(IDS), want.logits, want.margin) > 12
    text.rewind(0)
    assert_agree(np.stack([text.feed([token]).copy() for token in IDS]), want.logits, want.margin)


@pytest.mark.slow
def test_with_scales_of_groups(tmp_path: Path, text_of: Make) -> None:
    """Rows are shared between threads in other units there."""
    model = with_biases(write_grouped(tmp_path / "a.gguf", TensorType.PQ2_0))
    tensors = {f"{name}.bias": f32(f"{name}.bias", values) for name, values in model.biases.items()}
    heads = {f"blk.{layer}.attn_{name}_norm.weight": None for layer in range(2) for name in "qk"}
    write_grouped(tmp_path / "b.gguf", TensorType.PQ2_0, arch="qwen2", tensors=tensors | heads)
    want = forward(model, IDS, Activations(128))
    assert assert_agree(text_of(tmp_path / "b.gguf", threads=2).feed_all(IDS), want.logits, want.margin) > 5


def test_biases_are_kept_by_quantize(model: Model, tmp_path: Path, text_of: Make) -> None:
    quantize(write_model(tmp_path / "a.gguf", model, arch="qwen2"), tmp_path / "b.gguf", "q2_0", quiet=True)
    one, other = text_of(tmp_path / "a.gguf").feed(IDS).copy(), text_of(tmp_path / "b.gguf").feed(IDS)
    assert np.array_equal(one, other)


def test_biases_that_are_missing_or_elsewhere(model: Model, tmp_path: Path, text_of: Make) -> None:
    path = write_model(tmp_path / "m.gguf", model, arch="qwen2", tensors={"blk.1.attn_v.bias": None})
    with pytest.raises(BadFileError, match=r"missing blk.1.attn_v.bias"):
        text_of(path)
    path = write_model(path, model, arch="qwen2", tensors={"blk.1.attn_output.bias": f32("blk.1.attn_output.bias", np.zeros(128))})
    with pytest.raises(UnsupportedError, match=r"tensor blk.1.attn_output.bias: changes the result"):
        text_of(path)
    path = write_model(path, model, arch="qwen2", tensors={"blk.1.attn_q.bias": np.full(128, np.nan)})
    with pytest.raises(BadFileError, match=r"tensor blk.1.attn_q.bias: holds values that are not finite"):
        text_of(path)


@pytest.fixture
def folder(model: Model, models: ModuleType, tmp_path: Path) -> Path:
    """Dequantised ternary weights."""
    z, home = model.sizes, tmp_path / "hf"
    home.mkdir()
    stored = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norms["output_norm"]}
    for name, weights in [*model.ternary.items(), *model.norms.items()]:
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            value = weights * model.scales[name] if name in model.scales else weights
            stored[f"model.layers.{layer}.{OURS[part]}.weight"] = value.astype(np.float32)
            if name in model.biases:
                stored[f"model.layers.{layer}.{OURS[part]}.bias"] = model.biases[name]
    models.write_safetensors(home / "model.safetensors", {name: ("F32", value) for name, value in stored.items()})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": z.vocab,
        "hidden_size": z.hidden,
        "intermediate_size": z.feed_forward,
        "num_hidden_layers": z.layers,
        "num_attention_heads": z.heads,
        "num_key_value_heads": z.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": z.context,
        "rms_norm_eps": z.eps,
        "rope_theta": z.theta,
        "tie_word_embeddings": True,
        "attention_bias": True,
    }
    (home / "config.json").write_text(json.dumps(config))
    (home / "tokenizer.json").write_text(json.dumps(tokenizer_json(models, "qwen3")))
    return home


def test_a_folder(folder: Path, model: Model, tmp_path: Path) -> None:
    assert len(PROJECTIONS) == 7
    convert(folder, tmp_path / "m.gguf", embedding_type="f32", quiet=True)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["general.architecture"] == "qwen2"
        for name, values in model.biases.items():
            assert file.tensors[f"{name}.bias"].type is TensorType.F32
            np.testing.assert_array_equal(file.raw(f"{name}.bias").view("<f4"), values)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(UnsupportedError, match="attention_bias: biases are not supported"):
        open_checkpoint(folder)


@pytest.mark.live
def test_logits_are_those_of_transformers(folder: Path, model: Model, transformers: ModuleType, tmp_path: Path, text_of: Make) -> None:
    import torch

    convert(folder, tmp_path / "m.gguf", embedding_type="f32", activations="float", quiet=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert relative_rms(text_of(tmp_path / "m.gguf").feed_all(IDS), want) < BOUND
    assert relative_rms(forward(model, IDS, FLOAT).logits, want) < 1e-5
