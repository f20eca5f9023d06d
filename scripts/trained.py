"""A model that scripts/train.py wrote, back in PyTorch."""

import json
from pathlib import Path

from bitnet_torch import BitNet, Shape
from safetensors import safe_open
from tokenizers import Tokenizer


def load(folder: Path) -> tuple[BitNet, Tokenizer]:
    """The trained model of a folder that has `checkpoint.safetensors` and `hf/`, with the embedding rounded to float16, as it ships."""
    config = json.loads((folder / "hf" / "config.json").read_text())
    shape = Shape(
        vocab_size=config["vocab_size"],
        hidden=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        context=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    quantization = config.get("quantization_config")
    model = BitNet(shape, quantization.get("activation_type", "int8") if quantization else None)
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        model.load_state_dict({key: file.get_tensor(key) for key in model.state_dict()})
    model.embed_tokens.weight.data = model.embed_tokens.weight.data.half().float()
    return model, Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
