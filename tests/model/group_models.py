"""Small Qwen3 models with a scale for every group of weights, as Bonsai has them, in any of the layouts that hold such scales.

In: a layout and its seed. Out: a file, and the same weights as float64 for the formulas (reference.py): scales log-uniform from 1e-5 to
0.08, one code in a hundred 3 where the layout has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary.layouts import LAYOUTS, WITH_TWOS, WITHOUT_ZEROS

from .builder import Model, Sizes, dense_values, random_model, write_model

BONSAI = Sizes(layers=2, hidden=256, feed_forward=512, heads=4, kv_heads=2, head_dim=64, vocab=260, context=96, theta=1e6, eps=1e-6)
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 24}


def scales_like(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float16]:
    return np.exp(rng.uniform(np.log(1e-5), np.log(0.08), shape)).astype(np.float16)


def random_values(rng: np.random.Generator, kind: TensorType, shape: tuple[int, int]) -> NDArray[np.int8]:
    if kind in WITHOUT_ZEROS:
        return rng.choice(np.array([-1, 1], np.int8), shape)
    values = rng.integers(-1, 2, shape).astype(np.int8)
    return np.where(rng.random(shape) < 0.01, np.int8(2), values) if kind in WITH_TWOS else values


def blocks(kind: TensorType, values: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """(rows, cols) and (rows, cols / block) -> the bytes of a tensor."""
    layout = LAYOUTS[kind]
    raw = layout.pack_rows(values).reshape(-1, layout.BLOCK_BYTES)
    raw[:, layout.SCALE_AT : layout.SCALE_AT + 2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
    return raw.reshape(-1)


def grouped_tensor(
    rng: np.random.Generator, name: str, kind: TensorType, shape: tuple[int, int]
) -> tuple[OutputTensor, NDArray[np.float64]]:
    """A random tensor, and its weights."""
    values = random_values(rng, kind, shape)
    scales = scales_like(rng, (shape[0], shape[1] // LAYOUTS[kind].BLOCK))
    weights = values * np.repeat(scales.astype(np.float64), LAYOUTS[kind].BLOCK, axis=1)
    raw = blocks(kind, values, scales)
    return OutputTensor(name, kind, shape, lambda: raw), weights


def write_grouped(
    path: Path,
    kind: TensorType,
    *,
    seed: int = 0,
    sizes: Sizes = BONSAI,
    tied: bool = True,
    embedding: TensorType | None = None,
    arch: str = "qwen3",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, OutputTensor | None] | None = None,
) -> Model:
    """The model that a file at `path` now has: `ternary` holds weights, `scales` are 1. embedding: its layout, and the head's."""
    rng, model = np.random.default_rng(seed), random_model(sizes, seed=seed, activation="silu", tied=tied)
    model.embedding = dense_values(model.embedding / np.float32(32), model.embedding_type)  # as small as what layers add to it
    changed: dict[str, OutputTensor | None] = {}
    for layer in range(sizes.layers):
        for name, shape in sizes.projections().items():
            block = f"blk.{layer}.{name}"
            changed[f"{block}.weight"], weights = grouped_tensor(rng, f"{block}.weight", kind, shape)
            model.ternary[block], model.scales[block] = weights, np.float32(1)  # type: ignore[assignment]
        for name in ("attn_sub_norm", "ffn_sub_norm"):
            del model.norms[f"blk.{layer}.{name}"]
            changed[f"blk.{layer}.{name}.weight"] = None
        for name in ("attn_q_norm", "attn_k_norm"):
            model.norms[f"blk.{layer}.{name}"] = rng.uniform(0.5, 1.5, sizes.head_dim).astype(np.float32)
    if embedding is not None:
        for name, field in (("token_embd", "embedding"), *([("output", "head")] if not tied else [])):
            changed[f"{name}.weight"], weights = grouped_tensor(rng, f"{name}.weight", embedding, (sizes.vocab, sizes.hidden))
            setattr(model, field, weights)
    write_model(path, model, arch=arch, metadata=metadata, tensors=changed | dict(tensors or {}))
    return model
