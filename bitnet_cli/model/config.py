"""GGUF metadata -> the sizes and switches of a model, checked. One forward pass serves all: an architecture is a row of `ARCHITECTURES`.

Keys are `<arch>.<name>` as llama.cpp registers them (facts: `block_count`, `embedding_length`, `attention.head_count` ...).
"""

import math
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from bitnet_kernels.angles import UNSCALED, Scaling

from bitnet_cli.activations import FLOAT, INT8, SAME_ACTIVATIONS, TOP_K, known_scheme
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.layer_table import HEAD_NORMS, INPUT_NORMS, OUT_NORMS, QKV_BIASES, SUB_NORMS, layer_weights
from bitnet_cli.model.rope import read_scaling
from bitnet_cli.model.switches import refuse_switches


@dataclass(frozen=True)
class Architecture:
    """What the name of an architecture implies."""

    activation: str  # where the key `hidden_activation` is absent
    has: frozenset[str] = frozenset()  # groups of layer_table.LAYER
    scaled_embedding: bool = False  # by sqrt(hidden)
    pairs: bool = False  # q and k rows are ordered for rotations of neighbours (2 i, 2 i + 1); `rope_freqs.weight` may stretch them
    windows: bool = False  # some layers see a window of positions
    global_rope: bool = True  # whether layers that see all positions have rotations, beside others that see a window


# `bitnet-25` is the name in Microsoft's first release of BitNet 2B-4T; `bitnet` is llama.cpp's, for the SiLU models of 1bitLLM.
ARCHITECTURES = {
    "bitnet-b1.58": Architecture("relu2", frozenset({SUB_NORMS})),
    "bitnet-25": Architecture("relu2", frozenset({SUB_NORMS})),
    "bitnet": Architecture("silu", frozenset({SUB_NORMS})),
    "qwen3": Architecture("silu", frozenset({HEAD_NORMS})),
    "gemma3": Architecture("gelu_pytorch_tanh", frozenset({HEAD_NORMS, OUT_NORMS}), scaled_embedding=True, windows=True),
    "qwen2": Architecture("silu", frozenset({QKV_BIASES})),
    "llama": Architecture("silu", pairs=True),
}
# Keys of what enters a projection (activations.py). Absent: float if tensors have several scales, else int8. Of this package; llama.cpp
# rounds to int8 in blocks.
ACTIVATION_TYPE, ACTIVATION_TOP_K = "activation_type", "activation_top_k"
ACTIVATIONS = ("relu2", "silu", "gelu_pytorch_tanh")
USE_SUB_NORMS = "use_sub_norms"  # false: a model without the norms that its architecture implies. Of this package
POOLING = {1: "mean", 3: "last"}  # `pooling_type`, llama.cpp's numbers (enum llama_pooling_type); 0 is none
INPUT_NORM = "blk.0.attn_q_norm_in.weight"  # BitNet embedding models have a norm of every projection's input (microsoft/BitNet, docs)
NO_TEXT = "an embedding model: `bitnet embed` makes vectors with it, and it writes no text"
NO_POOLING = "says no pooling_type, so it is no embedding model; --pooling last or --pooling mean makes vectors with it all the same"
WINDOW_PERIOD = 6  # where the file does not say (llama.cpp, src/models/gemma3.cpp)


class Rope(NamedTuple):
    """Rotations of queries and keys."""

    theta: float
    scaling: Scaling = UNSCALED


class LayerKind(NamedTuple):
    """What differs between the layers of a model."""

    rope: Rope | None  # None: nothing rotates
    window: int = 0  # positions that a token sees, itself and those before it; 0: all


@dataclass(frozen=True)
class ModelConfig:
    architecture: str
    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int  # tokens that the model was trained for
    norm_eps: float
    activation: str
    rope_pairs: bool
    activation_type: str | None  # of ACTIVATION_TYPE; None: the file does not say
    tied: bool  # the embedding is also the head
    kinds: tuple[LayerKind, ...]  # of each layer
    rotated: int  # values of each query and key head that rotate, the first ones
    has: frozenset[str] = frozenset()  # groups of layer_table.LAYER
    embedding_scale: float = 1.0
    query_factor: float = 1.0  # what attention scores are multiplied by, beside head_dim^-0.5
    top_k: float = TOP_K  # share of the inputs of `o` that a sparse scheme keeps
    pooling: str | None = None  # how tokens' states become one embedding, a value of POOLING; None: a model that writes text

    @property
    def float_activations(self) -> bool | None:
        """None: the file does not say."""
        return None if self.activation_type is None else self.activation_type == FLOAT

    @property
    def trained_scheme(self) -> str:
        """Activation scheme of a model whose tensors have one scale each."""
        return self.activation_type or INT8

    @property
    def inner(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def ternary_weights(self) -> int:
        return self.layers * layer_weights(self)


def read_config(file: TensorTable) -> ModelConfig:
    """Config of a file. BadFileError: a key is absent, of the wrong type, out of range or at odds with another."""
    arch = file.require_str("general.architecture")
    known = ARCHITECTURES.get(arch)
    if known is None:
        raise UnsupportedError(f"{file.path}: general.architecture: '{arch}' is not supported; supported are {', '.join(ARCHITECTURES)}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadFileError(file.path, "tensor token_embd.weight", "is missing or not a matrix")
    heads = _of_all_layers(file, f"{arch}.attention.head_count", 4096)
    hidden = file.require_int(f"{arch}.embedding_length", 1, 1 << 20)
    head_dim = file.optional_int(f"{arch}.attention.key_length", 2, 4096, hidden // heads)
    layers, context = file.require_int(f"{arch}.block_count", 1, 4096), file.require_int(f"{arch}.context_length", 1, 1 << 24)
    config = ModelConfig(
        architecture=arch,
        name=file.optional_str("general.name", file.path.stem),
        layers=layers,
        hidden=hidden,
        feed_forward=_of_all_layers(file, f"{arch}.feed_forward_length", 1 << 22),
        heads=heads,
        kv_heads=_of_all_layers(file, f"{arch}.attention.head_count_kv", 4096, heads),
        head_dim=head_dim,
        vocab=embedding.shape[0],
        context=context,
        norm_eps=file.require_float(f"{arch}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        activation=_activation(file, arch, known.activation),
        has=_groups(file, arch, known),
        kinds=_kinds(file, arch, known, layers, context),
        rotated=file.optional_int(f"{arch}.rope.dimension_count", 2, 4096, head_dim),
        embedding_scale=math.sqrt(hidden) if known.scaled_embedding else 1.0,
        query_factor=_query_factor(file, arch, head_dim),
        pooling=_pooling(file, arch),
        rope_pairs=known.pairs,
        activation_type=_activation_type(file, arch),
        top_k=_top_k(file, arch),
        tied="output.weight" not in file.tensors,
    )
    _check(file, config)
    return config


def _of_all_layers(file: TensorTable, key: str, high: int, default: int | None = None) -> int:
    """A positive number, or one for each layer (llama.cpp, get_key_or_arr) where all are the same."""
    if key not in file.metadata and default is not None:
        return default
    if not isinstance(file.metadata.get(key), list | array):
        return file.require_int(key, 1, high)
    values = file.require_ints(key, 1, high)
    if len(values) == 0 or any(value != values[0] for value in values):
        raise UnsupportedError(f"{file.path}: {key}: layers of different sizes are not supported")
    return values[0]


def _activation(file: TensorTable, arch: str, default: str) -> str:
    name = file.optional_str(f"{arch}.hidden_activation", default)
    name = SAME_ACTIVATIONS.get(name, name)
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{file.path}: {arch}.hidden_activation: '{name:.40}' is not supported; {', '.join(ACTIVATIONS)} are")
    return name


def _groups(file: TensorTable, arch: str, known: Architecture) -> frozenset[str]:
    """Groups of layer_table.LAYER. BadFileError: USE_SUB_NORMS is no boolean."""
    has = known.has if file.optional_bool(f"{arch}.{USE_SUB_NORMS}", True) else known.has - {SUB_NORMS}
    return has | {INPUT_NORMS} if HEAD_NORMS in has and INPUT_NORM in file.tensors else has


def _kinds(file: TensorTable, arch: str, known: Architecture, layers: int, context: int) -> tuple[LayerKind, ...]:
    theta = file.optional_float(f"{arch}.rope.freq_base", 1.0, 1e12, 10000.0)
    window = file.optional_int(f"{arch}.attention.sliding_window", 0, 1 << 30, 0) if known.windows else 0
    rope = Rope(theta, read_scaling(file, arch, context, theta))
    sliding = LayerKind(Rope(file.optional_float(f"{arch}.rope.freq_base_swa", 1.0, 1e12, 10000.0)), window)
    seeing_all = LayerKind(rope if known.global_rope or not window else None)
    return tuple(sliding if window and slides else seeing_all for slides in _sliding(file, arch, layers))


def _sliding(file: TensorTable, arch: str, layers: int) -> list[bool]:
    """For each layer whether it sees a window, or a number: of every so many layers the last one does not (llama.cpp, load_swa_pattern)."""
    key = f"{arch}.attention.sliding_window_pattern"
    found = file.metadata.get(key)
    if not isinstance(found, list | array):
        period = file.optional_int(key, 1, 4097, WINDOW_PERIOD)
        return [(i + 1) % period != 0 for i in range(layers)]
    if len(found) != layers:
        raise BadFileError(file.path, key, f"has {len(found)} values, expected one for each of {layers} layers")
    return [bool(sliding) for sliding in found]


def _query_factor(file: TensorTable, arch: str, head_dim: int) -> float:
    scale = file.optional_float(f"{arch}.attention.scale", 0.0, 1e6, 0.0)
    factor = scale * math.sqrt(head_dim) if scale else 1.0  # 0 is llama.cpp's word for the usual one
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor  # the file holds a float32


def _activation_type(file: TensorTable, arch: str) -> str | None:
    key = f"{arch}.{ACTIVATION_TYPE}"
    return known_scheme(file.require_str(key), f"{file.path}: {key}") if key in file.metadata else None


def _top_k(file: TensorTable, arch: str) -> float:
    key = f"{arch}.{ACTIVATION_TOP_K}"
    share = file.optional_float(key, 0.0, 1.0, TOP_K)
    if share == 0.0:
        raise BadFileError(file.path, key, "is 0.0, expected more: nothing would be kept")
    return share


def _pooling(file: TensorTable, arch: str) -> str | None:
    kind = file.optional_int(f"{arch}.pooling_type", 0, 1 << 16, 0)
    if kind and kind not in POOLING:
        known = " and ".join(f"{number} ({name})" for number, name in POOLING.items())
        raise UnsupportedError(f"{file.path}: {arch}.pooling_type: {kind} is not supported; {known} are")
    return POOLING.get(kind)


def _neutral_sizes(file: TensorTable, c: ModelConfig) -> dict[str, tuple[float, ...]]:
    """As switches.NEUTRAL: keys that change nothing where they say what the model has anyway."""
    heads = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
    neutral: dict[str, tuple[float, ...]] = dict.fromkeys(heads, (0, c.head_dim))
    neutral |= {"embedding_length_out": (0, c.hidden), "embedding_scale": (0, c.embedding_scale)}
    window = file.optional_int(f"{c.architecture}.attention.sliding_window", 0, 1 << 30, 0)
    if not ARCHITECTURES[c.architecture].windows and window < c.context:  # a window that is never full shows everything
        neutral["attention.sliding_window"] = (0,)
    return neutral


def _check(file: TensorTable, c: ModelConfig) -> None:
    """Numbers that must agree with each other."""
    arch = c.architecture
    refuse_switches(file, arch, _neutral_sizes(file, c))
    if c.hidden % c.heads and f"{arch}.attention.key_length" not in file.metadata:
        raise BadFileError(file.path, f"{arch}.embedding_length", f"is {c.hidden}, not a multiple of {c.heads} heads")
    if c.heads % c.kv_heads:
        raise BadFileError(file.path, f"{arch}.attention.head_count_kv", f"is {c.kv_heads}, which does not divide {c.heads} heads")
    if c.head_dim % 2:
        raise BadFileError(file.path, f"{arch}.attention.key_length", f"is {c.head_dim}, expected an even number")
    value_dim = file.optional_int(f"{arch}.attention.value_length", 1, 4096, c.head_dim)
    if value_dim != c.head_dim:
        raise UnsupportedError(f"{file.path}: {arch}.attention.value_length: {value_dim} differs from the key length {c.head_dim}")
    key = f"{arch}.rope.dimension_count"
    if c.rotated > c.head_dim or c.rotated % 2:
        raise BadFileError(file.path, key, f"is {c.rotated}, expected an even number up to the head's {c.head_dim}")
    if c.rotated != c.head_dim and c.rope_pairs:  # llama.cpp ends with an error here too
        raise UnsupportedError(f"{file.path}: {key}: {c.rotated} differs from the head's {c.head_dim}, which {arch} rotates whole")
    if c.query_factor != 1.0 and HEAD_NORMS not in c.has:
        raise UnsupportedError(f"{file.path}: {arch}.attention.scale: is supported where queries have a norm, as in gemma3")
    tokens = file.optional_strings("tokenizer.ggml.tokens", None)  # more or fewer than rows: the tokenizer's business (text/from_gguf.py)
    declared = file.optional_int(f"{arch}.vocab_size", 1, 1 << 24, c.vocab)
    if declared != c.vocab and (tokens is None or declared != len(tokens)):
        raise BadFileError(file.path, f"{arch}.vocab_size", f"is {declared}, but token_embd.weight has {c.vocab} rows")
    if c.hidden % 32:
        raise UnsupportedError(f"{file.path}: {arch}.embedding_length: {c.hidden} is not a multiple of 32, which the head needs")
