"""Folders with a scale for every group of weights: an unpacked Bonsai, found and kept to the bit, and float models rounded by groups."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.checkpoint.flavours import Flavour
from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BitnetError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.tensors.dequantise import rows_as_float32

from . import embedding_models
from .reference import Activations, assert_agree, forward

Floats = NDArray[np.float32]
TYPES = {"q2_0": TensorType.Q2_0, "pq2_0": TensorType.PQ2_0, "ptq1_0": TensorType.PTQ1_0}


def products(rng: np.random.Generator, shape: tuple[int, int], dtype: str, twos: bool) -> Floats:
    """Ternary values times scales of groups of 128, as the type holds them; if `twos`, one in a hundred twice its scale."""
    values = rng.integers(-1, 2, shape).astype(np.float32)
    values[rng.random(shape) < 0.01 * twos] = 2
    scales = np.exp(rng.uniform(np.log(1e-5), np.log(0.08), (shape[0], shape[1] // 128))).astype(np.float32)
    halves = scales.astype(np.float16).astype(np.float32)
    scales = (scales.view("<u4") & np.uint32(0xFFFF0000)).view(np.float32) if dtype == "BF16" else halves
    return values * np.repeat(scales, 128, axis=1)


def write(models: ModuleType, folder: Path, dtype: str | None = "F16", *, twos: bool = False) -> dict[str, Floats]:
    """A Qwen3 folder; returns its projections by GGUF name. dtype: of projections that are products; None: float masters."""
    rng, found, stored = np.random.default_rng(3), {}, {}
    embedding_models.write_folder(models, folder, "qwen3", architectures=["Qwen3ForCausalLM"])
    for name, made in embedding_models.parameters(models, "qwen3").items():
        kind, value = "BF16", made
        if name.endswith("_proj.weight"):
            kind = dtype or "F32"
            value = products(rng, value.shape, dtype, twos) if dtype else rng.normal(0, 0.02, value.shape).astype(np.float32)
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            found[f"blk.{layer}.{embedding_models.GGUF['qwen3'][part]}"] = value
        if not name.endswith("_proj.norm.weight"):
            raw = {"BF16": models.to_bf16, "F16": lambda v: v.astype(np.float16), "F32": lambda v: v}[kind](value)
            stored[f"model.{name}"] = (kind, raw)
    models.write_safetensors(folder / "model.safetensors", stored)
    return found


def contents(path: Path) -> dict[str, tuple[TensorType, Floats]]:
    """Matrices of a file, in float32."""
    with open_gguf(path) as file:
        return {
            name.removesuffix(".weight"): (info.type, rows_as_float32(info.type, file.raw(name), info.shape[1]))
            for name, info in file.tensors.items()
            if len(info.shape) == 2
        }


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("outtype", ["auto", *TYPES])
def test_every_product_comes_back(dtype: str, outtype: str, models: ModuleType, tmp_path: Path) -> None:
    weights = write(models, tmp_path / "hf", dtype)
    convert(tmp_path / "hf", tmp_path / "m.gguf", outtype=outtype, quiet=True)
    found = contents(tmp_path / "m.gguf")
    for name, want in weights.items():
        assert found[name][0] is TYPES.get(outtype, TensorType.Q2_0)
        np.testing.assert_array_equal(found[name][1], want)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["qwen3.activation_type"] == "int8"
        assert file.metadata["general.file_type"] == (1024 if outtype in ("pq2_0", "ptq1_0") else 41)


@pytest.mark.parametrize("outtype", ["auto", "pq2_0"])
def test_weights_of_twice_their_scale(outtype: str, models: ModuleType, tmp_path: Path) -> None:
    weights = write(models, tmp_path / "hf", "BF16", twos=True)
    convert(tmp_path / "hf", tmp_path / "m.gguf", outtype=outtype, quiet=True)
    found = contents(tmp_path / "m.gguf")
    for name, want in weights.items():
        np.testing.assert_array_equal(found[name][1], want)
    with pytest.raises(UnsupportedError, match="has the value 2 beside -1, 0, 1, which q2_0 and pq2_0 hold and ptq1_0 does not"):
        convert(tmp_path / "hf", tmp_path / "n.gguf", outtype="ptq1_0", quiet=True)


def test_the_dry_run_says_so(models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(models, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", dry_run=True, as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert plan["flavour"] == "D (dequantised ternary, a scale a group)" and plan["scale_rule"] == "max|W| of each block"
    assert plan["tensors"]["Q2_0"] == 21 and not [loss for loss in plan["losses"] if loss["written"] == "Q2_0"]
    assert any("int8 activations with one scale for each 128" in note for note in plan["notes"])


def test_float_activations_are_said_in_the_file(models: ModuleType, tmp_path: Path) -> None:
    write(models, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", activations="float", quiet=True)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["qwen3.activation_type"] == "float"


def test_quantize_loses_nothing(models: ModuleType, tmp_path: Path) -> None:
    """Around all types that hold groups of 128, and back; not into one with larger groups, nor into one without zeros."""
    write(models, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf", quiet=True)
    first, source = contents(tmp_path / "a.gguf"), tmp_path / "a.gguf"
    for step, kind in enumerate(("pq2_0", "ptq1_0", "q2_0", "ptq1_0", "pq2_0", "f16", "pq2_0")):
        target = tmp_path / f"{step}.gguf"
        quantize(source, target, kind, quiet=True)
        for name, (found, values) in contents(target).items():
            assert found is (first[name][0] if name == "token_embd" else TYPES.get(kind, TensorType.F16))
            np.testing.assert_array_equal(values, first[name][1])
        source = target
    for kind, message in (("tq2_0", "not one scale in each 256 neighbours"), ("q1_0", "has zeros, which q1_0 does not hold")):
        with pytest.raises(UnsupportedError, match=message):
            quantize(source, tmp_path / "n.gguf", kind, quiet=True)
    quantize(source, tmp_path / "i2_s.gguf", "i2_s", quiet=True)  # a stand-in holds what I2_S cannot
    assert contents(tmp_path / "i2_s.gguf")["blk.0.attn_q"][0] is TensorType.Q2_0


@pytest.mark.parametrize("group", [64, 128])
def test_float_weights_rounded_by_groups(group: int, models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write(models, tmp_path / "hf", None)
    convert(tmp_path / "hf", tmp_path / "m.gguf", group=group)
    assert "nothing in the folder says" in capsys.readouterr().err
    found = contents(tmp_path / "m.gguf")
    for name, want in weights.items():
        blocks = want.astype(np.float64).reshape(-1, group)
        scales = np.maximum(np.abs(blocks).mean(1, keepdims=True), 1e-5).astype(np.float16).astype(np.float64)
        expected = np.clip(np.rint(blocks / scales), -1, 1) * scales
        np.testing.assert_array_equal(found[name][1], expected.reshape(want.shape).astype(np.float32))
    convert(tmp_path / "hf", tmp_path / "p.gguf", group=128, outtype="pq2_0", quiet=True)
    assert contents(tmp_path / "p.gguf")["blk.0.attn_q"][0] is TensorType.PQ2_0


def test_groups_that_cannot_be(models: ModuleType, tmp_path: Path) -> None:
    write(models, tmp_path / "hf", None)
    cases: list[tuple[dict[str, Any], type[BitnetError], str]] = [
        ({"group": 256}, UsageError, "--group 256 does not divide rows of 640"),
        ({"group": 128, "ternarise_by": "row"}, UsageError, "each says what one scale is taken of"),
        ({}, UsageError, "or --group 128 \\(Bonsai\\)"),
        ({"group": 64, "outtype": "ptq1_0"}, UnsupportedError, "not one scale in each 128 neighbours"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            convert(tmp_path / "hf", tmp_path / "m.gguf", quiet=True, **options)
    write(models, tmp_path / "products")
    assert open_checkpoint(tmp_path / "products", group=128).flavour is Flavour.GROUPS  # what is ternary stays as it is


@pytest.mark.slow
def test_logits_of_a_folder_are_those_of_the_formulas(models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    weights = write(models, tmp_path / "hf", "BF16", twos=True)
    convert(tmp_path / "hf", tmp_path / "m.gguf", quiet=True)
    model = embedding_models.arrays_of(models, "qwen3")
    model.norms = {name: value for name, value in model.norms.items() if not name.endswith("_norm_in")}
    model.ternary, model.scales = dict(weights), dict.fromkeys(weights, np.float32(1))  # type: ignore[arg-type]
    ids = [int(i) for i in np.random.default_rng(6).integers(0, 256, 40)]
    want = forward(model, ids, Activations(128))
    assert assert_agree(text_of(tmp_path / "m.gguf").feed_all(ids), want.logits, want.margin) > 5
