"""GGUF tensors -> the arrays that the kernels read.

I2_S rows and the head stay where they are, in the memory-mapped file; kernels find them by byte offset. Norms and scales, a few
thousand numbers, are copied; projections in other layouts are repacked (projections.py). Every name, shape and type is checked before a
kernel may touch a byte: kernels check nothing.
"""

from collections.abc import Iterator

import numpy as np
from bitnet_kernels import arrays
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo, TensorType
from bitnet_cli.model.columns import columns_for
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.head import planes_for
from bitnet_cli.model.projections import PROJECTIONS, load_projections, scale_name

NORMS = ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")  # order of arrays.ATTENTION_NORM ...
HEAD_KINDS = {
    TensorType.F32: arrays.HEAD_F32,
    TensorType.F16: arrays.HEAD_F16,
    TensorType.Q8_0: arrays.HEAD_Q8_0,
    TensorType.Q4_0: arrays.HEAD_Q4_0,
    TensorType.Q6_K: arrays.HEAD_Q6_K,
}


def projection_shapes(c: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(rows, cols) of each of PROJECTIONS."""
    kv = c.kv_heads * c.head_dim
    return (
        (c.inner, c.hidden),
        (kv, c.hidden),
        (kv, c.hidden),
        (c.hidden, c.inner),
        (c.feed_forward, c.hidden),
        (c.feed_forward, c.hidden),
        (c.hidden, c.feed_forward),
    )


def norm_sizes(c: ModelConfig) -> tuple[int, ...]:
    """Length of each of NORMS; 0 where the architecture has none."""
    return (c.hidden, c.inner if c.sub_norms else 0, c.hidden, c.feed_forward if c.sub_norms else 0)


def expected_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model must have."""
    yield "token_embd.weight", (c.vocab, c.hidden)
    yield "output_norm.weight", (c.hidden,)
    if not c.tied:
        yield "output.weight", (c.vocab, c.hidden)
    for layer in range(c.layers):
        for name, shape in zip(PROJECTIONS, projection_shapes(c), strict=True):
            yield f"blk.{layer}.{name}.weight", shape
        for name, size in zip(NORMS, norm_sizes(c), strict=True):
            if size:
                yield f"blk.{layer}.{name}.weight", (size,)


def check_tensors(file: GGUFFile, c: ModelConfig) -> list[str]:
    """BadFileError where a tensor is missing or has another shape; returns the names of tensors that the model does not use."""
    expected = dict(expected_shapes(c))
    missing = [name for name in expected if name not in file.tensors]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BadFileError(file.path, "tensors", f"missing {', '.join(missing[:5])}{more}")
    for name, shape in expected.items():
        if file.tensors[name].shape != shape:
            raise BadFileError(file.path, f"tensor {name}", f"has shape {file.tensors[name].shape}, expected {shape}")
    scales = {scale_name(f"blk.{layer}.{name}.weight") for layer in range(c.layers) for name in PROJECTIONS}
    return [name for name in file.tensors if name not in expected and name not in scales]


def _norm(file: GGUFFile, name: str) -> NDArray[np.float32]:
    info = file.tensors[name]
    if info.type not in (TensorType.F32, TensorType.F16):
        raise UnsupportedError(f"{file.path}: tensor {name}: norms of type {info.type.name} are not read; F32 and F16 are")
    values = file.raw(name).view("<f4" if info.type == TensorType.F32 else "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise BadFileError(file.path, f"tensor {name}", "holds values that are not finite", info.offset)
    return values


def load_weights(file: GGUFFile, c: ModelConfig, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> arrays.Weights:
    """Check the tensors of an open file and describe them to the kernels. cos, sin: (context, head_dim / 2)."""
    for name in check_tensors(file, c):
        if name.endswith((".bias", ".scale")) or name.startswith("rope_f"):
            raise UnsupportedError(f"{file.path}: tensor {name}: changes the result and is not supported by {c.architecture} here")
    projections = load_projections(file, c)
    norm_offsets = np.full((c.layers + 1, 4), -1, np.int64)
    norms: list[NDArray[np.float32]] = []
    size = 0
    for layer in range(c.layers):
        for place, (name, length) in enumerate(zip(NORMS, norm_sizes(c), strict=True)):
            if length:
                norm_offsets[layer, place] = size
                norms.append(_norm(file, f"blk.{layer}.{name}.weight"))
                size += length
    norm_offsets[c.layers, 0] = size
    norms.append(_norm(file, "output_norm.weight"))
    head = head_info(file)
    return arrays.Weights(
        packed=projections.packed,
        offsets=projections.offsets,
        scales=projections.scales,
        norms=np.concatenate(norms),
        norm_offsets=norm_offsets,
        head=file.file_bytes(),
        head_offset=np.array([head.offset], np.int64),
        cos=cos,
        sin=sin,
        planes=planes_for(HEAD_KINDS[head.type], c.vocab, c.hidden),
        columns=columns_for(c),
        columns_built=np.zeros(1, np.int64),
    )


def _dense(file: GGUFFile, name: str) -> TensorInfo:
    info = file.tensors[name]
    if info.type not in HEAD_KINDS:
        kinds = ", ".join(kind.name for kind in HEAD_KINDS)
        raise UnsupportedError(f"{file.path}: tensor {name}: type {info.type.name} is not run yet; {kinds} are")
    return info


def head_info(file: GGUFFile) -> TensorInfo:
    """The matrix that makes logits: `output.weight`, or the embedding where they are tied."""
    return _dense(file, "output.weight" if "output.weight" in file.tensors else "token_embd.weight")


def embedding_info(file: GGUFFile) -> TensorInfo:
    """The matrix whose rows are the tokens' first states."""
    return _dense(file, "token_embd.weight")


def sizes_of(file: GGUFFile, c: ModelConfig) -> arrays.Sizes:
    """The numbers that kernels need."""
    return arrays.Sizes(
        layers=c.layers,
        hidden=c.hidden,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        feed_forward=c.feed_forward,
        vocab=c.vocab,
        activation=arrays.RELU2 if c.activation == "relu2" else arrays.SILU,
        norm_eps=float(c.norm_eps),
        head_kind=HEAD_KINDS[head_info(file).type],
    )
