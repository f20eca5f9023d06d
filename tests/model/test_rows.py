"""Models with a scale for every row and int8 activations (axolotl's ternary training): plain bfloat16 masters of Llama and Qwen3."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.sequence import Sequence

from .builder import Model
from .families import LAYER, model_of
from .reference import assert_agree, forward

IDS = [int(i) for i in np.random.default_rng(6).integers(0, 282, 24)]
SEED = 5


def by_rows(models: ModuleType, kind: str) -> tuple[dict[str, Any], Model]:
    """Tensors of a folder of masters, and the model that they stand for: each row -s, 0, s with s = mean|W| of the row."""
    masters = models.masters(models.KINDS[kind].shape, SEED, False, models.KINDS[kind])
    rng = np.random.default_rng(1)
    model = model_of(models, kind, SEED)
    model.embedding, model.head = masters["model.embed_tokens.weight"], masters.get("lm_head.weight")
    for name, value in masters.items():
        parts = name.removesuffix(".weight").split(".")
        if not name.endswith("_proj.weight"):
            if parts[1:2] == ["layers"]:
                model.norms[f"blk.{parts[2]}.{LAYER['.'.join(parts[3:])]}"] = value
            elif parts[1:] == ["norm"]:
                model.norms["output_norm"] = value
            continue
        spread = models.from_bf16(models.to_bf16((value * rng.uniform(0.3, 3, (len(value), 1))).astype(np.float32)))
        masters[name] = spread
        scale = np.abs(spread.astype(np.float64)).mean(1).astype(np.float32)
        target = f"blk.{parts[2]}.{LAYER['.'.join(parts[3:])]}"
        model.ternary[target] = np.clip(np.rint(spread / scale[:, None]), -1, 1).astype(np.int8)
        model.scales[target] = scale  # type: ignore[assignment]
    return masters, model


@pytest.fixture(scope="module")
def axolotl(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    folder: Path = models.write_folder(tmp_path_factory.mktemp("rows") / "hf", "E_master", kind="llama")
    masters, model = by_rows(models, "llama")
    models.write_safetensors(folder / "model.safetensors", {name: ("BF16", models.to_bf16(value)) for name, value in masters.items()})
    return folder, model


@pytest.fixture(scope="module")
def converted(axolotl: tuple[Path, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "m.gguf"
    convert(axolotl[0], path, ternarise_by="row", quiet=True)
    return path


def logits(decoder: Sequence) -> tuple[Any, Any]:
    """Of IDS in one go, and one by one."""
    prefill = decoder.feed_all(IDS)
    decoder.rewind(0)
    return prefill, np.stack([decoder.feed([token]).copy() for token in IDS])


def test_logits_are_those_of_the_formulas(axolotl: tuple[Path, Model], converted: Path, text_of: Callable[..., Sequence]) -> None:
    want = forward(axolotl[1], IDS)
    for got in logits(text_of(converted, threads=2)):
        assert assert_agree(got, want.logits, want.margin) > 3


def test_scales_are_kept_to_the_bit(axolotl: tuple[Path, Model], converted: Path) -> None:
    model = axolotl[1]
    with open_gguf(converted) as file:
        assert file.metadata["llama.activation_type"] == "int8"
        for name, scales in model.scales.items():
            stored = file.raw(f"{name}.scale").view("<f4")
            assert file.tensors[f"{name}.weight"].type is TensorType.I2_S
            assert sorted(stored.tolist()) == sorted(np.asarray(scales).tolist())
        assert why_not(file, full=True).reason is None


@pytest.mark.parametrize("outtype", ["tq1_0", "tq2_0", "q2_0"])
def test_packed_types_round_the_scales(
    outtype: str, axolotl: tuple[Path, Model], converted: Path, tmp_path: Path, text_of: Callable[..., Sequence]
) -> None:
    """Each to 11 bits, over one power of two: the logits are those of such scales. quantize does the same with the file."""
    folder, model = axolotl
    rounded = Model(**(vars(model) | {"scales": {}}))
    for name, scales in model.scales.items():
        unit = 2.0 ** np.floor(np.log2(np.max(scales)))
        rounded.scales[name] = (np.asarray(scales) / unit).astype(np.float16).astype(np.float32) * np.float32(unit)
    want = forward(rounded, IDS)
    convert(folder, tmp_path / "m.gguf", outtype=outtype, ternarise_by="row", quiet=True)
    got = logits(text_of(tmp_path / "m.gguf"))
    for part in got:
        assert_agree(part, want.logits, want.margin)
    quantize(converted, tmp_path / "q.gguf", outtype, quiet=True)
    assert np.array_equal(text_of(tmp_path / "q.gguf").feed_all(IDS), got[0])
    with open_gguf(tmp_path / "q.gguf") as file:
        assert file.tensors["blk.0.attn_q.scale"].shape == (1,)


def test_iq2_bn_keeps_the_scales(axolotl: tuple[Path, Model], converted: Path, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Which has one in every row; so both ways of writing it, and the default, give the same logits to the bit."""
    convert(axolotl[0], tmp_path / "m.gguf", outtype="iq2_bn", ternarise_by="row", quiet=True)
    quantize(converted, tmp_path / "q.gguf", "iq2_bn", quiet=True)
    want = text_of(converted).feed_all(IDS)
    for name in ("m.gguf", "q.gguf"):
        assert np.array_equal(text_of(tmp_path / name).feed_all(IDS), want)
        with open_gguf(tmp_path / name) as file:
            assert file.tensors["blk.0.attn_q.weight"].type is TensorType.IQ2_BN and "blk.0.attn_q.scale" not in file.tensors
            assert why_not(file, full=True).reason is None


def test_quantize_keeps_the_scales_of_i2_s(converted: Path, tmp_path: Path) -> None:
    quantize(converted, tmp_path / "q.gguf", "i2_s", embedding_type="q8_0", quiet=True)
    with open_gguf(converted) as file, open_gguf(tmp_path / "q.gguf") as other:
        for name in file.tensors:
            if ".attn_" in name or ".ffn_" in name:
                assert np.array_equal(file.raw(name), other.raw(name)), name


def test_what_was_assumed_is_said(axolotl: tuple[Path, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = axolotl[0]
    with pytest.raises(UsageError, match=r"--ternarise rounds them.*--ternarise-by row"):
        open_checkpoint(folder)
    convert(folder, tmp_path / "rows.gguf", ternarise_by="row")
    told = capsys.readouterr().err
    assert (
        "one scale a row" in told
        and "--ternarise-by tensor" in told
        and "--activations float" in told
        and "tq2_0 or q2_0 rounds them" in told
    )
    convert(folder, tmp_path / "tensor.gguf", ternarise=True)
    told = capsys.readouterr().err
    assert "one scale a tensor" in told and "--ternarise-by row" in told and "--activations float" in told
    convert(folder, tmp_path / "any.gguf", ternarise_by="row", outtype="tq2_0", dry_run=True)
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in ("mean|W| of each row", "11 significant bits", "i2_s keeps it")), told


def test_dequantised_rows_need_no_option(axolotl: tuple[Path, Model], converted: Path, models: ModuleType, tmp_path: Path) -> None:
    """Already -s, 0, s with an s a row, of any 24 bits: the same file, whatever --ternarise-by says."""
    folder, model = axolotl
    path = tmp_path / "hf"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((folder / name).read_bytes())
    masters, _ = by_rows(models, "llama")
    for name in masters:
        if name.endswith("_proj.weight"):
            _, _, layer, *rest = name.removesuffix(".weight").split(".")
            target = f"blk.{layer}.{LAYER['.'.join(rest)]}"
            masters[name] = model.ternary[target] * np.asarray(model.scales[target])[:, None]
    models.write_safetensors(path / "model.safetensors", {name: ("F32", value) for name, value in masters.items()})
    convert(path, tmp_path / "m.gguf", embedding_type="f16", quiet=True)
    with open_gguf(converted) as file, open_gguf(tmp_path / "m.gguf") as other:
        for name in file.tensors:
            assert np.array_equal(file.raw(name), other.raw(name)), name
        assert {k: v for k, v in file.metadata.items() if k != "general.name"} == {
            k: v for k, v in other.metadata.items() if k != "general.name"
        }


def test_rows_and_other_flavours(models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "hf", "C_packed", kind="llama")
    with pytest.raises(UsageError, match="--ternarise-by row is for float master weights; these are flavour C"):
        open_checkpoint(folder, by_row=True)


def test_rows_with_relu2_are_refused_by_name(models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    folder = models.write_folder(tmp_path / "hf", "E_master")
    with pytest.raises(UnsupportedError, match="ReLU²"):
        convert(folder, tmp_path / "m.gguf", ternarise_by="row", quiet=True)


@pytest.mark.parametrize("outtype", ["i2_s", "tq2_0", "iq2_bn", "f16"])
def test_rows_with_relu2_in_a_type_that_was_asked_for(outtype: str, models: ModuleType, tmp_path: Path, capsys: Any) -> None:
    """The file is written, and what is said of it is what `run` says."""
    folder = models.write_folder(tmp_path / "hf", "E_master", exact=False)
    convert(folder, tmp_path / "m.gguf", ternarise_by="row", outtype=outtype)
    with open_gguf(tmp_path / "m.gguf") as file:
        reason = why_not(file, full=True).reason
    assert reason is not None and f"`bitnet run` refuses the file: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("outtype", ["i2_s", "tq2_0", "iq2_bn"])
def test_rows_of_weights_that_no_block_divides(outtype: str, models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """676: these projections are floats beside the others, with the scales as they are."""
    folder = models.write_folder(tmp_path / "hf", "E_master", kind="1bitllm-xl")
    convert(folder, tmp_path / "auto.gguf", ternarise_by="row", quiet=True)
    convert(folder, tmp_path / "m.gguf", ternarise_by="row", outtype=outtype, quiet=True)
    with open_gguf(tmp_path / "m.gguf") as file, open_gguf(tmp_path / "auto.gguf") as other:
        assert file.tensors["blk.0.ffn_down.weight"].type is TensorType.F16
        for name in ("blk.0.ffn_down.weight", "blk.0.ffn_down.scale"):
            assert np.array_equal(file.raw(name), other.raw(name))
    text_of(tmp_path / "m.gguf").feed_all(IDS)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_damaged_scale(value: float, converted: Path, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    with open_gguf(converted) as file:
        at = file.tensors["blk.1.ffn_up.scale"].offset
    raw = bytearray(converted.read_bytes())
    raw[at + 8 : at + 12] = np.array([value], "<f4").tobytes()
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(BadFileError, match=r"blk\.1\.ffn_up\.scale"):
        text_of(tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert "blk.1.ffn_up.scale" in str(why_not(file).reason)


def qwen3(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def test_qwen3(axolotl: tuple[Path, Model], models: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    folder, model = axolotl
    masters, _ = by_rows(models, "llama")
    norms = {}
    for layer in range(model.sizes.layers):
        for which in "qk":
            norms[f"model.layers.{layer}.self_attn.{which}_norm.weight"] = np.linspace(0.5, 1.5, model.sizes.head_dim, dtype=np.float32)
    (tmp_path / "hf").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(qwen3(folder)))
    tensors = {name: ("BF16", models.to_bf16(value)) for name, value in masters.items()}
    models.write_safetensors(tmp_path / "hf" / "model.safetensors", tensors | {name: ("F32", value) for name, value in norms.items()})
    convert(tmp_path / "hf", tmp_path / "m.gguf", ternarise_by="row", quiet=True)
    copy = Model(**vars(model))
    copy.norms = dict(model.norms)
    for name, value in norms.items():
        copy.norms[f"blk.{name.split('.')[2]}.attn_{name.split('.')[4]}"] = value
    want = forward(copy, IDS)
    for got in logits(text_of(tmp_path / "m.gguf")):
        assert assert_agree(got, want.logits, want.margin) > 3
