"""The model from its formulas, in float64 NumPy and nothing else: the oracle that shares no code with the package.

BitNet b1.58 (arXiv 2402.17764, 2411.04965; transformers modeling_bitnet.py): rms norm, int8 activations by absmax, ternary weights with
one scale, NEOX rotary pairs, grouped-query attention, norms before the output and down projections, relu² or silu gate.

Int8 rounding makes the model discontinuous. Where a value stands within float32's error of a half, float32 may round it the other way;
one such code moves the logits by about 3e-3 of their size, and from that token on, since later tokens attend to it. `forward` therefore
also says how near each token came to that, and `assert_agree` accepts a difference only where it did.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .builder import Model

Doubles = NDArray[np.float64]
TIGHT = 1e-5  # of max|logits|: what float32 sums in another order give
LOOSE = 5e-2  # after a code has flipped
# Distance to a half, as a share of the value: 16 units in float32's last place, after several roundings. A sum's error is a share of its
# largest addends, not of the sum: one code flipped at 1.3e-6 (docs/log.md, attention in blocks).
NEAR = 2e-6


@dataclass
class Result:
    """logits (tokens, vocab); margin (tokens,): the smallest distance of a value to a rounding boundary, as a share of that value.

    states (tokens, hidden): what the logits are made of, after the output norm.
    """

    logits: Doubles
    margin: Doubles
    states: Doubles


@dataclass(frozen=True)
class Activations:
    """Which int8 activations share a scale: `block` neighbours; 0: all of a token, as BitNet has it. `half`: that scale is a float16.

    `exact`: nothing is rounded.
    """

    block: int = 0
    half: bool = False
    exact: bool = False


# What llama.cpp quantises to before it multiplies (ggml-quants.c): Q8_K for TQ1_0 and TQ2_0, Q8_0 for Q2_0.
Q8_K, Q8_0 = Activations(256), Activations(32, half=True)
FLOAT = Activations(exact=True)


@dataclass
class _Rounding:
    margin: Doubles
    activations: Activations

    def quantise(self, x: Doubles) -> Doubles:
        """The values that the int8 codes stand for."""
        if self.activations.exact:
            return x
        blocks = x.reshape(len(x), -1, self.activations.block or x.shape[-1])
        largest = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-5)
        scaled = blocks * (127.0 / largest)
        distance = np.abs(np.abs(scaled) % 1.0 - 0.5) / np.maximum(np.abs(scaled), 1e-3)
        self.margin = np.minimum(self.margin, distance.min((-1, -2)))
        step = (largest / 127.0).astype(np.float16).astype(np.float64) if self.activations.half else largest / 127.0
        values: Doubles = np.clip(np.rint(scaled), -128, 127) * step
        return values.reshape(x.shape)


def forward(model: Model, ids: list[int], activations: Activations = Activations()) -> Result:
    """Logits of every token of one text."""
    z, rounding = model.sizes, _Rounding(np.full(len(ids), 0.5), activations)
    x = model.embedding[ids].astype(np.float64) * model.embedding_scale
    for layer in range(z.layers):
        x = _layer(model, layer, x, rounding)
    head = model.embedding if model.head is None else model.head
    states = _rms(x, model.norms["output_norm"], z.eps)
    return Result(states @ head.T.astype(np.float64), rounding.margin, states)


def _layer(model: Model, layer: int, x: Doubles, rounding: _Rounding) -> Doubles:
    z, block, window = model.sizes, f"blk.{layer}", model.windows.get(layer, len(x))
    tokens, group = len(x), z.heads // z.kv_heads
    turning = model.rotated or z.head_dim
    cos, sin = _angles(tokens, turning, model.window_theta if layer in model.windows else z.theta, model.rope_factors)
    cos, sin = cos * model.rope_amplitude, sin * model.rope_amplitude

    def rotate(heads: Doubles) -> Doubles:
        if layer in model.still:
            return heads
        return np.concatenate([_rotate(heads[..., :turning], cos, sin), heads[..., turning:]], -1)

    def linear(name: str, value: Doubles) -> Doubles:
        value = norm(f"{name}_norm_in", value)
        product = rounding.quantise(value) @ model.ternary[f"{block}.{name}"].T.astype(np.float64)
        scaled = product * np.asarray(model.scales[f"{block}.{name}"], np.float64)  # one, or one a row
        return scaled + model.biases.get(f"{block}.{name}", np.zeros(1))

    def norm(name: str, value: Doubles) -> Doubles:
        weight = model.norms.get(f"{block}.{name}")
        return value if weight is None else _rms(value, weight, z.eps)

    h = norm("attn_norm", x)
    q = rotate(norm("attn_q_norm", linear("attn_q", h).reshape(tokens, z.heads, z.head_dim)))
    k = rotate(norm("attn_k_norm", linear("attn_k", h).reshape(tokens, z.kv_heads, z.head_dim)))
    v = linear("attn_v", h).reshape(tokens, z.kv_heads, z.head_dim)
    mixed = np.empty_like(q)
    for head in range(z.heads):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(model.query_scalar or z.head_dim)
        scores[np.triu_indices(tokens, 1)] = -np.inf
        scores[np.tril_indices(tokens, -window)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // group]
    x = x + norm("post_attention_norm", linear("attn_output", norm("attn_sub_norm", mixed.reshape(tokens, -1))))
    h = norm("ffn_norm", x)
    gate, up = linear("ffn_gate", h), linear("ffn_up", h)
    return x + norm("post_ffw_norm", linear("ffn_down", norm("ffn_sub_norm", ACTIVATIONS[model.activation](gate) * up)))


ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
}


def _rms(x: Doubles, weight: NDArray[np.float32], eps: float) -> Doubles:
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _angles(tokens: int, head_dim: int, theta: float, factors: Doubles | None) -> tuple[Doubles, Doubles]:
    """cos and sin, (tokens, head_dim / 2). Frequencies and angles are float32, as in the code that trains such models."""
    powers = np.arange(0, head_dim, 2) / head_dim
    frequencies = (1.0 / (theta**powers).astype(np.float32)).astype(np.float32)
    if factors is not None:
        frequencies = (frequencies / factors).astype(np.float32)
    angles = (np.arange(tokens, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.cos(angles), np.sin(angles)


def _rotate(x: Doubles, cos: Doubles, sin: Doubles) -> Doubles:
    """Pairs (i, i + head_dim / 2) of (tokens, heads, head_dim)."""
    half = x.shape[-1] // 2
    low, high, c, s = x[..., :half], x[..., half:], cos[:, None], sin[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], -1)


def row_errors(got: NDArray[np.float32], want: Doubles) -> Doubles:
    """Largest difference in each row, as a share of the largest logit of all."""
    assert got.shape == want.shape
    error: Doubles = np.abs(got.astype(np.float64) - want).max(-1) / np.abs(want).max()
    return error


def assert_agree(got: NDArray[np.float32], want: NDArray[np.float32] | Doubles, margin: Doubles) -> int:
    """Every row within TIGHT, up to a token with a value so near a half that float32 cannot tell. Returns how many rows were TIGHT."""
    errors = row_errors(got, np.asarray(want, np.float64))
    wrong = np.flatnonzero(~(errors <= TIGHT))
    if not len(wrong):
        return len(errors)
    first = int(wrong[0])
    assert margin[first] < NEAR, f"row {first}: error {errors[first]:.1e}, and no value is near a rounding boundary ({margin[first]:.1e})"
    assert errors.max() < LOOSE, f"row {int(errors.argmax())}: error {errors.max():.1e}"
    return first
