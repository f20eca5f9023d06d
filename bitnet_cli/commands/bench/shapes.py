"""Models that do not exist: published shapes with random ternary weights, as a GGUF file that is deleted when it is no longer used.

Shapes: the dummy models of arXiv 2410.16144 (bitnet.cpp), section on speed, and microsoft/bitnet-b1.58-2B-4T. Their embedding has the
32,002 tokens of 1bitLLM's models, BitNet 2B-4T its own 128,256. `bonsai`: prism-ml/Ternary-Bonsai, which are Qwen3 models in PQ2_0, with a
scale for each 128 weights, embedding and head too. Speed does not depend on which weights are random: a pool of valid bytes is laid out
again and again from different places, and every layer has its own memory.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.layer_table import EVERY, HEAD_NORMS, LAYER, PROJECTIONS, SUB_NORMS, layer_weights, shapes
from bitnet_cli.ternary import i2_s, pq2_0

POOL = 1 << 24  # bytes, or a little less
BLOCKS_APART = 2 * 17 * 18 * 54 * 66  # a multiple of every block's bytes
SCALE = 1 / 32
SMALLEST_SCALE, LARGEST_SCALE, TWOS = 1e-5, 0.08, 0.01  # scales of groups, log-uniform, and the share of weights that are 2
Producer = Callable[[], NDArray[Any]]  # of a tensor's values, or of its bytes


class Shape(NamedTuple):
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int = 32768  # so that any depth can be measured
    groups: bool = False  # a Qwen3 model, all matrices in PQ2_0
    head_size: int = 0  # values of a head; 0: hidden / heads
    tied: bool = True  # the embedding is the head

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden // self.heads

    def ternary_weights(self) -> int:
        """Of all layers."""
        return self.layers * layer_weights(self)

    def file_bytes(self) -> int:
        """Bytes of the GGUF file, nearly: two bits a weight and a float16 head, or everything in PQ2_0."""
        if not self.groups:
            return self.ternary_weights() // 4 + 2 * self.vocab * self.hidden
        weights = self.ternary_weights() + self.vocab * self.hidden * (1 if self.tied else 2)
        return weights // pq2_0.BLOCK * pq2_0.BLOCK_BYTES


def _dummy(hidden: int, feed_forward: int, layers: int, heads: int) -> Shape:
    return Shape(hidden, feed_forward, layers, heads, heads, 32002)


def _bonsai(hidden: int, feed_forward: int, layers: int, heads: int, tied: bool = True) -> Shape:
    return Shape(hidden, feed_forward, layers, heads, 8, 151936, groups=True, head_size=128, tied=tied)


SHAPES = {
    "125M": _dummy(768, 3072, 11, 12),
    "350M": _dummy(1024, 3072, 24, 16),
    "700M": _dummy(1536, 4096, 24, 16),
    "1B": _dummy(2048, 3584, 24, 32),
    "1.5B": _dummy(1536, 9216, 28, 32),
    "2.5B": _dummy(2560, 6912, 30, 20),
    "2B-4T": Shape(2560, 6912, 30, 20, 5, 128256),
    "3.8B": _dummy(3840, 8192, 24, 32),
    "7B": _dummy(4096, 12032, 32, 32),
    "13B": _dummy(5120, 13824, 40, 40),
    "30B": _dummy(6656, 16384, 60, 52),
    "70B": _dummy(8192, 24576, 80, 64),
    "100B": _dummy(8192, 45568, 72, 64),
    "bonsai-1.7B": _bonsai(2048, 6144, 28, 16),
    "bonsai-4B": _bonsai(2560, 9728, 36, 32),
    "bonsai-8B": _bonsai(4096, 12288, 36, 32, tied=False),
}


def _i2_s_pool(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes of four 2-bit codes each, 0 to 2, all 81 equally likely."""
    codes = np.array([a << 6 | b << 4 | c << 2 | d for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8)
    pool: NDArray[np.uint8] = codes[generator.integers(0, len(codes), POOL, np.uint8)]
    return pool


def _blocks(generator: np.random.Generator, count: int, size: int, scale_at: int, below: int) -> NDArray[np.uint8]:
    """(count * size,) random bytes in blocks with the float16 SCALE at a byte of each."""
    blocks = generator.integers(0, below, (count, size), np.uint8, endpoint=False)
    blocks[:, scale_at : scale_at + 2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks.reshape(-1)


def _pq2_0_pool(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks with scales that all differ, ternary but for TWOS."""
    values = generator.integers(-1, 2, (POOL // pq2_0.BLOCK_BYTES, pq2_0.BLOCK), np.int8)
    values[generator.random(values.shape, np.float32) < TWOS] = 2
    blocks = pq2_0.pack_rows(values).reshape(-1, pq2_0.BLOCK_BYTES)
    scales = np.exp(generator.uniform(np.log(SMALLEST_SCALE), np.log(LARGEST_SCALE), (len(blocks), 1))).astype("<f2")
    blocks[:, pq2_0.SCALE_AT : pq2_0.SCALE_AT + 2] = scales.view(np.uint8)
    return blocks.reshape(-1)


@functools.cache
def _pool(kind: TensorType) -> NDArray[np.uint8]:
    """Random weights of a type, whole blocks, to be repeated. Besides I2_S and PQ2_0 of llama.cpp: F16, Q4_0, Q2_0, TQ1_0, TQ2_0."""
    generator = np.random.default_rng(1)
    if kind is TensorType.PQ2_0:
        return _pq2_0_pool(generator)
    if kind is TensorType.I2_S:
        return _i2_s_pool(generator)
    if kind is TensorType.F16:
        values = generator.standard_normal(POOL // 2, np.float32) * np.float32(SCALE)
        return values.astype(np.float16).view(np.uint8)
    block = {
        TensorType.Q4_0: (18, 0, 256),
        TensorType.Q2_0: (18, 0, 256),
        TensorType.TQ1_0: (54, 52, 243),
        TensorType.TQ2_0: (66, 64, 256),
    }[kind]
    return _blocks(generator, POOL // block[0], *block)


def _projection(pool: NDArray[np.uint8], seed: int, size: int, tail: int) -> Producer:
    """`size` bytes from the pool, from a place that depends on the seed, and the scale in `tail` bytes more."""

    def produce() -> NDArray[np.uint8]:
        start = seed * 7919 * BLOCKS_APART % len(pool)
        data = np.zeros(size + tail, np.uint8)
        done = 0
        while done < size:
            count = min(size - done, len(pool) - start)
            data[done : done + count] = pool[start : start + count]
            done, start = done + count, 0
        if tail:
            data[size : size + 4] = np.frombuffer(np.float32(SCALE).tobytes(), np.uint8)
        return data

    return produce


def _head(shape: Shape) -> Producer:
    def produce() -> NDArray[np.generic]:
        rows = np.random.default_rng(1).standard_normal((min(shape.vocab, 4096), shape.hidden), np.float32) / 50
        whole = np.empty((shape.vocab, shape.hidden), np.float16)
        for start in range(0, shape.vocab, len(rows)):
            count = min(len(rows), shape.vocab - start)
            # Rows that differ a little: equal ones would tie among the largest logits.
            whole[start : start + count] = rows[:count] * np.float32(1 + start / 1e6)
        return whole

    return produce


def write_shape(path: Path, shape: Shape, name: str, activation: str = "relu2", kind: TensorType = TensorType.I2_S) -> int:
    """Write a model with random weights; returns its bytes. activation: of the hidden units, `relu2` or `silu`; Qwen3 has its own.

    kind: I2_S is for `bitnet`, and means PQ2_0 in a shape with groups; the others of `_pool` are for llama.cpp, whose architecture `bitnet`
    has SiLU.
    """
    if shape.groups and kind is TensorType.I2_S:
        kind = TensorType.PQ2_0
    pool, tail = _pool(kind), i2_s.TAIL if kind is TensorType.I2_S else 0

    def projection(seed: int, _: str, rows: int, cols: int) -> Producer:
        return _projection(pool, seed, nbytes(kind, (rows, cols)) - tail, tail)

    keys: dict[str, str | int | float] = {"hidden_activation": activation} if kind is TensorType.I2_S else {}
    head = TensorType.F16, _head(shape)
    if shape.groups:
        head = kind, projection(len(PROJECTIONS) * shape.layers, "", shape.vocab, shape.hidden)
        keys = {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    return write_model(path, shape, f"random {name}", head, (kind, projection), keys)


def write_model(
    path: Path,
    shape: Shape,
    name: str,
    head: tuple[TensorType, Producer],
    projections: tuple[TensorType, Callable[[int, str, int, int], Producer]],
    keys: Mapping[str, str | int | float],
) -> int:
    """Write a model of a shape, without a vocabulary; returns its bytes. Its architecture is Qwen3's if it has groups, else that of who
    reads the projections' type.

    head: type and what makes it; projections: type, and a function of seed, name, rows and cols that gives what makes one; keys: more
    metadata, named without the architecture, and a vocabulary (`tokenizer.`) if there is to be one.
    """
    arch = "qwen3" if shape.groups else "bitnet-b1.58" if projections[0] is TensorType.I2_S else "bitnet"
    norms = EVERY, HEAD_NORMS if shape.groups else SUB_NORMS
    tensors = [
        OutputTensor("token_embd.weight", head[0], (shape.vocab, shape.hidden), head[1]),
        OutputTensor("output_norm.weight", TensorType.F32, (shape.hidden,), functools.partial(np.ones, shape.hidden, np.float32)),
    ]
    if not shape.tied:
        tensors.append(OutputTensor("output.weight", head[0], (shape.vocab, shape.hidden), head[1]))
    sizes = shapes(shape)
    for layer in range(shape.layers):
        for i, part in enumerate(PROJECTIONS):
            rows, cols = sizes[part]
            produce = projections[1](len(PROJECTIONS) * layer + i, part, rows, cols)
            tensors.append(OutputTensor(f"blk.{layer}.{part}.weight", projections[0], (rows, cols), produce))
        for norm in (tensor.name for tensor in LAYER if not tensor.is_projection and tensor.group in norms):
            ones = functools.partial(np.ones, sizes[norm], np.float32)
            tensors.append(OutputTensor(f"blk.{layer}.{norm}.weight", TensorType.F32, sizes[norm], ones))
    metadata: dict[str, str | int | float] = {
        "general.name": name,
        f"{arch}.vocab_size": shape.vocab,
        f"{arch}.block_count": shape.layers,
        f"{arch}.context_length": shape.context,
        f"{arch}.embedding_length": shape.hidden,
        f"{arch}.feed_forward_length": shape.feed_forward,
        f"{arch}.attention.head_count": shape.heads,
        f"{arch}.attention.head_count_kv": shape.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "no_vocab",
    }
    more = {key if key.startswith("tokenizer.") else f"{arch}.{key}": value for key, value in keys.items()}
    return write_gguf(path, arch, metadata | more, tensors, force=True)


@contextlib.contextmanager
def temporary_model(shape: Shape, name: str, activation: str) -> Iterator[GGUFFile]:
    """An open file of a shape. On POSIX systems it has no name any more when this yields: whatever ends the process frees the disk."""
    folder = Path(tempfile.mkdtemp(prefix="bitnet-bench-"))
    try:
        need, free = shape.file_bytes(), shutil.disk_usage(folder).free
        if need > free - (256 << 20):
            raise BitnetError(f"{folder}: random weights need {need / 1e6:.0f} MB of disk, {free / 1e6:.0f} are free; TMPDIR names another")
        path = folder / f"{name}.gguf"
        write_shape(path, shape, name, activation)
        with open_gguf(path) as file:
            if os.name != "nt":
                shutil.rmtree(folder)
            yield file
    finally:
        shutil.rmtree(folder, ignore_errors=True)
