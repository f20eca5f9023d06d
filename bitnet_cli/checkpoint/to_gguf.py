"""Checkpoint -> what a GGUF file of it holds: architecture, metadata, and tensors that are made when the writer asks for them.

Names and keys: llama.cpp's gguf-py/gguf/constants.py. Architecture `bitnet-b1.58` (ReLU²) is what microsoft/BitNet and ik_llama.cpp
read, `bitnet` (SiLU) what llama.cpp reads; both rotate pairs (i, i + head_dim / 2), so q and k rows keep their order. `llama` rotates
neighbours, so there the rows i and i + head_dim / 2 of each head come to stand side by side (llama.cpp, conversion/llama.py, permute).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.activations import INT8, SPARSE, TOP_K
from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.flavours import BY_BLOCK, Flavour, TernaryWeight, read_ternary
from bitnet_cli.checkpoint.folder import Checkpoint, Projection
from bitnet_cli.checkpoint.packing import FILE_TYPES, QUANTIZATION_VERSION, block_tensor, ternary_tensors
from bitnet_cli.checkpoint.pooling import read_pooling
from bitnet_cli.checkpoint.rows import BY_ROW, RowWeight, read_rows, row_tensors
from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, StoredTensor
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.layer_table import file_name

ROTATED = ("attn_q", "attn_k")
DEQUANTISED_BLOCKS = (Flavour.SEVERAL, Flavour.GROUPS)


def architecture(checkpoint: Checkpoint) -> str:
    """`general.architecture`, which is also the prefix of the model's keys."""
    return checkpoint.config.family.gguf[checkpoint.config.activation]


def model_metadata(checkpoint: Checkpoint, weight_type: TensorType = TensorType.I2_S) -> dict[str, Any]:
    """Everything but the tokenizer. `weight_type`: of the ternary weights, as packing.file_type has it."""
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
        "rope.freq_base": config.rope.theta,
        "hidden_activation": config.activation,
    }
    if config.windows is not None:
        hyperparameters |= {
            "attention.sliding_window": config.windows.size,
            "attention.sliding_window_pattern": config.windows.period,
            "rope.freq_base_swa": config.windows.theta,
        }
    if config.use_sub_norms is False and arch != "llama":
        hyperparameters["use_sub_norms"] = False
    hyperparameters |= {f"rope.scaling.{key}": value for key, value in config.rope.scaling}
    if config.query_scalar != config.head_dim:
        hyperparameters["attention.scale"] = config.query_scalar**-0.5
    pooling = read_pooling(checkpoint.folder, config.family.base)
    if pooling is not None:
        hyperparameters["pooling_type"] = pooling
    several = checkpoint.flavour in (*BY_BLOCK, *BY_ROW)
    if checkpoint.activation_type != INT8 or several:  # a file with several scales that says nothing is float
        hyperparameters["activation_type"] = checkpoint.activation_type
    if checkpoint.activation_type in SPARSE:
        hyperparameters["activation_top_k"] = config.quantization.top_k if config.quantization else TOP_K
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
    unit = checkpoint.config.family.unit_norms
    outputs |= {name: [_norm(name, tensor, unit)] for name, tensor in checkpoint.norms.items()}
    outputs |= {name: _projection(name, projection, weight_type, checkpoint) for name, projection in checkpoint.projections.items()}
    if checkpoint.config.rope.factors is not None:
        factors = np.array(checkpoint.config.rope.factors, "<f4")
        outputs["rope_freqs"] = [OutputTensor("rope_freqs.weight", TensorType.F32, factors.shape, lambda: factors)]
    first, *others = checkpoint.order
    order = [first, *(["rope_freqs"] if "rope_freqs" in outputs else []), *others]
    return [tensor for name in order for tensor in outputs[name]]


def _norm(name: str, tensor: StoredTensor, unit: bool) -> OutputTensor:
    """unit: stored is the distance from 1; llama.cpp multiplies by what is in the file, so the file has the sum."""
    output = _dense(name, tensor, TensorType.F32)
    if not unit or name.endswith("_norm_in"):
        return output
    return dataclasses.replace(output, produce=lambda: tensor.float32() + np.float32(1))


def _dense(name: str, tensor: StoredTensor, kind: TensorType) -> OutputTensor:
    dense.require_blocks(tensor, kind)
    return OutputTensor(file_name(name), kind, tensor.shape, lambda: dense.encode(tensor, kind))


def _projection(name: str, projection: Projection, weight_type: TensorType, checkpoint: Checkpoint) -> list[OutputTensor]:
    weight, flavour, shape = projection.weight, projection.flavour, projection.shape
    rotated = checkpoint.config.family.pairs and name.endswith(ROTATED)
    head_dim = checkpoint.config.head_dim
    if flavour is None or (flavour in DEQUANTISED_BLOCKS and weight_type is TensorType.F16):  # None: modules_to_not_convert
        tensor = _dense(name, weight, TensorType.F16)
        if rotated:
            made = tensor.produce
            tensor = dataclasses.replace(tensor, produce=lambda: side_by_side(made().reshape(shape[0], -1), head_dim))
        return [tensor]

    def blocks(size: int) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float16]]]:
        for values, scales in projection.blocks(size, head_dim if rotated else 1):
            yield (side_by_side(values, head_dim), side_by_side(scales, head_dim)) if rotated else (values, scales)

    if flavour in BY_BLOCK:
        assert projection.scales is not None
        return [block_tensor(name, shape, weight_type, (weight.path, weight.name), blocks, projection.scales)]

    if flavour in BY_ROW:
        return row_tensors(
            name, shape, weight_type, (weight.path, weight.name), lambda: _rows(weight, shape, flavour, head_dim if rotated else 0)
        )

    def read() -> TernaryWeight:
        ternary = read_ternary(weight, projection.scale, shape, flavour)
        return _side_by_side(ternary, head_dim) if rotated else ternary

    return ternary_tensors(name, shape, weight_type, weight.path, weight.name, read)


def _rows(weight: StoredTensor, shape: tuple[int, int], flavour: Flavour, head_dim: int) -> RowWeight:
    """head_dim: of rows that change places; 0: they keep theirs."""
    values, scales = read_rows(weight, shape, flavour)
    return (_side_by_side(values, head_dim), side_by_side(scales[:, None], head_dim)[:, 0]) if head_dim else (values, scales)


def side_by_side(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """(rows, cols), rows whole heads: the rows i and i + head_dim / 2 of each head -> 2 i and 2 i + 1."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _side_by_side(weight: TernaryWeight, head_dim: int) -> TernaryWeight:
    """Chunks of a weight need not be whole heads, so all of it is in memory at once: no more than it takes in bfloat16."""

    def chunks() -> Iterator[NDArray[np.int8]]:
        values = weight.values().reshape(-1, head_dim, weight.cols)
        step = max(1, CHUNK_ELEMENTS // (head_dim * weight.cols))
        for start in range(0, len(values), step):
            part = values[start : start + step]
            yield side_by_side(part.reshape(-1, weight.cols), head_dim)

    return dataclasses.replace(weight, chunks=chunks)
