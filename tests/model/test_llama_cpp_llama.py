"""Architecture `llama` in llama.cpp and here: q and k rows ordered for rotations of neighbours, RoPE divisors, no sub-norms, a head of its
own, attention wider than the model. test_llama_cpp.py says what may differ and why.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.sequence import Sequence

from .builder import Model, Sizes, f32, packed, random_model, write_model
from .families import LLAMA3, llama3_factors, write
from .reference import Q8_K, assert_agree, forward
from .test_llama_cpp import BOUND, by_llama_cpp, needs_llama_cpp, relative_rms

pytestmark = needs_llama_cpp

SIZES = Sizes(hidden=256, feed_forward=768, heads=4, kv_heads=2, head_dim=128, theta=500000.0, context=128)
IDS = [256, *b"The quick brown fox jumps over"]


def side_by_side(values: NDArray[np.int8], head_dim: int) -> NDArray[np.int8]:
    """Rows i and i + head_dim / 2 of each head -> 2 i and 2 i + 1."""
    order = [head + i + half for head in range(0, len(values), head_dim) for i in range(head_dim // 2) for half in (0, head_dim // 2)]
    return values[order]


@pytest.fixture(scope="module")
def model() -> Model:
    """The seed is one whose values keep away from halves."""
    made = random_model(SIZES, seed=22, activation="silu", embedding=TensorType.F32, tied=False)
    made.norms = {name: weight for name, weight in made.norms.items() if "sub_norm" not in name}
    made.rope_factors = llama3_factors(SIZES, LLAMA3)
    return made


@pytest.fixture(scope="module")
def source(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert model.rope_factors is not None
    tensors: dict[str, Any] = {"rope_freqs.weight": f32("rope_freqs.weight", model.rope_factors)}
    for name, values in model.ternary.items():
        if name.endswith(("attn_q", "attn_k")):
            tensors[f"{name}.weight"] = packed(f"{name}.weight", side_by_side(values, SIZES.head_dim), float(model.scales[name]))
    return write_model(tmp_path_factory.mktemp("llama") / "i2_s.gguf", model, arch="llama", tensors=tensors)


def test_ours_are_those_of_the_formulas(model: Model, source: Path, text_of: Callable[..., Sequence]) -> None:
    want = forward(model, IDS)
    assert assert_agree(text_of(source).feed_all(IDS), want.logits, want.margin) >= len(IDS) // 2


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_theirs_are_those_of_the_formulas(kind: str, model: Model, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    quantize(source, tmp_path / "m.gguf", kind, quiet=True)
    want = forward(model, IDS, Q8_K)
    got = by_llama_cpp(tmp_path / "m.gguf", IDS)
    assert assert_agree(got, want.logits, want.margin) >= len(IDS) // 2
    # The comparison sees the divisors: without them it fails.
    model.rope_factors, kept = None, model.rope_factors
    try:
        other = forward(model, IDS, Q8_K)
    finally:
        model.rope_factors = kept
    with pytest.raises(AssertionError):
        assert_agree(got, other.logits, other.margin)


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_a_converted_folder(kind: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """From a Hugging Face folder like Falcon3-1.58bit, with a head_dim of its own and Llama 3.1's RoPE."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = write(models, tmp_path / "hf", "llama", "C_packed", rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    convert(folder, tmp_path / "m.gguf", outtype=kind, quiet=True)
    ids = np.random.default_rng(0).integers(3, 282, 24).tolist()
    ours = text_of(tmp_path / "m.gguf").feed_all(ids)
    assert relative_rms(by_llama_cpp(tmp_path / "m.gguf", ids), ours) < BOUND
