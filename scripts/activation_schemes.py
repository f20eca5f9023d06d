"""Activation schemes: how the inputs of a ternary model's projections are made integers, in PyTorch.

Every quantiser takes x (..., width) float32 and gives integer codes of that shape (as floats) and one factor a token (..., 1), with
x ~ codes / factor. All statistics are a token's. round() is half to even.

    int8      factor = 127 / max|x|          codes = clip(round(x * factor), -128, 127)      arXiv 2402.17764
    int4      factor = sqrt(7) / mean|x|     codes = clip(round(x * factor), -8, 7)          arXiv 2411.04965, equation 7
    fp4       factor = 12 / max|x|           codes = twice the nearest E2M1 value            arXiv 2411.04965, equations 8 and 9

max and mean are at least 1e-5. E2M1 has the values 0, .5, 1, 1.5, 2, 3, 4, 6, so its codes are 0, 1, 2, 3, 4, 6, 8, 12 with sign; of two
values equally near, the one with an even mantissa. Equation 9 as printed has floor(floor(log2|X|) + b) for the exponent; with b not an
integer this is one too small for some X and gives levels that E2M1 has not (10 of 12), so floor(log2|X| + b) is taken, as in LLM-FP4.

A scheme says what happens to the four inputs: of q, k, v; of o; of gate, up; of down.

    int8       int8 everywhere (BitNet b1.58)
    a4.8       int4 | largest half of |x| kept, then int8 | int4 | int8     (BitNet a4.8)
    a4.8-fp4   fp4 | fp4 | fp4 | int8                                       (BitNet a4.8, section 2.3)
    v2-a8      int8 everywhere, a Hadamard transform before that of o and down (BitNet v2, arXiv 2504.18415)
    v2-a4      int4 everywhere, the same transform
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Codes = tuple[Tensor, Tensor]
TOP_K = 0.5


def int8_per_token(x: Tensor) -> Codes:
    """(..., width) float -> integers in [-128, 127] as floats, and 127 / max|x| of each token, shape (..., 1)."""
    factor = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * factor).round().clamp(-128, 127), factor


def int4_per_token(x: Tensor) -> Codes:
    """(..., width) float -> integers in [-8, 7] as floats, and sqrt(7) / mean|x| of each token, shape (..., 1)."""
    factor = math.sqrt(7) / x.abs().mean(-1, keepdim=True).clamp(min=1e-5)
    return (x * factor).round().clamp(-8, 7), factor


def fp4_per_token(x: Tensor) -> Codes:
    """(..., width) float -> twice an E2M1 value, in [-12, 12] as floats, and 12 / max|x| of each token, shape (..., 1)."""
    factor = 12 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    scaled = x * factor
    size = scaled.abs()
    step = 1.0 + (size >= 4).to(x.dtype) + 2.0 * (size >= 8).to(x.dtype)
    return (scaled / step).round() * step, factor


def keep_largest(x: Tensor, share: float) -> Tensor:
    """x (..., width) with zeros where |x| is under the round(share * width)-th largest |x| of the token; equal values all stay."""
    size = x.abs()
    least = size.topk(round(share * x.shape[-1]), -1, sorted=False).values.amin(-1, keepdim=True)
    return torch.where(size >= least, x, 0.0)


def hadamard(x: Tensor) -> Tensor:
    """x @ H / sqrt(n), H the n x n Hadamard matrix in Sylvester's order; its own inverse. x: (..., width).

    n is the largest power of two that divides the width: for other widths x is transformed in width / n blocks (the paper's widths are
    powers of two, so the blocks are ours).
    """
    width = x.shape[-1]
    n = width & -width
    h = torch.ones(1, 1, dtype=x.dtype, device=x.device)
    while len(h) < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return (x.unflatten(-1, (width // n, n)) @ (h / math.sqrt(n))).flatten(-2)


@dataclass(frozen=True)
class Input:
    """What one input goes through: transform, top-k, quantiser, in this order."""

    quantise: Callable[[Tensor], Codes]
    top_k: float = 1.0
    hadamard: bool = False

    def transform(self, x: Tensor) -> Tensor:
        return hadamard(x) if self.hadamard else x

    def codes(self, x: Tensor) -> Codes:
        return self.quantise(keep_largest(x, self.top_k) if self.top_k < 1 else x)


@dataclass(frozen=True)
class Scheme:
    """The treatment of the four inputs of a block."""

    attention: Input
    o: Input
    feed_forward: Input
    down: Input

    @property
    def top_k(self) -> float:
        return self.o.top_k


INT8, INT4, FP4 = Input(int8_per_token), Input(int4_per_token), Input(fp4_per_token)
INT8_TURNED, INT4_TURNED = Input(int8_per_token, hadamard=True), Input(int4_per_token, hadamard=True)
SCHEMES = {
    "int8": Scheme(INT8, INT8, INT8, INT8),
    "a4.8": Scheme(INT4, Input(int8_per_token, top_k=TOP_K), INT4, INT8),
    "a4.8-fp4": Scheme(FP4, FP4, FP4, INT8),
    "v2-a8": Scheme(INT8, INT8_TURNED, INT8, INT8_TURNED),
    "v2-a4": Scheme(INT4, INT4_TURNED, INT4, INT4_TURNED),
}
