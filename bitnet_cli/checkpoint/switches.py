"""Keys of config.json that change what a model computes and that no written file could express, in one table: values that change nothing
pass, others are refused by name. null is as good as absent.

The keys are those that transformers' classes of our families read (models/bitnet, llama, qwen2, qwen3, gemma3), 1bitLLM's own, and those of
models near them that somebody may have left in a folder of ours; what config.py, rope.py and windows.py read is not among them.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from bitnet_cli.checkpoint.families import Family
from bitnet_cli.errors import UnsupportedError


class Fields(Protocol):
    """Typed access to a JSON object (config.py)."""

    path: Any

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is absent or null."""
        ...


BIASES = "biases are not supported"
# Key -> values that change nothing (false is 0), and what is said of others where that is more than their value.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "attention_bias": (0,),
    "attention_out_bias": (0,),
    "mlp_bias": (0,),
    "qkv_bias": (0,),
    "use_bias": (0,),
    "use_qkv_bias": (0,),
    "alibi": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "clip_qkv": (0,),
    "embedding_multiplier": (1,),
    "is_causal": (1,),
    "lm_head_multiplier": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "n_routed_experts": (0,),
    "no_rope_layers": (1,),  # one for each layer
    "num_experts": (0,),
    "num_local_experts": (0,),
    "num_nextn_predict_layers": (0,),
    "parallel_attn": (0,),
    "parallel_residual": (0,),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "use_bidirectional_attention": (0,),
    "use_parallel_residual": (0,),
    "input_bits": (8,),  # of 1bitLLM's own code
    "weight_bits": (1,),
}


def refuse_switches(fields: Fields, sizes: Mapping[str, tuple[float, ...]]) -> None:
    """UnsupportedError for the first value that would change the result.

    sizes: as NEUTRAL, for keys whose neutral values are a matter of the model's own numbers.
    """
    for key, neutral in (NEUTRAL | dict(sizes)).items():
        value = fields.get(key)
        if value is None or all(_is_one_of(item, neutral) for item in (value if isinstance(value, list) else [value])):
            continue
        known = " or ".join(f"{number:g}" for number in neutral)
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        if key.endswith("bias"):
            raise UnsupportedError(f"{fields.path}: {key}: {BIASES}")
        raise UnsupportedError(f"{fields.path}: {key}: {shown} is not supported; {known} is")


def neutral_sizes(hidden: int, layers: int, head_dim: int, family: Family) -> dict[str, tuple[float, ...]]:
    """Keys that change nothing where they say what a model of these sizes has anyway."""
    head_norms, biases = "self_attn.q_norm" in family.layer, "self_attn.q_proj.bias" in family.layer
    neutral: dict[str, tuple[float, ...]] = {"attention_multiplier": (head_dim**-0.5,), "rotary_dim": (head_dim,)}
    neutral |= {"scale_depth": (math.sqrt(layers),), "dim_model_base": (hidden,)}
    if biases:  # as its class has them, whatever is said
        neutral |= dict.fromkeys(("attention_bias", "qkv_bias", "use_qkv_bias"), (0, 1))
    return neutral | dict.fromkeys(("qk_layernorm", "qk_norm", "use_qk_norm"), (float(head_norms),))


def _is_one_of(value: Any, neutral: tuple[float, ...]) -> bool:
    close = isinstance(value, float) and any(math.isclose(value, number, rel_tol=1e-6) for number in neutral)
    return close or (isinstance(value, int) and value in neutral)  # an integer may be too large for a float
