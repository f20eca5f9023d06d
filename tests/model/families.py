"""Checkpoint folders of scripts/make_test_models.py as the arrays of the formulas: from the masters that the script makes, so that nothing
of the package stands between them and the logits."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .builder import Model, Sizes

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.inner_attn_ln": "attn_sub_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.ffn_layernorm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def model_of(models: ModuleType, kind: str, seed: int = 0) -> Model:
    """What `models.write_folder(..., kind=kind, seed=seed)` holds."""
    family = models.KINDS[kind]
    s = family.shape
    sizes = Sizes(s.layers, s.hidden, s.feed_forward, s.heads, s.kv_heads, s.head_dim, s.vocab_size, s.context, s.rope_theta)
    model = Model(sizes, family.activation)
    for name, value in models.masters(s, seed, True, family).items():
        parts = name.removesuffix(".weight").split(".")
        if parts[0] == "lm_head":
            model.head = value
        elif parts[1] == "embed_tokens":
            model.embedding = value
        elif parts[1] == "norm":
            model.norms["output_norm"] = value
        else:
            target = f"blk.{parts[2]}.{LAYER['.'.join(parts[3:])]}"
            if name.endswith("_proj.weight"):
                model.ternary[target], model.scales[target] = models.ternary(value)
            else:
                model.norms[target] = value
    return model


def llama3_factors(sizes: Sizes, scaling: dict[str, Any]) -> NDArray[np.float64]:
    """What frequencies are divided by, as transformers' _compute_llama3_parameters has it."""
    old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, sizes.head_dim, 2):
        frequency = sizes.theta ** (-i / sizes.head_dim)
        length = 2 * np.pi / frequency
        smooth = (old / length - low) / (high - low)
        stretched = frequency / factor if length > old / low else (1 - smooth) * frequency / factor + smooth * frequency
        factors.append(frequency / (frequency if length < old / high else stretched))
    return np.array(factors)


def write(models: ModuleType, folder: Path, kind: str, flavour: str, **config: Any) -> Path:
    written: Path = models.write_folder(folder, flavour, kind=kind, **config)
    return written
