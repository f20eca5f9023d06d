"""Tokenizer training, and saving a model of `bitnet_torch` as a Hugging Face folder.

The folder loads with transformers' `BitNetForCausalLM`, linear class `BitLinear`: packed uint8 weights and `weight_scale` = 1 / mean|W|,
which divides. `quantization_config` also names the activations where they are not int8 (`activation_type`, a key of
activation_schemes.SCHEMES) and the share that top-k keeps (`top_k`); transformers knows neither and computes with int8.
The float twin is saved with float weights and no quantization_config; a model with scales of groups likewise, its weights multiplied out.
"""

import json
from pathlib import Path

import torch
from activation_schemes import SCHEMES
from bitnet_torch import BitNet, ternary, ternary_groups
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
# Llama 3's pattern, so that `tokenizer.ggml.pre` is `llama-bpe` and every GGUF runtime splits text the same way.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(text: Path, vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens from a text file; saved beside it and loaded from there the next time."""
    saved = text.with_name(f"tokenizer.{vocab_size}.json")
    if saved.exists():
        return Tokenizer.from_file(str(saved))
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.read_text(encoding="utf-8").split(END), trainer)
    tokenizer.save(str(saved))
    return tokenizer


def pack(values: torch.Tensor) -> torch.Tensor:
    """{-1, 0, 1} (rows, cols) -> uint8 (rows / 4, cols): bitnet_cli/ternary/hf_packed.py describes the layout."""
    blocks = (values + 1).to(torch.uint8).view(4, -1, values.shape[1])
    return blocks[0] | blocks[1] << 2 | blocks[2] << 4 | blocks[3] << 6


def config_of(model: BitNet, end_id: int) -> dict[str, object]:
    s = model.shape
    config: dict[str, object] = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": s.vocab_size,
        "hidden_size": s.hidden,
        "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "hidden_act": s.hidden_act,
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.norm_eps,
        "rope_theta": s.rope_theta,
        "tie_word_embeddings": True,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "attention_bias": False,
        "torch_dtype": "float32",
    }
    if model.scheme and not s.group:
        quantization = {"quant_method": "bitnet", "linear_class": "bitlinear", "modules_to_not_convert": None}
        if model.scheme != "int8":
            quantization["activation_type"] = model.scheme
        if (share := SCHEMES[model.scheme].top_k) < 1:
            quantization["top_k"] = share
        config["quantization_config"] = quantization
    return config


def save_folder(model: BitNet, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for parameter, weight in model.state_dict().items():
        value, name = weight.detach().cpu(), f"model.{parameter}"
        if name.endswith("_proj.weight") and model.scheme and model.shape.group:
            tensors[name] = ternary_groups(value, model.shape.group).half()  # exact: the scales are such numbers
        elif name.endswith("_proj.weight") and model.scheme:
            values, scale = ternary(value)
            tensors[name] = pack(values)
            tensors[name.replace(".weight", ".weight_scale")] = (1 / scale).reshape(1).float()
        else:
            # The embedding is kept in float16: the file that ships is half the size, and every runtime reads the same values.
            tensors[name] = value.to(torch.float16) if "embed_tokens" in name else value.float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    end_id = tokenizer.token_to_id(END)
    (folder / "config.json").write_text(json.dumps(config_of(model, end_id), indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "pad_token": END}
    special |= {"model_max_length": model.shape.context, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2) + "\n")
