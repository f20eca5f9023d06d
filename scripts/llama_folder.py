"""A fine-tuned model of BitLinear layers -> a Hugging Face folder of packed weights that transformers and `bitnet convert` read.

Flavour: quantization_config `bitnet`, linear class `BitLinear`: uint8 with four weights a byte, and `weight_scale` = 1 / mean|W|, which
divides (flavour C in bitnet_cli/checkpoint/flavours.py). Embedding, norms and head stay floats.
"""

import json
import shutil
from pathlib import Path

import torch
from bit_linear import BitLinear
from bitnet_torch import ternary
from hf_folder import pack
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

# Everything that a tokenizer or a chat can need. Files that the source folder does not have are not missed.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def packed_tensors(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """transformers' names -> tensors. The float ones but norms are stored in float16: the file is half the size, every runtime reads the
    same values."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    tensors = {}
    for name, layer in layers.items():
        values, scale = ternary(layer.weight.detach())
        tensors[f"{name}.weight"] = pack(values)
        tensors[f"{name}.weight_scale"] = (1 / scale).reshape(1).float()
    for name, parameter in model.named_parameters():  # a tied head is listed once, as the embedding
        if name.removesuffix(".weight") not in layers:
            tensors[name] = parameter.detach().to(torch.float16 if parameter.ndim == 2 else torch.float32)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_packed(model: LlamaForCausalLM, source: Path, folder: Path) -> None:
    """Write `folder`: config.json of `source` with a quantization_config, model.safetensors, and the tokenizer's files copied.

    The number of rows of every BitLinear must be a multiple of 4.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(packed_tensors(model), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "bitlinear", "modules_to_not_convert": None}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
