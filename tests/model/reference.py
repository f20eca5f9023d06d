"""The model from its formulas, in float64 NumPy and nothing else: the oracle that shares no code with the package.

BitNet b1.58 (arXiv 2402.17764, 2411.04965; transformers modeling_bitnet.py): rms norm, int8 activations by absmax, ternary weights with
one scale, NEOX rotary pairs, grouped-query attention, norms before the output and down projections, relu² or silu gate.

Int8 rounding makes the model discontinuous. Where a value stands within float32's error of a half, float32 may round it the other way;
one such code moves the logits by about 3e-3 of their size, and from that token on, since later tokens attend to it. How large that error
may be depends on what a value was summed from, so every value carries its own, from operation to operation. `forward` says how many times
its error each token's nearest value was away from a half, and `assert_agree` accepts a difference only where that is few.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .builder import Model

Doubles = NDArray[np.float64]
TIGHT = 1e-5  # of max|logits|: what float32 sums in another order give
LOOSE = 5e-2  # after a code has flipped
U = 2.0**-24  # one float32 operation errs by so much of its result at most, by 0.4 of it in the root mean square
# Distances to a half, in errors as `Rounded` counts them, that float32 may not see: five times the root mean square of what is expected,
# since an operation counts with U. Of some 30 codes that flipped in these tests none was farther than 0.8.
NEAR = 2.0


@dataclass
class Result:
    """logits (tokens, vocab); margin (tokens,): the smallest distance of a value to a rounding boundary, as a multiple of its error.

    states (tokens, hidden): what the logits are made of, after the output norm.
    """

    logits: Doubles
    margin: Doubles
    states: Doubles


@dataclass(frozen=True)
class Rounded:
    """Values, and how far float32 may be from each: errors of single operations, U of their results, add up as independent ones do."""

    value: Doubles
    variance: Doubles  # of the error, in units of U²

    def __add__(self, other: "Rounded") -> "Rounded":
        total = self.value + other.value
        return Rounded(total, self.variance + other.variance + total**2)

    def reshape(self, *shape: int) -> "Rounded":
        return Rounded(self.value.reshape(*shape), self.variance.reshape(*shape))


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

    def quantise(self, x: Rounded) -> Rounded:
        """The values that the int8 codes stand for."""
        if self.activations.exact:
            return x
        blocks, tokens = x.value.reshape(len(x.value), -1, self.activations.block or x.value.shape[-1]), len(x.value)
        variance, sizes = x.variance.reshape(blocks.shape), np.abs(blocks)
        at = sizes.argmax(-1)[..., None]
        largest = np.maximum(np.take_along_axis(sizes, at, -1), 1e-5)
        # Of the factor, as a share of it: its own rounding and the product's, and what the largest value errs by.
        share = 2 + np.take_along_axis(variance, at, -1) / largest**2
        scaled, factor = blocks * (127.0 / largest), 127.0 / largest
        error = U * np.sqrt(variance * factor**2 + scaled**2 * share)
        distance = np.abs(np.abs(scaled) % 1.0 - 0.5) / np.maximum(error, 1e-3 * U)
        self.margin = np.minimum(self.margin, distance.min((-1, -2)))
        step = (largest / 127.0).astype(np.float16).astype(np.float64) if self.activations.half else largest / 127.0
        values: Doubles = np.clip(np.rint(scaled), -128, 127) * step
        return Rounded(values.reshape(tokens, -1), (values**2 * share).reshape(tokens, -1))


def forward(model: Model, ids: list[int], activations: Activations = Activations()) -> Result:
    """Logits of every token of one text."""
    z, rounding = model.sizes, _Rounding(np.full(len(ids), np.inf), activations)
    embedded = model.embedding[ids].astype(np.float64) * model.embedding_scale
    x = Rounded(embedded, embedded**2)
    for layer in range(z.layers):
        x = _layer(model, layer, x, rounding)
    head = model.embedding if model.head is None else model.head
    states = _rms(x, model.norms["output_norm"], z.eps).value
    return Result(states @ head.T.astype(np.float64), rounding.margin, states)


def _layer(model: Model, layer: int, x: Rounded, rounding: _Rounding) -> Rounded:
    z, block, tokens = model.sizes, f"blk.{layer}", len(x.value)
    window = model.windows.get(layer, tokens)
    turning = model.rotated or z.head_dim
    cos, sin = _angles(tokens, turning, model.window_theta if layer in model.windows else z.theta, model.rope_factors)
    cos, sin = cos * model.rope_amplitude, sin * model.rope_amplitude

    def rotate(heads: Rounded) -> Rounded:
        if layer in model.still:
            return heads
        first = _rotate(Rounded(heads.value[..., :turning], heads.variance[..., :turning]), cos, sin)
        rest = (heads.value[..., turning:], heads.variance[..., turning:])
        return Rounded(np.concatenate([first.value, rest[0]], -1), np.concatenate([first.variance, rest[1]], -1))

    def linear(name: str, value: Rounded) -> Rounded:
        codes, ternary = rounding.quantise(norm(f"{name}_norm_in", value)), model.ternary[f"{block}.{name}"].T.astype(np.float64)
        scale = np.asarray(model.scales[f"{block}.{name}"], np.float64)  # one, or one a row
        product = codes.value @ ternary * scale
        made = Rounded(product, codes.variance @ ternary**2 * scale**2 + 2 * product**2)
        if rounding.activations.block and not rounding.activations.half:  # the engine's groups of 64 or 128 are added in float32
            made = Rounded(product, made.variance + len(ternary) / 128 * (codes.value**2 @ ternary**2 * scale**2))
        bias = model.biases.get(f"{block}.{name}")
        return made if bias is None else made + Rounded(bias + np.zeros_like(product), np.zeros_like(product))

    def norm(name: str, value: Rounded) -> Rounded:
        weight = model.norms.get(f"{block}.{name}")
        return value if weight is None else _rms(value, weight, z.eps)

    h = norm("attn_norm", x)
    q = rotate(norm("attn_q_norm", linear("attn_q", h).reshape(tokens, z.heads, z.head_dim)))
    k = rotate(norm("attn_k_norm", linear("attn_k", h).reshape(tokens, z.kv_heads, z.head_dim)))
    v = linear("attn_v", h).reshape(tokens, z.kv_heads, z.head_dim)
    mixed = _attend(q, k, v, model.query_scalar or z.head_dim, window)
    x = x + norm("post_attention_norm", linear("attn_output", norm("attn_sub_norm", mixed.reshape(tokens, -1))))
    h = norm("ffn_norm", x)
    hidden = _gated(ACTIVATIONS[model.activation], linear("ffn_gate", h), linear("ffn_up", h))
    return x + norm("post_ffw_norm", linear("ffn_down", norm("ffn_sub_norm", hidden)))


def _attend(q: Rounded, k: Rounded, v: Rounded, scalar: float, window: int) -> Rounded:
    """(tokens, heads, head_dim), keys and values of kv_heads. A sum of n addends a errs by all its partial sums: by n / 2 sum(a²)."""
    tokens, heads, dim = q.value.shape
    group, mixed, variance = heads // k.value.shape[1], np.empty_like(q.value), np.empty_like(q.value)
    for head in range(heads):
        qs, ks, vs = q.value[:, head], k.value[:, head // group], v.value[:, head // group]
        scores = qs @ ks.T / np.sqrt(scalar)
        unsure = (q.variance[:, head] @ ks.T**2 + qs**2 @ k.variance[:, head // group].T + dim / 2 * (qs**2 @ ks.T**2)) / scalar
        scores[np.triu_indices(tokens, 1)] = -np.inf
        scores[np.tril_indices(tokens, -window)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed[:, head] = weights @ vs
        # sum_j w_j² u_j (v_j - mixed)² for the weights, u_j of the exponents, 16 of exp itself
        of_weights = weights**2 * (unsure + 16 + np.where(weights > 0, scores, 0) ** 2)
        variance[:, head] = of_weights @ vs**2 - 2 * mixed[:, head] * (of_weights @ vs) + mixed[:, head] ** 2 * of_weights.sum(-1)[:, None]
        variance[:, head] += weights**2 @ v.variance[:, head // group] + tokens / 2 * (weights**2 @ vs**2) + 3 * mixed[:, head] ** 2
    return Rounded(mixed, variance)


def _gated(activation: Callable[[Doubles], Doubles], gate: Rounded, up: Rounded) -> Rounded:
    active, step = activation(gate.value), 1e-6
    slope = (activation(gate.value + step) - activation(gate.value - step)) / (2 * step)
    result = active * up.value
    return Rounded(result, gate.variance * (slope * up.value) ** 2 + up.variance * active**2 + 16 * result**2)  # 16: of exp


ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
}


def _rms(x: Rounded, weight: NDArray[np.float32], eps: float) -> Rounded:
    squares = (x.value**2).mean(-1, keepdims=True) + eps
    result = weight * x.value / np.sqrt(squares)
    of_root = (x.variance * x.value**2).mean(-1, keepdims=True) / (x.value.shape[-1] * squares**2)
    return Rounded(result, x.variance * weight**2 / squares + result**2 * (3 + of_root))


def _angles(tokens: int, head_dim: int, theta: float, factors: Doubles | None) -> tuple[Doubles, Doubles]:
    """cos and sin, (tokens, head_dim / 2). Frequencies and angles are float32, as in the code that trains such models."""
    powers = np.arange(0, head_dim, 2) / head_dim
    frequencies = (1.0 / (theta**powers).astype(np.float32)).astype(np.float32)
    if factors is not None:
        frequencies = (frequencies / factors).astype(np.float32)
    angles = (np.arange(tokens, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.cos(angles), np.sin(angles)


def _rotate(x: Rounded, cos: Doubles, sin: Doubles) -> Rounded:
    """Pairs (i, i + head_dim / 2) of (tokens, heads, head_dim)."""
    half, c, s = x.value.shape[-1] // 2, cos[:, None], sin[:, None]
    low, high = x.value[..., :half], x.value[..., half:]
    # Tables, products and their sum err.
    of_low, of_high = x.variance[..., :half] + 3 * low**2, x.variance[..., half:] + 3 * high**2
    variance = np.concatenate([of_low * c**2 + of_high * s**2, of_high * c**2 + of_low * s**2], -1)
    return Rounded(np.concatenate([low * c - high * s, high * c + low * s], -1), variance)


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
    assert margin[first] < NEAR, (
        f"row {first}: error {errors[first]:.1e}, and no value is within its error of a half ({margin[first]:.1f} times)"
    )
    assert errors.max() < LOOSE, f"row {int(errors.argmax())}: error {errors.max():.1e}"
    return first
