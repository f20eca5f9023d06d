"""config.json: both generations of its keys, ranges, and what is refused by name (faults 10, 11, 18 and 28)."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.checkpoint.to_gguf import architecture, model_metadata, model_tensors
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.types import TensorType

ABSENT = object()


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ABSENT}))


def test_metadata(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert architecture(checkpoint) == "bitnet-b1.58"
    assert model_metadata(checkpoint) == {
        "general.name": "model",
        "general.file_type": 40,
        "general.quantization_version": 2,
        "bitnet-b1.58.vocab_size": 320,
        "bitnet-b1.58.context_length": 256,
        "bitnet-b1.58.embedding_length": 256,
        "bitnet-b1.58.block_count": 2,
        "bitnet-b1.58.feed_forward_length": 640,
        "bitnet-b1.58.attention.head_count": 4,
        "bitnet-b1.58.attention.head_count_kv": 2,
        "bitnet-b1.58.attention.key_length": 64,
        "bitnet-b1.58.attention.value_length": 64,
        "bitnet-b1.58.attention.layer_norm_rms_epsilon": 1e-5,
        "bitnet-b1.58.rope.dimension_count": 64,
        "bitnet-b1.58.rope.freq_base": 500000.0,
        "bitnet-b1.58.hidden_activation": "relu2",
    }


def test_silu_is_the_other_architecture(folder: Path) -> None:
    change(folder, hidden_act="silu")
    metadata = model_metadata(open_checkpoint(folder))
    assert metadata["bitnet.hidden_activation"] == "silu" and "bitnet.block_count" in metadata


def test_an_activation_by_another_name(folder: Path) -> None:
    change(folder, hidden_act="swish")
    assert open_checkpoint(folder).config.activation == "silu"


def test_rope_theta_in_both_places(folder: Path) -> None:
    change(folder, rope_theta=10000.0)  # rope_parameters, of transformers 5, has 500000
    assert open_checkpoint(folder).config.rope.theta == 500000.0
    change(folder, rope_parameters=ABSENT)
    assert open_checkpoint(folder).config.rope.theta == 10000.0
    change(folder, rope_theta=ABSENT)
    assert open_checkpoint(folder).config.rope.theta == 500000.0  # the family's


def test_tensors_and_their_order(folder: Path) -> None:
    tensors = model_tensors(open_checkpoint(folder), TensorType.F16)
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_sub_norm", "attn_output"]
    layer += ["ffn_norm", "ffn_gate", "ffn_up", "ffn_sub_norm", "ffn_down"]
    names = ["token_embd", *(f"blk.{n}.{name}" for n in (0, 1) for name in layer), "output_norm"]
    assert [t.name for t in tensors] == [f"{name}.weight" for name in names]
    kinds = {t.name.split(".")[-2]: (t.type, t.shape) for t in tensors}
    assert kinds["token_embd"] == (TensorType.F16, (320, 256))
    assert kinds["attn_k"] == (TensorType.I2_S, (128, 256))
    assert kinds["ffn_down"] == (TensorType.I2_S, (256, 640))
    assert kinds["ffn_sub_norm"] == (TensorType.F32, (640,))


def test_untied_head(folder: Path, models: ModuleType) -> None:
    change(folder, tie_word_embeddings=False)
    with pytest.raises(BadFileError, match=r"missing: lm_head\.weight"):
        open_checkpoint(folder)
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    head = models.to_bf16(np.full((320, 256), 2, np.float32))
    models.write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": ("BF16", head)})
    outputs = model_tensors(open_checkpoint(folder), TensorType.Q8_0)
    assert (outputs[-1].name, outputs[-1].type) == ("output.weight", TensorType.Q8_0)
    # A tied model may carry a copy of its embedding; it is not written.
    change(folder, tie_word_embeddings=True)
    assert outputs[-1].name not in [t.name for t in model_tensors(open_checkpoint(folder), TensorType.F16)]


def test_own_code_is_never_run_but_does_not_matter_for_a_known_architecture(folder: Path) -> None:
    """Microsoft's published config.json names files of code that its repository does not have."""
    change(folder, auto_map={"AutoConfig": "configuration_bitnet.BitNetConfig"})
    assert open_checkpoint(folder).config.layers == 2
    change(folder, architectures=["OwnForCausalLM"], model_type="own")
    with pytest.raises(UnsupportedError, match=r"OwnForCausalLM.*supported: BitNetForCausalLM, BitnetForCausalLM.*never run"):
        open_checkpoint(folder)


BAD = {  # config change -> message
    "hidden_size": [
        (0, "expected an integer from 1"),
        (256.0, "256.0, expected an integer"),
        (True, "expected an integer"),
        ("256", "'256'"),
    ],
    "num_hidden_layers": [(0, "expected an integer"), (10**9, "expected an integer"), (3, "missing: model.layers.2."), (ABSENT, "missing")],
    "num_attention_heads": [
        (12, "12 does not divide hidden_size 256"),
        (3, "2 does not divide num_attention_heads 3"),
        (0, "expected an integer"),
        (-4, "expected an integer"),
    ],
    "num_key_value_heads": [(3, "3 does not divide num_attention_heads 4"), (8, "8 does not divide"), (1, "k_proj.weight: U8")],
    "head_dim": [(63, "expected an even number"), (128, "q_proj.weight: U8")],
    "intermediate_size": [(512, "gate_proj.weight: U8"), (2**40, "expected an integer")],
    "vocab_size": [(321, "shape [320, 256], expected [321, 256]"), (0, "expected an integer")],
    "rms_norm_eps": [(0, "expected a number"), (-1.0, "expected a number"), ("1e-5", "expected a number"), (10**400, "expected a number")],
    "rope_parameters": [([], "expected an object"), ({"rope_theta": 0}, "rope_theta: 0, expected a number")],
    "tie_word_embeddings": [("yes", "expected true or false")],
    "max_position_embeddings": [(-1, "expected an integer")],
    "bos_token_id": [(320, "expected token ids below 320"), ("0", "expected token ids"), ([0.5], "expected token ids")],
    "quantization_config": [([], "expected an object"), (ABSENT, "multiply or divide by it?")],
}


@pytest.mark.parametrize(("key", "value", "message"), [(k, v, m) for k, cases in BAD.items() for v, m in cases])
def test_bad_values(folder: Path, key: str, value: Any, message: str) -> None:
    change(folder, **{key: value})
    with pytest.raises(BadFileError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


UNSUPPORTED = {
    "hidden_act": ("gelu", "hidden_act: 'gelu' is not supported; relu2 and silu are"),
    "hidden_activation": (["silu"], r"hidden_act: \['silu'\] is not supported; relu2 and silu are"),
    "attention_bias": (True, "attention_bias: biases are not supported"),
    "rope_scaling": ({"type": "longrope", "factor": 4}, "rope_scaling: RoPE scaling 'longrope' is not supported"),
    "partial_rotary_factor": (0.5, r"partial_rotary_factor: 0\.5 is not supported; only 1\.0 is"),
    "final_logit_softcapping": (30.0, r"final_logit_softcapping: 30\.0 is not supported; 0 is"),
    "residual_multiplier": (0.22, r"residual_multiplier: 0\.22 is not supported; 1 is"),
    "num_local_experts": (8, "num_local_experts: 8 is not supported; 0 is"),
    "no_rope_layers": ([1, 0], r"no_rope_layers: \[1, 0\] is not supported; 1 is"),
    "rotary_dim": (32, "rotary_dim: 32 is not supported; 64 is"),
    "use_qk_norm": (True, "use_qk_norm: True is not supported; 0 is"),
    "use_sub_norms": (False, "use_sub_norms: false, but .*attn_sub_norm.weight is here"),
    "rope_parameters": ({"rope_type": "llama3", "rope_theta": 1e6}, "rope_parameters: RoPE scaling 'llama3' is not supported"),
    "architectures": (["MistralForCausalLM"], "supported: BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM"),
    "input_bits": (4, "input_bits: 4 is not supported; 8 is"),
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_values(folder: Path, key: str) -> None:
    value, message = UNSUPPORTED[key]
    change(folder, **{key: value})
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method: 'gptq' is not supported; bitnet is"),
        ({"linear_class": "other"}, "linear_class: 'other'"),
        ({"quantization_mode": "half"}, "quantization_mode: 'half'"),
        ({"use_rms_norm": True}, "use_rms_norm: norms inside projections are not supported"),
        ({"modules_to_not_convert": ["(a+)+$"]}, "is not a plain module name"),
    ],
)
def test_unsupported_quantization(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder, quantization_config={"quant_method": "bitnet"} | changes)
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


def test_quantization_that_contradicts_the_tensors(models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "a", "E_master")
    change(folder, quantization_config={"quant_method": "bitnet"})
    with pytest.raises(BadFileError, match=r"says packed weights, but .*q_proj.weight_scale is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "error", "message"),
    [
        ("model.layers.0.self_attn.q_proj.bias", ("F32", np.zeros(256, np.float32)), UnsupportedError, "biases are not supported"),
        ("model.layers.0.self_attn.q_proj.rms_norm.weight", ("F32", np.zeros(256, np.float32)), UnsupportedError, "norms inside"),
        ("model.layers.2.input_layernorm.weight", ("F32", np.zeros(256, np.float32)), UnsupportedError, "not a tensor of this model"),
        (
            "model.layers.1.self_attn.q_proj.weight",
            ("F32", np.zeros((256, 256), np.float32)),
            BadFileError,
            r"F32 \[256, 256\], expected U8",
        ),
        (
            "model.layers.1.self_attn.q_proj.weight",
            ("U8", np.zeros((32, 256), np.uint8)),
            BadFileError,
            r"U8 \[32, 256\], expected U8 \[64",
        ),
        ("model.layers.1.self_attn.q_proj.weight", ("I64", np.zeros((64, 256), np.int64)), UnsupportedError, "dtype I64 is not read"),
        ("model.layers.1.self_attn.q_proj.weight_scale", None, BadFileError, "q_proj.weight_scale: missing"),
        ("model.layers.1.self_attn.q_proj.weight_scale", ("U8", np.ones(1, np.uint8)), BadFileError, "dtype U8, expected a float"),
        ("model.layers.1.self_attn.q_proj.weight", None, BadFileError, "missing: model.layers.1.self_attn.q_proj.weight"),
        ("model.norm.weight", ("F32", np.zeros((1, 256), np.float32)), BadFileError, r"shape \[1, 256\], expected \[256\]"),
        ("model.norm.weight", ("U8", np.zeros(256, np.uint8)), BadFileError, "dtype U8, expected a float"),
        ("model.embed_tokens.weight", ("U8", np.zeros((80, 256), np.uint8)), UnsupportedError, "ternary head or embedding"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, models: ModuleType, name: str, tensor: Any, error: type[Exception], message: str) -> None:
    tensors = models.tensors_of("C_packed", models.masters(models.Shape())) | {name: tensor}
    models.write_safetensors(folder / "model.safetensors", {k: v for k, v in tensors.items() if v is not None})
    with pytest.raises(error, match=message):
        for output in model_tensors(open_checkpoint(folder), TensorType.F16):
            output.produce()


def test_missing_tensors_are_listed_but_not_all(folder: Path, models: ModuleType) -> None:
    change(folder, num_hidden_layers=4)
    with pytest.raises(BadFileError, match=r"missing: model\.layers\.2\..* and 17 more") as caught:
        open_checkpoint(folder)
    assert str(caught.value).count("model.layers.") == 5


@pytest.mark.parametrize(("hidden", "kind"), [(64, TensorType.Q2_0), (192, TensorType.Q2_0), (96, TensorType.F16), (384, TensorType.I2_S)])
def test_rows_that_i2_s_cannot_pack(models: ModuleType, tmp_path: Path, hidden: int, kind: TensorType) -> None:
    """Each tensor gets the type that holds it to the bit; the down projection's rows are 640 wide in all."""
    folder = models.write_folder(tmp_path, "C_packed", models.Shape(hidden=hidden, heads=4, kv_heads=4))
    kinds = {t.name.removeprefix("blk.0."): t.type for t in model_tensors(open_checkpoint(folder), TensorType.F16)}
    assert kinds["attn_q.weight"] is kinds["ffn_up.weight"] is kind and kinds["ffn_down.weight"] is TensorType.I2_S
    assert ("attn_q.scale" in kinds) == (kind is not TensorType.I2_S) and "ffn_down.scale" not in kinds


@pytest.mark.parametrize("tied", [True, False])
def test_ternary_head(models: ModuleType, tmp_path: Path, tied: bool) -> None:
    """A list in modules_to_not_convert is the whole list: without lm_head in it, transformers makes the head ternary too, tied or not."""
    folder = models.write_folder(tmp_path, "A_online")
    tensors = models.tensors_of("A_online", models.masters(models.Shape()))
    head = ("BF16", models.to_bf16(np.ones((320, 256), np.float32)))
    models.write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": head})
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    for skipped in ([], ["k_proj"]):
        change(folder, tie_word_embeddings=tied, quantization_config=section | {"modules_to_not_convert": skipped})
        with pytest.raises(UnsupportedError, match="ternary head"):
            open_checkpoint(folder)
    for skipped in (None, ["lm_head"]):
        change(folder, quantization_config=section | {"modules_to_not_convert": skipped})
        assert ("output" in open_checkpoint(folder).dense) is not tied


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"a": "' + "x" * (5 << 20) + '"}', "at most 4194304 are expected"),
    ],
)
def test_config_that_is_no_config(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(BadFileError, match=message):
        open_checkpoint(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file.gguf").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        open_checkpoint(tmp_path / "file.gguf")
    (tmp_path / "pytorch_model.bin").write_text("x")
    with pytest.raises(UnsupportedError, match="pickle is never loaded"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
