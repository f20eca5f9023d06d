"""Checkpoint -> what a GGUF file of it holds: architecture, metadata, and tensors that are made when the writer asks for them.

Names and keys: llama.cpp's gguf-py/gguf/constants.py. Architecture `bitnet-b1.58` (ReLU²) is what microsoft/BitNet and ik_llama.cpp
read, `bitnet` (SiLU) what llama.cpp reads; both rotate pairs (i, i + head_dim / 2), so q and k rows keep their order.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.flavours import TernaryWeight, read_ternary
from bitnet_cli.checkpoint.folder import Checkpoint, Projection
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary import i2_s

FILE_TYPE_I2_S = 40  # general.file_type of bitnet.cpp
QUANTIZATION_VERSION = 2  # of ggml
ARCHITECTURES = {"relu2": "bitnet-b1.58", "silu": "bitnet"}  # by activation


def architecture(checkpoint: Checkpoint) -> str:
    """`general.architecture`, which is also the prefix of the model's keys."""
    return ARCHITECTURES[checkpoint.config.activation]


def model_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything but the tokenizer."""
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
        "general.file_type": FILE_TYPE_I2_S,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    return general | {f"{arch}.{key}": value for key, value in hyperparameters.items()}


def _name(folder: Path) -> str:
    """The folder's name; in the Hugging Face cache (models--owner--name/snapshots/revision) the model's."""
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    return home.name.split("--")[-1].encode("utf-8", "replace").decode() or "model"


def model_tensors(checkpoint: Checkpoint, embedding_type: TensorType) -> list[OutputTensor]:
    """In the order embedding, layers, final norm, head. Raises UnsupportedError where a projection does not fit I2_S."""
    outputs = {name: _dense(name, tensor, embedding_type) for name, tensor in checkpoint.dense.items()}
    outputs |= {name: _dense(name, tensor, TensorType.F32) for name, tensor in checkpoint.norms.items()}
    outputs |= {name: _projection(name, projection) for name, projection in checkpoint.projections.items()}
    order = ["token_embd"]
    order += [f"blk.{n}.{target}" for n in range(checkpoint.config.layers) for target in checkpoint.config.family.layer.values()]
    order += ["output_norm"] + (["output"] if "output" in outputs else [])
    return [outputs[name] for name in order]


def _dense(name: str, tensor: StoredTensor, kind: TensorType) -> OutputTensor:
    dense.require_blocks(tensor, kind)
    return OutputTensor(f"{name}.weight", kind, tensor.shape, lambda: dense.encode(tensor, kind))


def _projection(name: str, projection: Projection) -> OutputTensor:
    weight, flavour = projection.weight, projection.flavour
    if flavour is None:  # modules_to_not_convert
        return _dense(name, weight, TensorType.F16)
    require_i2_s(weight, projection.shape)
    return OutputTensor(
        f"{name}.weight",
        TensorType.I2_S,
        projection.shape,
        lambda: encode_i2_s(read_ternary(weight, projection.scale, projection.shape, flavour)),
    )


def require_i2_s(weight: StoredTensor, shape: tuple[int, ...]) -> None:
    """UnsupportedError where rows are not whole I2_S blocks."""
    if shape[-1] % i2_s.BLOCK:
        reason = f"rows of {shape[-1]} weights; I2_S packs {i2_s.BLOCK} at a time, and no other type is written yet"
        raise UnsupportedError(f"{weight.path}: {weight.name}: {reason}")


def encode_i2_s(weight: TernaryWeight) -> NDArray[np.uint8]:
    """The tensor's bytes, made chunk by chunk: beside the result, a few MB."""
    result = np.empty(i2_s.nbytes(weight.rows, weight.cols), np.uint8)
    done = 0
    parts: Iterable[NDArray[np.uint8]] = (i2_s.pack_rows(chunk) for chunk in weight.chunks())
    for part in parts:
        result[done : done + part.size] = part
        done += part.size
    result[done:] = i2_s.tail(float(weight.scale))
    return result
