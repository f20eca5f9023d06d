"""GGUF metadata -> the sizes and switches of a model, checked. One forward pass serves all: an architecture is a row of `ARCHITECTURES`.

Keys are `<arch>.<name>` as llama.cpp registers them (facts: `block_count`, `embedding_length`, `attention.head_count` ...).
"""

from dataclasses import dataclass

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile


@dataclass(frozen=True)
class Architecture:
    """What the name of an architecture implies."""

    activation: str  # where the key `hidden_activation` is absent
    sub_norms: bool  # norms before the output and down projections


# `bitnet-25` is the name in Microsoft's first release of BitNet 2B-4T; `bitnet` is llama.cpp's, for the SiLU models of 1bitLLM.
ARCHITECTURES = {
    "bitnet-b1.58": Architecture("relu2", sub_norms=True),
    "bitnet-25": Architecture("relu2", sub_norms=True),
    "bitnet": Architecture("silu", sub_norms=True),
}
ACTIVATIONS = ("relu2", "silu")


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
    rope_theta: float
    activation: str
    sub_norms: bool
    tied: bool  # the embedding is also the head

    @property
    def inner(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def ternary_weights(self) -> int:
        kv = self.kv_heads * self.head_dim
        return self.layers * self.hidden * (2 * self.inner + 2 * kv + 3 * self.feed_forward)


def read_config(file: GGUFFile) -> ModelConfig:
    """Config of an open file. BadFileError: a key is absent, of the wrong type, out of range or at odds with another."""
    arch = file.require_str("general.architecture")
    known = ARCHITECTURES.get(arch)
    if known is None:
        raise UnsupportedError(f"{file.path}: general.architecture: '{arch}' is not supported; supported are {', '.join(ARCHITECTURES)}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadFileError(file.path, "tensor token_embd.weight", "is missing or not a matrix")
    heads = file.require_int(f"{arch}.attention.head_count", 1, 4096)
    hidden = file.require_int(f"{arch}.embedding_length", 1, 1 << 20)
    head_dim = file.optional_int(f"{arch}.attention.key_length", 2, 4096, hidden // heads)
    scaling = file.optional_str(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedError(f"{file.path}: {arch}.rope.scaling.type: '{scaling}' is not supported; supported is none")
    config = ModelConfig(
        architecture=arch,
        name=file.optional_str("general.name", file.path.stem),
        layers=file.require_int(f"{arch}.block_count", 1, 4096),
        hidden=hidden,
        feed_forward=file.require_int(f"{arch}.feed_forward_length", 1, 1 << 22),
        heads=heads,
        kv_heads=file.optional_int(f"{arch}.attention.head_count_kv", 1, 4096, heads),
        head_dim=head_dim,
        vocab=file.optional_int(f"{arch}.vocab_size", 1, 1 << 24, embedding.shape[0]),
        context=file.require_int(f"{arch}.context_length", 1, 1 << 24),
        norm_eps=file.require_float(f"{arch}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_theta=file.optional_float(f"{arch}.rope.freq_base", 1.0, 1e12, 10000.0),
        activation=file.optional_str(f"{arch}.hidden_activation", known.activation, ACTIVATIONS),
        sub_norms=known.sub_norms,
        tied="output.weight" not in file.tensors,
    )
    _check(file, config)
    return config


def _check(file: GGUFFile, c: ModelConfig) -> None:
    """Numbers that must agree with each other."""
    arch = c.architecture
    if c.hidden % c.heads and f"{arch}.attention.key_length" not in file.metadata:
        raise BadFileError(file.path, f"{arch}.embedding_length", f"is {c.hidden}, not a multiple of {c.heads} heads")
    if c.heads % c.kv_heads:
        raise BadFileError(file.path, f"{arch}.attention.head_count_kv", f"is {c.kv_heads}, which does not divide {c.heads} heads")
    if c.head_dim % 2:
        raise BadFileError(file.path, f"{arch}.attention.key_length", f"is {c.head_dim}, expected an even number")
    value_dim = file.optional_int(f"{arch}.attention.value_length", 1, 4096, c.head_dim)
    if value_dim != c.head_dim:
        raise UnsupportedError(f"{file.path}: {arch}.attention.value_length: {value_dim} differs from the key length {c.head_dim}")
    rotary = file.optional_int(f"{arch}.rope.dimension_count", 1, 4096, c.head_dim)
    if rotary != c.head_dim:
        raise UnsupportedError(f"{file.path}: {arch}.rope.dimension_count: {rotary} differs from the head's {c.head_dim}")
    tokens = file.optional_strings("tokenizer.ggml.tokens", None)
    if tokens is not None and len(tokens) != c.vocab:
        raise BadFileError(file.path, "tokenizer.ggml.tokens", f"has {len(tokens)} tokens, but the model has {c.vocab}")
    for key, width in (("embedding_length", c.hidden), ("feed_forward_length", c.feed_forward), ("attention heads", c.inner)):
        if width % 128:
            raise UnsupportedError(f"{file.path}: {arch}.{key}: {width} is not a multiple of 128, which I2_S rows need")
