"""The causal families beside BitNetForCausalLM: checkpoints with the published models' names, widths and switches, converted and run,
against the formulas (reference.py) and against transformers in float32.

1bitLLM's own class is not in transformers. Its arithmetic is that of BitNetForCausalLM with silu, under other names, so that class gets its
weights.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.sequence import Sequence

from .builder import Model
from .families import LLAMA3, llama3_factors, model_of, write
from .reference import assert_agree, forward
from .test_oracle import compare, hf_of, oracle_of, prompts

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> kind of scripts/make_test_models.py, flavour, changes to config.json
    "1bitLLM, widths of 64": ("1bitllm", "E_master", {}),
    "1bitLLM, a width of 4": ("1bitllm-xl", "E_master", {}),
    "Falcon3 and Llama3-8B-1.58": ("llama", "C_packed", {}),
    "Falcon-E, revision bfloat16": ("llama", "D_dequantised", {}),
    "Falcon-E, revision prequantized": ("llama", "E_master", {}),
    "Llama 3.1's RoPE": ("llama", "C_packed", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Model]:
    """Folder, converted file, and the arrays that they hold."""
    kind, flavour, config = CASES[request.param]
    base = tmp_path_factory.mktemp("family")
    folder = write(models, base / "hf", kind, flavour, **config)
    convert(folder, base / "m.gguf", ternarise=flavour == "E_master" and kind == "llama", quiet=True)
    model = model_of(models, kind)
    if config:
        model.rope_factors = llama3_factors(model.sizes, LLAMA3)
    return folder, base / "m.gguf", model


def test_logits_are_those_of_the_formulas(case: tuple[Path, Path, Model], text_of: Callable[..., Sequence]) -> None:
    _, path, model = case
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 282, 40)]
    want = forward(model, ids)
    decoder = text_of(path)
    assert assert_agree(decoder.feed_all(ids), want.logits, want.margin) > 12  # of 40: one seed in a few has an early value at a half
    decoder.rewind(0)
    assert_agree(np.stack([decoder.feed([token]).copy() for token in ids]), want.logits, want.margin)


@pytest.mark.live
def test_logits_are_those_of_transformers(
    case: tuple[Path, Path, Model], transformers: ModuleType, text_of: Callable[..., Sequence], models: ModuleType, tmp_path: Path
) -> None:
    """In float32 and with packed weights, where transformers' products are exact; the flavours of a seed hold one model to the bit."""
    import torch

    _, path, model = case
    if model.norms.keys() & {"blk.0.ffn_sub_norm"}:
        reference = hf_of(transformers, model)
    else:
        config = {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}} if model.rope_factors is not None else {}
        packed = write(models, tmp_path / "packed", "llama", "C_packed", **config)
        reference = transformers.AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
    texts = prompts(282)
    assert compare(text_of(path), model, oracle_of(transformers, reference), texts) > 0.5 * sum(map(len, texts))


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_every_type_gives_the_same_logits(
    kind: str, case: tuple[Path, Path, Model], tmp_path: Path, text_of: Callable[..., Sequence]
) -> None:
    folder, path, _ = case
    convert(folder, tmp_path / "m.gguf", outtype=kind, ternarise=True, quiet=True)
    ids = [0, *range(20, 40)]
    assert np.array_equal(text_of(tmp_path / "m.gguf").feed_all(ids), text_of(path).feed_all(ids))


def test_inspect_says_that_it_runs(case: tuple[Path, Path, Model]) -> None:
    with open_gguf(case[1]) as file:
        assert why_not(file).reason is None


def test_rows_that_no_layout_fits_are_ternary_floats_with_their_scale(models: ModuleType, tmp_path: Path) -> None:
    folder = write(models, tmp_path / "hf", "1bitllm-xl", "C_packed")
    convert(folder, tmp_path / "m.gguf", quiet=True)
    with open_gguf(tmp_path / "m.gguf") as file:
        down, scale = file.tensors["blk.0.ffn_down.weight"], file.raw("blk.0.ffn_down.scale").view("<f4")[0]
        assert down.type is TensorType.F16 and set(np.unique(file.raw(down.name).view("<f2"))) == {-1, 0, 1}
        assert scale == model_of(models, "1bitllm-xl").scales["blk.0.ffn_down"]
        assert file.tensors["blk.0.ffn_gate.weight"].type is TensorType.I2_S


def test_rope_factors(models: ModuleType, tmp_path: Path) -> None:
    folder = write(models, tmp_path / "hf", "llama", "C_packed", rope_parameters=None, rope_theta=500000.0, rope_scaling=LLAMA3)
    convert(folder, tmp_path / "m.gguf", quiet=True)
    want = llama3_factors(model_of(models, "llama").sizes, LLAMA3)
    with open_gguf(tmp_path / "m.gguf") as file:
        got = file.raw("rope_freqs.weight").view("<f4")
    assert got.tolist() == want.astype(np.float32).tolist()
    assert got[0] == 1 and got[-1] == 8 and any(1 < f < 8 for f in got)
