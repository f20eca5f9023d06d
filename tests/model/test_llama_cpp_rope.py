"""Scaled rotations, scales of rows and BitNet without sub-norms in llama.cpp and here: the same keys and tensors mean the same.

test_llama_cpp.py says how far the logits may differ, and why; each case is also told from a file without what it is about.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.model.sequence import Sequence

from .families import write
from .test_llama_cpp import BOUND, by_llama_cpp, needs_llama_cpp, relative_rms

pytestmark = needs_llama_cpp

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": YARN,
    "yarn, an amplitude": YARN | {"attention_factor": 0.6},
    "yarn, DeepSeek's amplitude": YARN | {"mscale": 3.0, "mscale_all_dim": 0.1},
}
IDS = [int(i) for i in np.random.default_rng(0).integers(3, 282, 48)]


@pytest.mark.parametrize("name", CASES)
def test_scaled_rotations(name: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    for path, section in ((tmp_path / "m.gguf", CASES[name]), (tmp_path / "plain.gguf", None)):
        folder = write(models, tmp_path / path.stem, "llama", "C_packed", rope_parameters=None, rope_theta=5000.0, rope_scaling=section)
        convert(folder, path, outtype="tq2_0", quiet=True)
    ours, theirs = text_of(tmp_path / "m.gguf").feed_all(IDS), by_llama_cpp(tmp_path / "m.gguf", IDS)
    assert relative_rms(theirs, ours) < BOUND
    assert relative_rms(theirs, ours) < relative_rms(theirs, text_of(tmp_path / "plain.gguf").feed_all(IDS)) / 3


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0"])
def test_scales_of_rows(outtype: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Rounded to 11 bits in the blocks; ours from the file that keeps them."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = write(models, tmp_path / "hf", "llama", "E_master")
    masters = models.masters(models.KINDS["llama"].shape, 0, False, models.KINDS["llama"])
    rng = np.random.default_rng(1)
    for weight, value in masters.items():
        if weight.endswith("_proj.weight"):
            masters[weight] = (value * rng.uniform(0.3, 3, (len(value), 1))).astype(np.float32)
    models.write_safetensors(folder / "model.safetensors", {k: ("BF16", models.to_bf16(v)) for k, v in masters.items()})
    convert(folder, tmp_path / "m.gguf", outtype=outtype, ternarise_by="row", quiet=True)
    convert(folder, tmp_path / "exact.gguf", ternarise_by="row", quiet=True)
    assert relative_rms(by_llama_cpp(tmp_path / "m.gguf", IDS), text_of(tmp_path / "exact.gguf").feed_all(IDS)) < BOUND


def test_bitnet_without_sub_norms(models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """With SiLU it is a Llama to both."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = write(models, tmp_path / "hf", "bitnet", "C_packed", hidden_act="silu")
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    models.write_safetensors(folder / "model.safetensors", {k: v for k, v in tensors.items() if "sub_norm" not in k})
    convert(folder, tmp_path / "m.gguf", outtype="tq2_0", quiet=True)
    assert relative_rms(by_llama_cpp(tmp_path / "m.gguf", IDS), text_of(tmp_path / "m.gguf").feed_all(IDS)) < BOUND
