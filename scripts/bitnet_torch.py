"""The training model: BitNet b1.58 in PyTorch, with straight-through gradients.

Token ids (batch, length) int64 -> logits (batch, length, vocabulary) float32. Names of parameters are those of transformers'
`BitNetForCausalLM`, so a state dict becomes a Hugging Face folder without renaming. The forward pass here is the truth that the
inference engine is compared with; arithmetic follows arXiv 2402.17764 and its "Training Tips, Code and FAQ":

    weights      s = mean|W| (at least 1e-5)          w = clip(round(W / s), -1, 1)          one scale a tensor
    activations  a = 127 / max|x| (at least 1e-5)     q = clip(round(x * a), -128, 127)      one scale a token
    product      y = (q @ w.T) * s / a                integers until the end

With `Shape.group`, as in Bonsai's files, so many neighbours in a row of W have a scale of their own, a float16 number, and so have as many
neighbours of x. Other activations (BitNet a4.8, BitNet v2) are activation_schemes.py's. Gradients pass both roundings, clipping and top-k
unchanged (straight-through estimator).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from activation_schemes import SCHEMES, Input, int8_per_token
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Every input width of a projection must be a multiple of 128 for I2_S."""

    vocab_size: int = 4096
    hidden: int = 256
    feed_forward: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    group: int = 0  # weights that share a scale; 0: all of a matrix
    hidden_act: str = "relu2"

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, cols) float -> values in {-1, 0, 1} of the same shape, and the scale mean|W| (0-dimensional)."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


def ternary_groups(weight: Tensor, group: int) -> Tensor:
    """(rows, cols) float -> the same with {-1, 0, 1} times the mean |W| of each `group` neighbours, rounded to float16."""
    parts = weight.unflatten(-1, (-1, group))
    scale = parts.abs().mean(-1, keepdim=True).clamp(min=1e-5).half().float()
    return ((parts / scale).round().clamp(-1, 1) * scale).flatten(-2)


def int8_groups(x: Tensor, group: int) -> Tensor:
    """(..., cols) float -> the same as int8 codes divided by a factor of each `group` neighbours."""
    codes, factor = int8_per_token(x.unflatten(-1, (-1, group)))
    return (codes / factor).flatten(-2)


class _BitProduct(torch.autograd.Function):
    """y = codes / factor @ ternary(W).T for several weights that share one input x, quantised to codes and factor.

    `dtype` is the matmul's: bfloat16 holds every code and ternary value exactly, only sums are rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, factor: Tensor, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        codes = codes.to(dtype)
        pairs = [ternary(w) for w in weights]
        stacked = torch.cat([w for w, _ in pairs]).to(dtype)
        scales = torch.cat([s.expand(len(w)) for w, s in pairs])
        ctx.save_for_backward(codes, factor, stacked, scales)
        ctx.rows = [len(w) for w in weights]
        y = (codes @ stacked.T).float() * (scales / factor)
        return tuple(y.split(ctx.rows, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, factor, stacked, scales = ctx.saved_tensors
        grad = torch.cat(grads, -1)
        grad_x = ((grad * scales).to(codes.dtype) @ stacked).float()
        scaled = (grad / factor).to(codes.dtype).flatten(0, -2)
        grad_w = (scaled.T @ codes.flatten(0, -2)).float()
        return grad_x, None, None, None, *grad_w.split(ctx.rows)


def project(
    module: nn.Module, x: Tensor, names: list[str], treatment: Input | None, dtype: torch.dtype, group: int = 0
) -> tuple[Tensor, ...]:
    """x through the bias-free projections `names` of `module`, which share it; treatment None: in float. group: as in Shape."""
    weights = [getattr(module, name).weight for name in names]
    if treatment is not None and group:
        x = x + (int8_groups(x, group) - x).detach()
        return tuple(F.linear(x, w + (ternary_groups(w, group) - w).detach()) for w in weights)
    if treatment is not None:
        x = treatment.transform(x)
        return _BitProduct.apply(x, *treatment.codes(x.detach()), dtype, *weights)
    y = (x.to(dtype) @ torch.cat(weights).to(dtype).T).float()
    return tuple(y.split([len(w) for w in weights], -1))


def add_linears(module: nn.Module, sizes: dict[str, tuple[int, int]]) -> None:
    """Attributes `<name>.weight` of (rows, inputs), as transformers names them; `sizes` gives (inputs, rows)."""
    for name, (inputs, rows) in sizes.items():
        module.add_module(name, nn.Linear(inputs, rows, bias=False))


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE over pairs (i, i + head_dim / 2); x: (batch, heads, length, head_dim)."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, softmax in float32. q: (batch, heads, length, head_dim); k, v: with kv_heads, each for heads / kv_heads of q.

    Written out because it is trained on CPUs: compiled, forward and backward take half the time of PyTorch's fused kernel there (bfloat16).
    """
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, s: Shape, scheme: str | None):
        super().__init__()
        kv = s.kv_heads * s.head_dim
        outputs = {"q_proj": s.hidden, "k_proj": kv, "v_proj": kv, "o_proj": s.hidden}
        add_linears(self, {name: (s.hidden, rows) for name, rows in outputs.items()})
        self.attn_sub_norm, self.shape = Norm(s.hidden, s.norm_eps), s
        self.inputs = (SCHEMES[scheme].attention, SCHEMES[scheme].o) if scheme else (None, None)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        batch, length, _ = x.shape
        parts = project(self, x, ["q_proj", "k_proj", "v_proj"], self.inputs[0], dtype, self.shape.group)
        q, k, v = (p.view(batch, length, -1, self.shape.head_dim).transpose(1, 2) for p in parts)
        q, k = rotate(q, *rope), rotate(k, *rope)
        mixed = attend(q.to(dtype), k.to(dtype), v.to(dtype))
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1).float()
        return project(self, self.attn_sub_norm(mixed), ["o_proj"], self.inputs[1], dtype, self.shape.group)[0]


class FeedForward(nn.Module):
    """GLU: down(norm(relu(gate x)² * up x)), or with SiLU in place of ReLU²."""

    def __init__(self, s: Shape, scheme: str | None):
        super().__init__()
        wide, narrow = (s.hidden, s.feed_forward), (s.feed_forward, s.hidden)
        add_linears(self, {"gate_proj": wide, "up_proj": wide, "down_proj": narrow})
        self.ffn_sub_norm, self.shape = Norm(s.feed_forward, s.norm_eps), s
        self.inputs = (SCHEMES[scheme].feed_forward, SCHEMES[scheme].down) if scheme else (None, None)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        gate, up = project(self, x, ["gate_proj", "up_proj"], self.inputs[0], dtype, self.shape.group)
        opened = F.silu(gate) if self.shape.hidden_act == "silu" else F.relu(gate).square()
        return project(self, self.ffn_sub_norm(opened * up), ["down_proj"], self.inputs[1], dtype, self.shape.group)[0]


class Block(nn.Module):
    def __init__(self, s: Shape, scheme: str | None):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(s.hidden, s.norm_eps), Attention(s, scheme)
        self.post_attention_layernorm, self.mlp = Norm(s.hidden, s.norm_eps), FeedForward(s, scheme)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, dtype)
        return x + self.mlp(self.post_attention_layernorm(x), dtype)


class BitNet(nn.Module):
    """Decoder with a tied head. `scheme` is a key of SCHEMES; None gives the float model of the same shape."""

    def __init__(self, shape: Shape, scheme: str | None = "int8"):
        super().__init__()
        self.shape, self.scheme = shape, scheme
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, scheme) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                depth = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * depth)

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        half = self.shape.head_dim // 2
        frequency = self.shape.rope_theta ** (-torch.arange(half, device=self.norm.weight.device) / half)
        angle = torch.arange(length, device=frequency.device)[:, None] * frequency
        return torch.cat((angle.cos(),) * 2, -1), torch.cat((angle.sin(),) * 2, -1)

    def forward(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        x, rope = self.embed_tokens(ids), self.rope(ids.shape[1])
        for block in self.layers:
            x = block(x, rope, dtype)
        return (self.norm(x).to(dtype) @ self.embed_tokens.weight.to(dtype).T).float()
