"""config.json: values that change nothing are accepted, those that would are said, and what it leaves open the tensors decide."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.checkpoint.to_gguf import architecture, model_metadata
from bitnet_cli.errors import BadFileError, UnsupportedError

from .test_config import ABSENT, change

NEUTRAL = {  # values that change nothing, as people's files have them
    "attention_bias": False,
    "mlp_bias": False,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "layer_types": ["full_attention"] * 2,
    "rope_scaling": {"type": "linear", "factor": 1.0},
    "partial_rotary_factor": 1.0,
    "rotary_dim": 64,
    "attention_multiplier": 0.125,
    "logits_scaling": 1,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "scale_depth": 2**0.5,
    "num_experts": 0,
    "no_rope_layers": [1, 1],
    "is_causal": True,
    "use_qk_norm": False,
    "use_sub_norms": True,
    "weight_bits": 1,
    "input_bits": 8,
}


def test_values_that_change_nothing(folder: Path) -> None:
    before = model_metadata(open_checkpoint(folder))
    for key, value in NEUTRAL.items():
        change(folder, **{key: value})
        assert open_checkpoint(folder).config.notes == (), key
    after = model_metadata(open_checkpoint(folder))
    assert after == before
    # A window that reaches over the whole context changes nothing; a shorter one does.
    change(folder, layer_types=["sliding_attention"] * 2, sliding_window=256)
    assert model_metadata(open_checkpoint(folder)) == before
    change(folder, sliding_window=255)
    with pytest.raises(UnsupportedError, match="layer_types: windows of 255 positions are not supported"):
        open_checkpoint(folder)
    change(folder, layer_types=None, use_sliding_window=True, max_window_layers=1)
    with pytest.raises(UnsupportedError, match="use_sliding_window: windows of 255 positions"):
        open_checkpoint(folder)
    change(folder, max_window_layers=2)
    assert model_metadata(open_checkpoint(folder)) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"factor": 2.0}}, ("names no type", "not applied: factor 2.0")),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1.0, "beta_fast": 8}}, ("type linear", "beta_fast 8")),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("begins after 256 tokens",)),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, ("yarn_truncate", "llama.cpp does not")),
    ],
)
def test_what_is_passed_over_is_said(folder: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    change(folder, **changes)
    (note,) = open_checkpoint(folder).config.notes
    assert all(word in note for word in words), note


@pytest.mark.parametrize(
    "section",
    [
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "dynamic", "factor": "2"},
        {"rope_type": "yarn", "factor": -1.0},
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0},
        {"rope_type": "yarn", "factor": 2.0, "truncate": 1},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64.0},
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0},
    ],
)
def test_scalings_that_are_none(folder: Path, section: dict[str, Any]) -> None:
    change(folder, rope_scaling=section)
    with pytest.raises(BadFileError, match="rope_"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["longrope", "su", "proportional", "llama3", "", 3, ["linear"], {}])
def test_scalings_that_are_not_supported(folder: Path, kind: Any) -> None:
    change(folder, rope_parameters={"rope_type": kind, "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
    with pytest.raises(UnsupportedError, match="rope_parameters: RoPE scaling"):
        open_checkpoint(folder)


@pytest.mark.parametrize("key", ["partial_rotary_factor", "rotary_pct"])
@pytest.mark.parametrize("place", [None, "rope_scaling", "rope_parameters"])
def test_part_of_a_head(folder: Path, key: str, place: str | None) -> None:
    change(folder, **({place: {"rope_type": "default", key: 0.25}} if place else {key: 0.25}))
    with pytest.raises(UnsupportedError, match=rf"{key}: 0\.25 is not supported; only 1\.0 is"):
        open_checkpoint(folder)


def test_a_head_that_is_not_there(folder: Path, models: ModuleType) -> None:
    """Without tie_word_embeddings the tensors say; false is believed, since a shard may be missing."""
    for value in (ABSENT, None):
        change(folder, tie_word_embeddings=value)
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config.tied is True and "output" not in checkpoint.dense
        assert "lm_head.weight is not here" in checkpoint.config.notes[0]
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    head = ("BF16", models.to_bf16(np.full((320, 256), 2, np.float32)))
    models.write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": head})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tied is False and "output" in checkpoint.dense and checkpoint.config.notes == ()


@pytest.mark.parametrize(("activation", "arch"), [("relu2", "bitnet-b1.58"), ("silu", "llama")])
@pytest.mark.parametrize("said", [False, ABSENT])
def test_no_sub_norms(models: ModuleType, tmp_path: Path, activation: str, arch: str, said: Any) -> None:
    folder = models.write_folder(tmp_path, "C_packed")
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    models.write_safetensors(folder / "model.safetensors", {k: v for k, v in tensors.items() if "sub_norm" not in k})
    change(folder, hidden_act=activation, use_sub_norms=True)
    with pytest.raises(BadFileError, match=r"missing: model\.layers\.0\.self_attn\.attn_sub_norm\.weight"):
        open_checkpoint(folder)
    change(folder, use_sub_norms=said)
    checkpoint = open_checkpoint(folder)
    assert architecture(checkpoint) == arch and not any("sub_norm" in name for name in checkpoint.order)
    assert model_metadata(checkpoint).get(f"{arch}.use_sub_norms", True) is (arch == "llama")
    assert len(checkpoint.config.notes) == (said is ABSENT)
    # One that is missing in one layer only is damage.
    missing = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.ffn_sub_norm.weight"}
    models.write_safetensors(folder / "model.safetensors", missing)
    change(folder, use_sub_norms=ABSENT)
    with pytest.raises(BadFileError, match=r"missing: model\.layers\.1\.mlp\.ffn_sub_norm\.weight"):
        open_checkpoint(folder)
