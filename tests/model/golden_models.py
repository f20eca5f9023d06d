"""Random models whose files are the same bytes on every machine: for golden hashes.

Drawn are integers alone, and everything is made of them by exact operations: NumPy's normal numbers and ranges of floats depend on the C
library, and on what a compiler makes of a + b c.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor

from .builder import Model, Sizes, write_model
from .group_models import YARN, blocks

WIDE = Sizes(layers=2, hidden=256, feed_forward=640, heads=4, kv_heads=2, head_dim=64, vocab=2300, context=1100)
GROUPED = Sizes(layers=2, hidden=256, feed_forward=512, heads=4, kv_heads=2, head_dim=64, vocab=260, context=1100, theta=1e6, eps=1e-6)


def fractions(rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> NDArray[np.float32]:
    """Multiples of 1 / 1024, low <= v < high: float16 holds them within 2."""
    return (rng.integers(round(low * 1024), round(high * 1024), shape) / 1024).astype(np.float32)


def numbers(sizes: Sizes, seed: int, activation: str) -> Model:
    """As builder.random_model, of a head of its own."""
    rng, model = np.random.default_rng(seed), Model(sizes, activation)
    for layer in range(sizes.layers):
        for name, shape in sizes.projections().items():
            model.ternary[f"blk.{layer}.{name}"] = rng.integers(-1, 2, shape).astype(np.int8)
            model.scales[f"blk.{layer}.{name}"] = fractions(rng, 0.5, 1.5, 1)[0] / np.float32(16)
        for name, size in sizes.norms().items():
            model.norms[f"blk.{layer}.{name}"] = fractions(rng, 0.5, 1.5, size)
    model.norms["output_norm"] = fractions(rng, 0.5, 1.5, sizes.hidden)
    model.embedding, model.head = (fractions(rng, -2, 2, (sizes.vocab, sizes.hidden)) for _ in range(2))
    return model


def write_wide(path: Path) -> None:
    """BitNet b1.58 with ReLU² and sub-norms."""
    model = numbers(WIDE, 1, "relu2")
    model.head = model.head / np.float32(8)  # logits a few units apart: a sampler has a choice
    write_model(path, model)


def write_grouped(path: Path) -> None:
    """Qwen3 with YaRN, norms of heads, and a float16 scale for each 64 weights."""
    model, rng, changed = numbers(GROUPED, 2, "silu"), np.random.default_rng(3), dict[str, OutputTensor | None]()
    model.embedding, model.head = model.embedding / np.float32(32), model.head / np.float32(8)
    for layer in range(GROUPED.layers):
        for name, shape in GROUPED.projections().items():
            values = rng.integers(-1, 3, shape).astype(np.int8)
            raw = blocks(TensorType.Q2_0, values, (fractions(rng, 0.5, 1.5, (shape[0], shape[1] // 64)) / 32).astype(np.float16))
            changed[f"blk.{layer}.{name}.weight"] = OutputTensor(f"blk.{layer}.{name}.weight", TensorType.Q2_0, shape, lambda raw=raw: raw)
        for name in ("attn_sub_norm", "ffn_sub_norm"):
            del model.norms[f"blk.{layer}.{name}"]
        for name in ("attn_q_norm", "attn_k_norm"):
            model.norms[f"blk.{layer}.{name}"] = fractions(rng, 0.5, 1.5, GROUPED.head_dim)
    write_model(path, model, arch="qwen3", metadata=YARN | {"rope.scaling.original_context_length": 256}, tensors=changed)


def write(folder: Path) -> None:
    write_wide(folder / "wide.gguf")
    write_grouped(folder / "grouped.gguf")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
