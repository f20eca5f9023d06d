"""Small GGUF models of random ternary weights, in which any field can be wrong, and the arrays that went into them.

model = random_model(Sizes(layers=3), seed=1)                  arrays; also what the formulas in reference.py take
path = write_model(tmp_path / "m.gguf", model)                 a valid file
write_model(path, model, metadata={"rope.freq_base": -1.0})    one key changed (None: left out); without a dot before it: `<arch>.`
write_model(path, model, tensors={"output_norm.weight": None}) one tensor changed (OutputTensor or array) or left out
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.ternary import i2_s

BOS, EOS, EOT, PAD = 256, 257, 258, 259
CONTROLS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>")
NORMS = ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
GLOBAL = ("general.", "tokenizer.", "prism.")  # keys that do not begin with the architecture's name


@dataclass(frozen=True)
class Sizes:
    layers: int = 2
    hidden: int = 128
    feed_forward: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 260
    context: int = 64
    theta: float = 10000.0
    eps: float = 1e-5

    def projections(self) -> dict[str, tuple[int, int]]:
        """Name -> (rows, cols)."""
        inner, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = [(inner, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, inner)]
        shapes += [(self.feed_forward, self.hidden), (self.feed_forward, self.hidden), (self.hidden, self.feed_forward)]
        return dict(zip(PROJECTIONS, shapes, strict=True))

    def norms(self) -> dict[str, int]:
        inner = self.heads * self.head_dim
        return {"attn_norm": self.hidden, "attn_sub_norm": inner, "ffn_norm": self.hidden, "ffn_sub_norm": self.feed_forward}


@dataclass(eq=False)  # so that it can be a key
class Model:
    """embedding, head: as the file's type stores them, in float32; head is the embedding where the two are tied."""

    sizes: Sizes
    activation: str
    ternary: dict[str, NDArray[np.int8]] = field(default_factory=dict)  # blk.N.<projection> -> (rows, cols)
    scales: dict[str, np.float32] = field(default_factory=dict)
    norms: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # blk.N.<norm>, output_norm
    biases: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # blk.N.<projection> -> (rows,)
    embedding: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    head: NDArray[np.float32] | None = None
    embedding_type: TensorType = TensorType.F16
    rope_factors: NDArray[np.float64] | None = None  # (head_dim / 2,) what rotations are divided by
    rope_amplitude: float = 1.0  # what cos and sin are multiplied by
    embedding_scale: float = 1.0
    query_scalar: float = 0.0  # scores are divided by its root; 0: head_dim
    rotated: int = 0  # values of a head that rotate, the first ones; 0: all
    still: frozenset[int] = frozenset()  # layers without rotations
    windows: dict[int, int] = field(default_factory=dict)  # layer -> positions that a token sees, itself and those before it
    window_theta: float = 0.0  # of the layers in `windows`


def random_model(
    sizes: Sizes | None = None,
    *,
    seed: int = 0,
    activation: str = "relu2",
    embedding: TensorType = TensorType.F16,
    tied: bool = True,
) -> Model:
    """A third of the weights are zero and every norm weight differs from 1, so that a part that is left out shows."""
    z, rng = sizes or Sizes(), np.random.default_rng(seed)
    model = Model(z, activation, embedding_type=embedding)
    for layer in range(z.layers):
        for name, shape in z.projections().items():
            model.ternary[f"blk.{layer}.{name}"] = rng.integers(-1, 2, shape).astype(np.int8)
            model.scales[f"blk.{layer}.{name}"] = np.float32(rng.uniform(0.5, 1.5) / np.sqrt(shape[1]))
        for name, size in z.norms().items():
            model.norms[f"blk.{layer}.{name}"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
    model.norms["output_norm"] = rng.uniform(0.5, 1.5, z.hidden).astype(np.float32)
    model.embedding = dense_values(rng.normal(0, 1, (z.vocab, z.hidden)).astype(np.float32), embedding)
    if not tied:
        model.head = dense_values(rng.normal(0, 1, (z.vocab, z.hidden)).astype(np.float32), embedding)
    return model


def dense_values(x: NDArray[np.float32], kind: TensorType) -> NDArray[np.float32]:
    """What is left of `x` after it has been stored as `kind`."""
    if kind == TensorType.Q8_0:
        blocks = dense_bytes(x, kind).reshape(-1, 34)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return (blocks[:, 2:].view(np.int8) * scales).astype(np.float32).reshape(x.shape)
    return x.astype(np.float16).astype(np.float32) if kind == TensorType.F16 else x


def dense_bytes(x: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
    """q8_0: 32 weights in 34 bytes, a float16 scale and 32 int8."""
    if kind == TensorType.F16:
        return x.astype(np.float16).view(np.uint8)
    if kind == TensorType.F32:
        return x.view(np.uint8)
    blocks = x.reshape(-1, 32)
    scales = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    codes = np.clip(np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-8)), -127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], 1).reshape(-1)


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = {byte: 256 + i for i, byte in enumerate(b for b in range(256) if b not in same)}
    return [chr(others.get(byte, byte)) for byte in range(256)]


def tokenizer_metadata(vocab: int = 260) -> dict[str, Any]:
    """Byte-level BPE without merges: token i < 256 is byte i, then the controls, then `<unused N>` up to the size of the vocabulary."""
    tokens = [*byte_alphabet(), *CONTROLS, *(f"<unused {i}>" for i in range(vocab - 260))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * (vocab - 256),
        "tokenizer.ggml.merges": Typed([], ValueType.ARRAY, ValueType.STRING),
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.add_bos_token": True,
    }


def model_metadata(model: Model) -> dict[str, Any]:
    """Keys without the architecture's name."""
    z = model.sizes
    return {
        "general.name": "random",
        "general.file_type": 40,
        "vocab_size": z.vocab,
        "context_length": z.context,
        "embedding_length": z.hidden,
        "block_count": z.layers,
        "feed_forward_length": z.feed_forward,
        "attention.head_count": z.heads,
        "attention.head_count_kv": z.kv_heads,
        "attention.key_length": z.head_dim,
        "attention.value_length": z.head_dim,
        "attention.layer_norm_rms_epsilon": z.eps,
        "rope.dimension_count": model.rotated or z.head_dim,
        "rope.freq_base": z.theta,
        "hidden_activation": model.activation,
    } | tokenizer_metadata(z.vocab)


def f32(name: str, values: Any) -> OutputTensor:
    array = np.asarray(values, np.float32)
    return OutputTensor(name, TensorType.F32, array.shape, lambda: array)


def dense(name: str, values: NDArray[np.float32], kind: TensorType) -> OutputTensor:
    return OutputTensor(name, kind, values.shape, lambda: dense_bytes(values, kind))


def packed(name: str, ternary: NDArray[np.int8], scale: float) -> OutputTensor:
    rows, cols = ternary.shape
    return OutputTensor(name, TensorType.I2_S, (rows, cols), lambda: i2_s.pack(ternary, scale))


def model_tensors(model: Model) -> dict[str, OutputTensor]:
    tensors = [dense("token_embd.weight", model.embedding, model.embedding_type)]
    tensors += [packed(f"{name}.weight", values, float(model.scales[name])) for name, values in model.ternary.items()]
    tensors += [f32(f"{name}.weight", values) for name, values in model.norms.items()]
    tensors += [f32(f"{name}.bias", values) for name, values in model.biases.items()]
    if model.head is not None:
        tensors.append(dense("output.weight", model.head, model.embedding_type))
    return {tensor.name: tensor for tensor in tensors}


def write_model(
    path: Path,
    model: Model | None = None,
    *,
    arch: str = "bitnet-b1.58",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, OutputTensor | NDArray[Any] | None] | None = None,
) -> Path:
    """The model as a file, with the changes that `metadata` and `tensors` ask for; see the top of this file."""
    model = model or random_model()
    keys = model_metadata(model) | dict(metadata or {})
    named = {key if key.startswith(GLOBAL) else f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    table: dict[str, Any] = model_tensors(model) | dict(tensors or {})
    outputs = [f32(name, value) if isinstance(value, np.ndarray) else value for name, value in table.items() if value is not None]
    write_gguf(path, arch, named, outputs, force=True)
    return path
