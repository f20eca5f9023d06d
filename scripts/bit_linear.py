"""A trained float model's linear layers as BitLinear layers that can be moved from float to ternary gradually.

    weights      v = W / mean|W|            w = v + lambda * (clip(round(v), -1, 1) - v)             one scale a tensor
    activations  u = x * 127 / max|x|       q = u + lambda * (clip(round(u), -128, 127) - u)         one scale a token
    product      y = (q @ w.T) * mean|W| * max|x| / 127

lambda = 0 is the float layer, lambda = 1 is BitNet b1.58 (arXiv 2402.17764) with integers in the product. Between them it is the "warm-up
quantization" of Hugging Face's fine-tuning to 1.58 bits (huggingface/blog, 1_58_llm_extreme_quantization.md), x + lambda * (quant(x) - x),
written in units of the quantisation step. Gradients pass both roundings unchanged (straight-through estimator).
"""

from typing import Any

import torch
from activation_schemes import int8_per_token
from bitnet_torch import ternary
from torch import Tensor, nn


class _MixedProduct(torch.autograd.Function):
    """y = mixed(x) @ mixed(W).T. `dtype` is the matmul's: bfloat16 holds every int8 code and ternary value exactly, and rounds sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mix: Tensor, dtype: torch.dtype) -> Tensor:
        codes, factor = int8_per_token(x)
        values, scale = ternary(weight)
        # lerp is exact at both ends: at mix = 1 these are the integers themselves.
        codes = (x * factor).lerp(codes, mix).to(dtype)
        values = (weight / scale).lerp(values, mix).to(dtype)
        ctx.save_for_backward(codes, factor, values, scale)
        return (codes @ values.T).float() * (scale / factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, factor, values, scale = ctx.saved_tensors
        (grad,) = grads
        grad_x = ((grad * scale).to(codes.dtype) @ values).float()
        scaled = (grad / factor).to(codes.dtype).flatten(0, -2)
        grad_w = (scaled.T @ codes.flatten(0, -2)).float()
        return grad_x, grad_w, None, None


class BitLinear(nn.Module):
    """(..., inputs) float32 -> (..., rows) float32. `mix` is lambda, 0-dimensional; one tensor is shared by a whole model."""

    def __init__(self, weight: nn.Parameter, mix: Tensor, dtype: torch.dtype):
        super().__init__()
        self.weight, self.mix, self.dtype = weight, mix, dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _MixedProduct.apply(x, self.weight, self.mix, self.dtype)
        return y


def replace_linears(model: nn.Module, dtype: torch.dtype, keep: tuple[str, ...] = ("lm_head",)) -> Tensor:
    """Replace every nn.Linear below `model` but those named in `keep` by a BitLinear over the same parameter, in place.

    Returns lambda: fill it with a number in [0, 1]. It starts at 0, where the model computes what it did before. ValueError: a bias.
    """
    mix = torch.zeros(())
    for name, module in list(model.named_modules()):
        for child, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear) and child not in keep:
                if linear.bias is not None:
                    raise ValueError(f"{name}.{child} has a bias; BitLinear layers have none")
                setattr(module, child, BitLinear(linear.weight, mix, dtype))
    return mix


def set_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Type of every BitLinear's matmul: bfloat16 to train, float32 for numbers that are compared."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.dtype = dtype


def mix_at(progress: float, warm_up: float) -> float:
    """lambda at `progress` in [0, 1] of a run: linear from 0 to 1 over the first `warm_up` of it, then 1. warm_up 0: ternary at once."""
    return 1.0 if progress >= warm_up else progress / warm_up
