"""The training code's quantisers against their formulas in NumPy, and straight-through gradients. PyTorch comes with the extra `train`."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.live
Floats = NDArray[np.float32]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


@pytest.fixture
def schemes(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)").set_num_threads(1)
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    return importlib.import_module("activation_schemes")


def tokens(width: int = 96) -> Floats:
    """Ordinary tokens, one with an outlier, one of tiny values (below the clamp), one of zeros."""
    x = np.random.default_rng(7).standard_normal((9, width)).astype(np.float32)
    x[3, 5], x[4], x[5] = 40, x[4] * 1e-7, 0
    return x


def nearest_e2m1(x: float) -> float:
    """By search over the eight values; of two equally near, the one whose last mantissa bit is 0, every other one in the list."""
    distance = np.abs(E2M1 - abs(x))
    best = [i for i in range(8) if distance[i] == distance.min()]
    return float(np.copysign(E2M1[next(i for i in best if len(best) == 1 or i % 2 == 0)], x))


def test_int8(schemes: ModuleType) -> None:
    import torch

    x = tokens()
    codes, factor = schemes.int8_per_token(torch.from_numpy(x))
    expected = np.float32(127) / np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5))
    assert np.allclose(factor.numpy(), expected, rtol=2e-7)  # PyTorch's scalar / tensor is a product with the reciprocal
    assert np.array_equal(codes.numpy(), np.clip(np.rint(x * factor.numpy()), -128, 127))


def test_int4(schemes: ModuleType) -> None:
    import torch

    x = tokens()
    codes, factor = schemes.int4_per_token(torch.from_numpy(x))
    expected = np.sqrt(7) / np.maximum(np.abs(x.astype(np.float64)).mean(1, keepdims=True), 1e-5)
    assert np.allclose(factor.numpy(), expected, rtol=1e-6)
    assert np.array_equal(codes.numpy(), np.clip(np.rint(x * factor.numpy()), -8, 7))
    assert codes.min() == -8
    assert codes.max() == 7


def test_fp4(schemes: ModuleType) -> None:
    """Codes are twice the E2M1 value that is nearest to 6 x / max|x|, also where two are equally near."""
    import torch

    x = tokens()
    x[0, :8], x[0, 8:] = np.array([6, 2.5, 5, -3.5, 0.25, 0.75, 1.25, -1.75]), 0  # 6 makes the factor exact: seven ties
    codes, factor = schemes.fp4_per_token(torch.from_numpy(x))
    expected = np.float32(12) / np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5))
    assert np.allclose(factor.numpy(), expected, rtol=2e-7)
    assert codes[0, :8].tolist() == [12, 4, 8, -8, 0, 2, 2, -4]
    nearest = np.vectorize(nearest_e2m1)((x * factor.numpy()).astype(np.float64) / 2)
    assert np.array_equal(codes.numpy(), 2 * nearest)


def test_fp4_is_equations_8_and_9(schemes: ModuleType) -> None:
    """The paper's own form with M = 1, E = 2, the exponent taken as floor(log2|X| + b)."""
    import torch

    x = tokens()[:3].astype(np.float64)
    codes, factor = schemes.fp4_per_token(torch.from_numpy(x))
    b = np.log2((2 - 2**-1) / np.abs(x).max(1, keepdims=True)) + 2**2 - 1
    gamma = 2 ** np.maximum(np.floor(np.log2(np.abs(x)) + b), 1)
    assert np.allclose(codes / factor, gamma / 2 ** (1 + b) * np.rint(2 ** (1 + b) / gamma * x), rtol=1e-12)


def test_top_k(schemes: ModuleType) -> None:
    import torch

    x = tokens()
    kept = schemes.keep_largest(torch.from_numpy(x), 0.5).numpy()
    least = np.sort(np.abs(x), 1)[:, -48][:, None]
    assert np.array_equal(kept, np.where(np.abs(x) >= least, x, 0))
    assert ((kept != 0).sum(1)[:5] == 48).all()
    ties = torch.tensor([[2.0, -1.0, 1.0, 1.0, 0.5, -1.0]])
    assert schemes.keep_largest(ties, 0.5).tolist() == [[2.0, -1.0, 1.0, 1.0, 0.0, -1.0]]


@pytest.mark.parametrize(("width", "block"), [(256, 256), (768, 256), (96, 32), (7, 1)])
def test_hadamard(schemes: ModuleType, width: int, block: int) -> None:
    """Entry (i, j) of Sylvester's matrix is -1 to the number of common one bits of i and j."""
    import torch

    x = tokens(width)
    index = np.arange(block)
    bits = np.bitwise_and.outer(index, index)
    h = np.where(np.vectorize(lambda v: int(v).bit_count() % 2)(bits), -1, 1) / np.sqrt(block)
    expected = (x.astype(np.float64).reshape(9, -1, block) @ h).reshape(9, width)
    found = schemes.hadamard(torch.from_numpy(x))
    assert np.allclose(found.numpy(), expected, atol=2e-5 * np.abs(x).max())
    assert np.allclose(schemes.hadamard(found).numpy(), x, atol=2e-5 * np.abs(x).max())


@pytest.mark.parametrize("name", ["int8", "a4.8", "a4.8-fp4", "v2-a8", "v2-a4"])
def test_straight_through(schemes: ModuleType, name: str) -> None:
    """The gradient of every input is that of a float layer with the ternary weights; through H where there is one."""
    import torch
    from bitnet_torch import project, ternary

    torch.manual_seed(3)
    module = torch.nn.Module()
    module.layer = torch.nn.Linear(96, 8, bias=False)
    values, scale = ternary(module.layer.weight.detach())
    grad = torch.randn(9, 8)
    scheme = schemes.SCHEMES[name]
    for treatment in (scheme.attention, scheme.o, scheme.feed_forward, scheme.down):
        x = torch.from_numpy(tokens()).requires_grad_()
        project(module, x, ["layer"], treatment, torch.float32)[0].backward(grad)
        expected = grad @ (values * scale)
        assert torch.allclose(x.grad, schemes.hadamard(expected) if treatment.hadamard else expected, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "a4.8", "a4.8-fp4", "v2-a8", "v2-a4"])
def test_products_are_of_the_codes(schemes: ModuleType, name: str) -> None:
    """What a layer computes is integer codes times ternary values, and each input has the quantiser that the papers give it."""
    import torch
    from bitnet_torch import BitNet, Shape, project, ternary

    model = BitNet(Shape(vocab_size=32, hidden=64, feed_forward=96, layers=1, context=16), name)
    block = model.layers[0]
    inputs = (*block.self_attn.inputs, *block.mlp.inputs)
    quantisers = [treatment.quantise.__name__.removesuffix("_per_token") for treatment in inputs]
    assert quantisers == {"a4.8": ["int4", "int8", "int4", "int8"], "a4.8-fp4": ["fp4", "fp4", "fp4", "int8"], "v2-a4": ["int4"] * 4}.get(
        name, ["int8"] * 4
    )
    assert [t.top_k for t in inputs] == [1, 0.5 if name == "a4.8" else 1, 1, 1]
    assert [t.hadamard for t in inputs] == [False, name.startswith("v2"), False, name.startswith("v2")]
    x = torch.from_numpy(tokens(64))
    codes, factor = inputs[1].codes(inputs[1].transform(x))
    values, scale = ternary(block.self_attn.o_proj.weight)
    expected = codes.double() @ values.double().T * (scale.double() / factor.double())
    assert torch.allclose(project(block.self_attn, x, ["o_proj"], inputs[1], torch.float32)[0].double(), expected, rtol=1e-5)
