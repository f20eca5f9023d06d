"""Random checkpoints with the names, switches and shapes (made small) of BitNet-embedding 0.6B and 270M, and the same in transformers.

Both are transformers' own Qwen3Model and Gemma3TextModel, in which every linear layer is a norm and a BitLinear: microsoft/BitNet,
docs/bitnet-embeddings-i2s-guide.md, sections 2 and 3.1. Weights are bfloat16 masters, as published.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .builder import Model, Sizes

PROJECTIONS = {
    "self_attn.q_proj": ("q", "h"),
    "self_attn.k_proj": ("k", "h"),
    "self_attn.v_proj": ("k", "h"),
    "self_attn.o_proj": ("h", "q"),
    "mlp.gate_proj": ("f", "h"),
    "mlp.up_proj": ("f", "h"),
    "mlp.down_proj": ("h", "f"),
}
QWEN3_NORMS = {"input_layernorm": "h", "post_attention_layernorm": "h", "self_attn.q_norm": "d", "self_attn.k_norm": "d"}
GEMMA3_NORMS = QWEN3_NORMS | {"pre_feedforward_layernorm": "h", "post_feedforward_layernorm": "h"}

# head_dim is not hidden / heads in either; 16 and 4 heads share 2 and 4 to a KV head. Some layers of Gemma3 slide: 1, 2, 4 and 5 of 6 here.
QWEN3 = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 3,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
GEMMA3 = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 96,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "query_pre_attn_scalar": 64,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {"qwen3": QWEN3, "gemma3": GEMMA3}
# Names of a layer's tensors in GGUF (the guide, section 3.2).
_BOTH = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
_BOTH |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_BOTH |= {f"{source}.norm": f"{target}_norm_in" for source, target in _BOTH.items()}
_BOTH |= {"input_layernorm": "attn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GGUF = {
    "qwen3": _BOTH | {"post_attention_layernorm": "ffn_norm"},
    "gemma3": _BOTH
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def parameters(models: ModuleType, kind: str, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """All tensors by the names in the files, which lack `model.`; every value is a bfloat16 number."""
    c, rng = CONFIGS[kind], np.random.default_rng(seed)
    h, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    widths = {"h": h, "f": f, "d": d, "q": c["num_attention_heads"] * d, "k": c["num_key_value_heads"] * d}
    around = 0.0 if kind == "gemma3" else 1.0  # Gemma3 stores its own norms as their distance from 1

    def norm(width: int, middle: float) -> NDArray[np.float32]:
        return rng.uniform(middle - 0.5, middle + 0.5, width).astype(np.float32)

    result = {"embed_tokens.weight": rng.normal(0, 0.5, (c["vocab_size"], h)).astype(np.float32)}
    for n in range(c["num_hidden_layers"]):
        for name, (rows, cols) in PROJECTIONS.items():
            result[f"layers.{n}.{name}.weight"] = models.exact_master(rng, widths[rows], widths[cols])
            result[f"layers.{n}.{name}.norm.weight"] = norm(widths[cols], 1.0)
        for name, width in (GEMMA3_NORMS if kind == "gemma3" else QWEN3_NORMS).items():
            result[f"layers.{n}.{name}.weight"] = norm(widths[width], around)
    result["norm.weight"] = norm(h, around)
    # Under 2^-14 float16, which the written file has for the embedding, would round.
    embedding = result["embed_tokens.weight"]
    embedding[np.abs(embedding) < 2.0**-14] = 0
    return {name: models.from_bf16(models.to_bf16(value)) for name, value in result.items()}


def tokenizer_json(models: ModuleType, kind: str) -> dict[str, Any]:
    """Qwen3's pre-tokenizer and normaliser over the script's few tokens; texts end with a special token, for Gemma3 they begin with one."""
    made: dict[str, Any] = models.tokenizer_json()
    made["normalizer"] = {"type": "NFC"}
    made["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = models.PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
    made["model"]["ignore_merges"] = False
    end = {"SpecialToken": {"id": models.SPECIAL[1], "type_id": 0}}
    single = made["post_processor"]["single"]
    made["post_processor"]["single"] = [*(single if kind == "gemma3" else single[1:]), end]
    made["post_processor"]["special_tokens"][models.SPECIAL[1]] = {"id": models.SPECIAL[1], "ids": [1], "tokens": [models.SPECIAL[1]]}
    return made


def write_folder(models: ModuleType, folder: Path, kind: str, seed: int = 0, prefix: str = "", **config: Any) -> Path:
    """A checkpoint folder. prefix: of tensor names; config: changes to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {prefix + name: ("BF16", models.to_bf16(value)) for name, value in parameters(models, kind, seed).items()}
    models.write_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(models, kind)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": models.SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


def hf_model(transformers: ModuleType, models: ModuleType, kind: str, seed: int = 0) -> Any:
    """The transformers model in float32 with its linear layers replaced."""
    import torch
    from torch import nn

    class NormBitLinear(nn.Module):
        """RMSNorm -> int8 activations by absmax -> ternary weights by absmean. Products of integers, which float32 adds exactly."""

        def __init__(self, weight: Any, norm: Any, eps: float):
            super().__init__()
            self.norm, self.eps = norm, eps
            self.scale = weight.abs().mean().clamp(min=1e-5)
            self.codes = (weight / self.scale).round().clamp(-1, 1)

        def forward(self, x: Any) -> Any:
            x = self.norm * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
            factor = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
            codes = (x * factor).round().clamp(-128, 127)
            return nn.functional.linear(codes, self.codes) * (self.scale / factor)

    name = {"qwen3": "Qwen3", "gemma3": "Gemma3Text"}[kind]
    config = getattr(transformers, f"{name}Config")(**{k: v for k, v in CONFIGS[kind].items() if k not in ("architectures", "dtype")})
    model = getattr(transformers, f"{name}Model")(config).float().eval()
    values = {key: torch.from_numpy(value.copy()) for key, value in parameters(models, kind, seed).items()}
    linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    for key in linear:
        weight, norm = values.pop(f"{key}.weight"), values.pop(f"{key}.norm.weight")
        parent, _, last = key.rpartition(".")
        setattr(model.get_submodule(parent), last, NormBitLinear(weight, norm, config.rms_norm_eps))
    missing = model.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys
    assert all("rotary" in key or "inv_freq" in key or "embed_scale" in key for key in missing.missing_keys), missing.missing_keys
    return model


def arrays_of(models: ModuleType, kind: str, seed: int = 0) -> Model:
    """The same as the formulas of reference.py take it."""
    c = CONFIGS[kind]
    theta = float(c["rope_theta"])
    sizes = Sizes(
        layers=c["num_hidden_layers"],
        hidden=c["hidden_size"],
        feed_forward=c["intermediate_size"],
        heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        vocab=c["vocab_size"],
        context=c["max_position_embeddings"],
        theta=theta,
        eps=c["rms_norm_eps"],
    )
    model = Model(sizes, c.get("hidden_act") or c["hidden_activation"])
    for name, value in parameters(models, kind, seed).items():
        source = name.removesuffix(".weight")
        target = GGUF[kind].get(source.split(".", 2)[-1], "") if source.startswith("layers.") else ""
        target = f"blk.{source.split('.')[1]}.{target}" if target else "output_norm"
        if source == "embed_tokens":
            model.embedding = value
        elif value.ndim == 2:
            model.ternary[target], model.scales[target] = models.ternary(value)
        else:
            own = kind == "gemma3" and not target.endswith("_norm_in")
            model.norms[target] = value + np.float32(1) if own else value
    if kind == "gemma3":
        model.embedding_scale = float(np.float32(np.sqrt(sizes.hidden)))
        model.query_scalar, model.window_theta = c["query_pre_attn_scalar"], c["rope_local_base_freq"]
        model.windows = {i: c["sliding_window"] for i, kind in enumerate(c["layer_types"]) if kind == "sliding_attention"}
    return model
