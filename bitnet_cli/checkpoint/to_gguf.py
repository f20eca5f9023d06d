"""Checkpoint -> what a GGUF file of it holds: architecture, metadata, and tensors that are made when the writer asks for them.

Names and keys: llama.cpp's gguf-py/gguf/constants.py. Architecture `bitnet-b1.58` (ReLU²) is what microsoft/BitNet and ik_llama.cpp
read, `bitnet` (SiLU) what llama.cpp reads; both rotate pairs (i, i + head_dim / 2), so q and k rows keep their order.
"""

from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.flavours import read_ternary
from bitnet_cli.checkpoint.folder import Checkpoint, Projection
from bitnet_cli.checkpoint.packing import FILE_TYPES, QUANTIZATION_VERSION, ternary_tensors
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor

ARCHITECTURES = {"relu2": "bitnet-b1.58", "silu": "bitnet"}  # by activation


def architecture(checkpoint: Checkpoint) -> str:
    """`general.architecture`, which is also the prefix of the model's keys."""
    return ARCHITECTURES[checkpoint.config.activation]


def model_metadata(checkpoint: Checkpoint, weight_type: TensorType = TensorType.I2_S) -> dict[str, Any]:
    """Everything but the tokenizer. `weight_type`: of the ternary weights."""
    config, arch = checkpoint.config, architecture(checkpoint)
    hyperparameters: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.hidden,
        "block_count": config.layers,
        "feed_forward_length": config.feed_forward,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "hidden_activation": config.activation,
    }
    general = {
        "general.name": _name(checkpoint.folder),
        "general.file_type": FILE_TYPES[weight_type],
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return general | {f"{arch}.{key}": value for key, value in hyperparameters.items()}


def _name(folder: Path) -> str:
    """The folder's name; in the Hugging Face cache (models--owner--name/snapshots/revision) the model's."""
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    return home.name.split("--")[-1].encode("utf-8", "replace").decode() or "model"


def model_tensors(checkpoint: Checkpoint, embedding_type: TensorType, weight_type: TensorType = TensorType.I2_S) -> list[OutputTensor]:
    """In the order embedding, layers, final norm, head; a weight's scale follows it. `weight_type`: one of packing.OUTTYPES.

    UnsupportedError where a matrix does not fit its type.
    """
    outputs = {name: [_dense(name, tensor, embedding_type)] for name, tensor in checkpoint.dense.items()}
    outputs |= {name: [_dense(name, tensor, TensorType.F32)] for name, tensor in checkpoint.norms.items()}
    outputs |= {name: _projection(name, projection, weight_type) for name, projection in checkpoint.projections.items()}
    order = ["token_embd"]
    order += [f"blk.{n}.{target}" for n in range(checkpoint.config.layers) for target in checkpoint.config.family.layer.values()]
    order += ["output_norm"] + (["output"] if "output" in outputs else [])
    return [tensor for name in order for tensor in outputs[name]]


def _dense(name: str, tensor: StoredTensor, kind: TensorType) -> OutputTensor:
    dense.require_blocks(tensor, kind)
    return OutputTensor(f"{name}.weight", kind, tensor.shape, lambda: dense.encode(tensor, kind))


def _projection(name: str, projection: Projection, weight_type: TensorType) -> list[OutputTensor]:
    weight, flavour = projection.weight, projection.flavour
    if flavour is None:  # modules_to_not_convert
        return [_dense(name, weight, TensorType.F16)]
    shape = projection.shape
    return ternary_tensors(
        name, shape, weight_type, weight.path, weight.name, lambda: read_ternary(weight, projection.scale, shape, flavour)
    )
