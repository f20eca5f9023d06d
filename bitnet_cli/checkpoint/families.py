"""What differs between model families, as data: one row a family, one table of tensor names a naming scheme.

Names on the left are a checkpoint's (inside `model.layers.N.` for a layer), on the right GGUF's (inside `blk.N.`).
"""

from dataclasses import dataclass

# GGUF name -> (kind of tensor, shape as names of sizes). Sizes: h hidden, f feed-forward, q heads * head_dim, k kv_heads * head_dim.
PROJECTIONS = {
    "attn_q": ("q", "h"),
    "attn_k": ("k", "h"),
    "attn_v": ("k", "h"),
    "attn_output": ("h", "q"),
    "ffn_gate": ("f", "h"),
    "ffn_up": ("f", "h"),
    "ffn_down": ("h", "f"),
}
NORMS = {"attn_norm": "h", "attn_sub_norm": "q", "ffn_norm": "h", "ffn_sub_norm": "f"}

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


@dataclass(frozen=True)
class Family:
    """`layer` is in the order in which a layer computes, and in which the file is written."""

    architecture: str  # in config.json
    layer: dict[str, str]
    activation: str  # where config.json has none
    rope_theta: float  # where config.json has none
    float_is_master: bool  # float weights without quantization_config are BitNet master weights


def _in_compute_order(layer: dict[str, str]) -> dict[str, str]:
    attention = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_sub_norm", "attn_output"]
    order = [*attention, "ffn_norm", "ffn_gate", "ffn_up", "ffn_sub_norm", "ffn_down"]
    return dict(sorted(layer.items(), key=lambda item: order.index(item[1])))


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
        ),
        # 1bitLLM/bitnet_b1_58-*: the first open reproduction, published as float master weights
        Family(
            "BitnetForCausalLM",
            _in_compute_order(_LAYER | {"self_attn.inner_attn_ln": "attn_sub_norm", "mlp.ffn_layernorm": "ffn_sub_norm"}),
            activation="silu",
            rope_theta=10000.0,
            float_is_master=True,
        ),
    )
}

IGNORED = ("rotary_emb.inv_freq",)  # buffers that old files carry and every runtime computes
