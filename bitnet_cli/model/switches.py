"""Metadata that changes what a model computes and is not applied here, in one table: values that change nothing pass, others are refused.

Keys are those that llama.cpp registers (src/llama-arch.cpp) and that could stand in a file of an architecture of ours; what config.py and
rope.py read is not among them. A key that nobody registers means nothing to anybody, and passes.
"""

import math
from collections.abc import Mapping
from typing import Any

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.table import TensorTable

# `<arch>.` and key -> values that change nothing, as numbers: false is 0. An array changes nothing where no value of it does.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "activation.situ_beta": (0,),
    "adapters.count": (0,),
    "attention.causal": (1,),
    "attention.clamp_kqv": (0,),
    "attention.gate_lora_rank": (0,),
    "attention.indexer.head_count": (0,),
    "attention.key_length_mla": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.q_lora_rank": (0,),
    "attention.recurrent_layers": (0,),
    "attention.relative_buckets_count": (0,),
    "attention.rope_pattern": (1,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0,),
    "attention.value_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "attn_res.block_size": (0,),
    "dense_2_feat_out": (0,),
    "dense_3_feat_out": (0,),
    "embedding_length_per_layer_input": (0,),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "final_logit_softcapping": (0,),
    "full_attention_interval": (0, 1),
    "hash_layer_count": (0,),
    "hyper_connection.count": (0, 1),
    "logit_scale": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "num_loops": (0, 1),
    "rescale_every_n_layers": (0,),
    "residual_scale": (0, 1),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "swin_norm": (0,),
    "token_shift_count": (0,),
    "use_parallel_residual": (0,),
}


def refuse_switches(file: TensorTable, arch: str, sizes: Mapping[str, tuple[float, ...]]) -> None:
    """UnsupportedError, with key and value, for the first one that would change the result.

    sizes: as NEUTRAL, for keys whose neutral values are a matter of the model's own numbers.
    """
    for key, neutral in (NEUTRAL | dict(sizes)).items():
        if f"{arch}.{key}" not in file.metadata:
            continue
        value = file.metadata[f"{arch}.{key}"]
        if not all(_is_one_of(item, neutral) for item in _items(value)):
            known = " or ".join(f"{number:g}" for number in neutral)
            shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
            raise UnsupportedError(f"{file.path}: {arch}.{key}: {shown} is not supported; {known} is, which changes nothing")


def _items(value: Any) -> list[Any]:
    return [value] if isinstance(value, bool | int | float | str) else list(value)


def _is_one_of(value: Any, neutral: tuple[float, ...]) -> bool:
    # A file's floats have 24 bits.
    return isinstance(value, int | float) and any(math.isclose(value, number, rel_tol=1e-6) for number in neutral)
