"""What differs between model families, as data: one row a family, one table of tensor names a naming scheme.

Names on the left are a checkpoint's (inside `model.layers.N.` for a layer), on the right GGUF's (inside `blk.N.`).
"""

from dataclasses import dataclass

from bitnet_cli.layer_table import ORDER, PROJECTIONS

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


_QWEN2 = _LAYER | {f"self_attn.{name}_proj.bias": f"attn_{name}.bias" for name in "qkv"}
_QWEN3 = _LAYER | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA3 = _QWEN3 | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# Norms of the input of each projection, in every one or in none: BitNet embedding models
# (microsoft/BitNet, docs/bitnet-embeddings-i2s-guide.md, section 3.2).
INPUT_NORMS = {f"{source}.norm": f"{target}_norm_in" for source, target in _LAYER.items() if target in PROJECTIONS}


@dataclass(frozen=True)
class Family:
    """`layer` is in the order in which a layer computes, and in which the file is written."""

    architecture: str  # in config.json
    layer: dict[str, str]
    activation: str  # where config.json has none
    rope_theta: float  # where config.json has none
    float_is_master: bool  # float weights without quantization_config are BitNet master weights
    gguf: dict[str, str]  # activation -> general.architecture; an activation that is not here is not supported
    norm_eps: float = 1e-5  # where config.json has none
    base: bool = False  # without a head, and so a model for embeddings; tensor names may lack `model.`
    input_norms: bool = False  # may have INPUT_NORMS, and then float weights are BitNet master weights: nothing else has such norms
    unit_norms: bool = False  # norms are stored as their distance from 1; INPUT_NORMS are not
    windows: bool = False  # some layers see a window of positions (windows.py)
    pairs: bool = False  # the GGUF architecture rotates neighbours, so q and k rows change places (to_gguf.py)


def _in_compute_order(layer: dict[str, str]) -> dict[str, str]:
    return dict(sorted(layer.items(), key=lambda item: ORDER[item[1]]))


def with_input_norms(layer: dict[str, str]) -> dict[str, str]:
    """The table of a layer that has INPUT_NORMS too."""
    return _in_compute_order(layer | INPUT_NORMS)


BITNET = {"relu2": "bitnet-b1.58", "silu": "bitnet"}

FAMILIES = {
    family.architecture: family
    for family in (
        # transformers' models/bitnet: microsoft/bitnet-b1.58-2B-4T
        Family(
            "BitNetForCausalLM",
            _in_compute_order(_LAYER | {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}),
            activation="relu2",
            rope_theta=500000.0,
            float_is_master=False,
            gguf=BITNET,
        ),
        # 1bitLLM/bitnet_b1_58-*: the first open reproduction, published as float master weights
        Family(
            "BitnetForCausalLM",
            _in_compute_order(_LAYER | {"self_attn.inner_attn_ln": "attn_sub_norm", "mlp.ffn_layernorm": "ffn_sub_norm"}),
            activation="silu",
            rope_theta=10000.0,
            float_is_master=True,
            gguf=BITNET,
            norm_eps=1e-6,
        ),
        # HF1BitLLM/Llama3-8B-1.58-*, tiiuae/Falcon3-*-1.58bit, tiiuae/Falcon-E-*, SpectraSuite/TriLM_*
        Family(
            "LlamaForCausalLM",
            _in_compute_order(_LAYER),
            activation="silu",
            rope_theta=10000.0,
            float_is_master=False,
            gguf={"silu": "llama"},
            norm_eps=1e-6,
            pairs=True,
        ),
        # the decoder of VibeVoice-ASR, and any ternary Qwen2
        Family(
            "Qwen2ForCausalLM",
            _in_compute_order(_QWEN2),
            activation="silu",
            rope_theta=10000.0,
            float_is_master=False,
            gguf={"silu": "qwen2"},
            norm_eps=1e-6,
        ),
        # microsoft/bitnet-embedding-0.6b, and with a head any ternary Qwen3
        *(
            Family(
                name,
                _in_compute_order(_QWEN3),
                activation="silu",
                rope_theta=10000.0,
                float_is_master=False,
                gguf={"silu": "qwen3"},
                norm_eps=1e-6,
                base=name == "Qwen3Model",
                input_norms=True,
            )
            for name in ("Qwen3Model", "Qwen3ForCausalLM")
        ),
        # microsoft/bitnet-embedding-270m, and with a head any ternary Gemma3
        *(
            Family(
                name,
                _in_compute_order(_GEMMA3),
                activation="gelu_pytorch_tanh",
                rope_theta=1000000.0,
                float_is_master=False,
                gguf={"gelu_pytorch_tanh": "gemma3"},
                norm_eps=1e-6,
                base=name == "Gemma3TextModel",
                input_norms=True,
                unit_norms=True,
                windows=True,
            )
            for name in ("Gemma3TextModel", "Gemma3ForCausalLM")
        ),
    )
}

IGNORED = ("rotary_emb.inv_freq",)  # buffers that old files carry and every runtime computes
