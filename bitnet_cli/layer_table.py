"""The tensors of a decoder's layer in one table: names, shapes, and which models have them. Checkpoint, loader and bench read it.

Names are GGUF's inside `blk.N.` (llama.cpp, gguf-py/gguf/constants.py; those that end in `_norm_in`: microsoft/BitNet,
docs/bitnet-embeddings-i2s-guide.md, section 3.2). A shape is a letter for each dimension:

    h  hidden       f  feed-forward       q  heads * head_dim       k  KV heads * head_dim       d  head_dim
"""

from typing import NamedTuple, Protocol

# Groups of tensors: a model has all of one or none.
EVERY = "every"
SUB_NORMS = "sub_norms"  # before the output and down projections (BitNet)
INPUT_NORMS = "input_norms"  # of every projection's input (BitNet embedding models)
HEAD_NORMS = "head_norms"  # of every query and key head, before RoPE (Qwen3, Gemma3)
OUT_NORMS = "out_norms"  # of what attention and feed-forward add to the residual stream (Gemma3)
QKV_BIASES = "qkv_biases"  # what is added to queries, keys and values (Qwen2)


class Tensor(NamedTuple):
    name: str  # blk.N.<name>.weight, or blk.N.<name> of a bias
    shape: str  # of a projection (rows, cols), of a norm or bias its length
    group: str = EVERY

    @property
    def is_projection(self) -> bool:
        """A ternary matrix; all others are vectors of floats."""
        return len(self.shape) == 2


# In the order in which a layer computes, and in which files are written.
LAYER = (
    Tensor("attn_norm", "h"),
    Tensor("attn_q_norm_in", "h", INPUT_NORMS),
    Tensor("attn_q", "qh"),
    Tensor("attn_q.bias", "q", QKV_BIASES),
    Tensor("attn_k_norm_in", "h", INPUT_NORMS),
    Tensor("attn_k", "kh"),
    Tensor("attn_k.bias", "k", QKV_BIASES),
    Tensor("attn_v_norm_in", "h", INPUT_NORMS),
    Tensor("attn_v", "kh"),
    Tensor("attn_v.bias", "k", QKV_BIASES),
    Tensor("attn_q_norm", "d", HEAD_NORMS),
    Tensor("attn_k_norm", "d", HEAD_NORMS),
    Tensor("attn_sub_norm", "q", SUB_NORMS),
    Tensor("attn_output_norm_in", "q", INPUT_NORMS),
    Tensor("attn_output", "hq"),
    Tensor("post_attention_norm", "h", OUT_NORMS),
    Tensor("ffn_norm", "h"),
    Tensor("ffn_gate_norm_in", "h", INPUT_NORMS),
    Tensor("ffn_gate", "fh"),
    Tensor("ffn_up_norm_in", "h", INPUT_NORMS),
    Tensor("ffn_up", "fh"),
    Tensor("ffn_sub_norm", "f", SUB_NORMS),
    Tensor("ffn_down_norm_in", "f", INPUT_NORMS),
    Tensor("ffn_down", "hf"),
    Tensor("post_ffw_norm", "h", OUT_NORMS),
)
ORDER = {tensor.name: number for number, tensor in enumerate(LAYER)}
PROJECTIONS = tuple(tensor.name for tensor in LAYER if tensor.is_projection)  # order of arrays.Q .. arrays.DOWN
VECTORS = tuple(tensor.name for tensor in LAYER if not tensor.is_projection)
BIASES = tuple(tensor.name for tensor in LAYER if tensor.group == QKV_BIASES)  # in the order of what they are added to


def file_name(name: str) -> str:
    """GGUF's name of a tensor, from one without `.weight`."""
    return name if name.endswith(".bias") else f"{name}.weight"


class Dimensions(Protocol):
    """What has the sizes of a model."""

    @property
    def hidden(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def shapes(c: Dimensions) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of LAYER in a model of these sizes."""
    sizes = {"h": c.hidden, "f": c.feed_forward, "q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "d": c.head_dim}
    return {tensor.name: tuple(sizes[letter] for letter in tensor.shape) for tensor in LAYER}


def projection_shapes(c: Dimensions) -> dict[str, tuple[int, int]]:
    """Name -> (rows, cols) of each of PROJECTIONS, in their order."""
    found = shapes(c)
    return {name: (found[name][0], found[name][1]) for name in PROJECTIONS}


def layer_weights(c: Dimensions) -> int:
    """Ternary weights of a layer."""
    return sum(rows * cols for rows, cols in projection_shapes(c).values())
