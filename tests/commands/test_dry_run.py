"""`bitnet convert --dry-run` and `--ternarise`: what is said before anything is written."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BitnetError


def planned(bitnet: Callable[..., Any], *arguments: str | Path) -> dict[str, Any]:
    done = bitnet("convert", *arguments, "--dry-run", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("letter", "flavour", "rule"),
    [
        ("A", "A (float master, online)", "mean|W|"),
        ("B", "B (packed, autobitlinear)", "multiply by weight_scale"),
        ("C", "C (packed, bitlinear)", "divide by weight_scale"),
        ("D", "D (dequantised ternary)", "max|W|"),
        ("F", "F (unpacked, bitlinear)", "divide by weight_scale"),
    ],
)
def test_plan_and_conversion_agree(
    bitnet: Callable[..., Any], folders: dict[str, Path], tmp_path: Path, letter: str, flavour: str, rule: str
) -> None:
    out = tmp_path / "out.gguf"
    text = bitnet("convert", folders[letter], "-o", out, "--dry-run")
    assert (text.returncode, text.stderr) == (0, "")
    assert all(words in text.stdout for words in (flavour, rule, "BitNetForCausalLM", "24: 14 I2_S, 9 F32, 1 F16", "dry run"))
    assert max(len(line) for line in text.stdout.splitlines() if str(tmp_path.parent.parent) not in line) <= 80
    plan = planned(bitnet, folders[letter], "-o", out)
    assert list(tmp_path.iterdir()) == []
    assert plan["written"] is False and plan["output"] == str(out) and plan["flavour"] == flavour and plan["scale_rule"] == rule
    done = bitnet("convert", folders[letter], "-o", out, "--json")
    assert json.loads(done.stdout) == plan | {"written": True}
    assert plan["size"] == out.stat().st_size


def test_what_will_be_lost(bitnet: Callable[..., Any], models: Any, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "model", "C_packed")
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", np.zeros(32, np.float32))
    models.write_safetensors(folder / "model.safetensors", tensors)
    losses = planned(bitnet, folder)["losses"]
    assert [(loss["tensors"], loss["stored"], loss["written"]) for loss in losses] == [
        (["token_embd.weight"], "BF16", "F16"),
        (["lm_head.weight"], "", None),
        (["model.layers.0.self_attn.rotary_emb.inv_freq"], "", None),
    ]
    assert "6.1e-05" in losses[0]["effect"] and "tied" in losses[1]["effect"]
    (eight,) = (loss for loss in planned(bitnet, folder, "--embedding-type", "q8_0")["losses"] if loss["written"] == "Q8_0")
    assert eight["tensors"] == ["token_embd.weight"] and "8 bits" in eight["effect"]
    text = bitnet("convert", folder, "--dry-run").stdout
    assert "left out" in text and "lm_head.weight" in text and "inv_freq" in text


def test_f16_embedding_is_kept(bitnet: Callable[..., Any], models: Any, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "model", "C_packed")
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    tensors["model.embed_tokens.weight"] = ("F16", np.zeros((320, 256), np.float16))
    models.write_safetensors(folder / "model.safetensors", tensors)
    assert planned(bitnet, folder)["losses"] == []
    assert "every weight is kept to the bit" in bitnet("convert", folder, "--dry-run").stdout


def test_masters_are_said_to_be_rounded(bitnet: Callable[..., Any], folders: dict[str, Path]) -> None:
    (loss,) = (loss for loss in planned(bitnet, folders["A"])["losses"] if loss["written"] == "I2_S")
    assert len(loss["tensors"]) == 14 and loss["effect"].endswith("as in training")


def test_floats_that_nothing_calls_ternary(
    bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], models: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    for more in ((), ("--dry-run",), ("--dry-run", "--json")):
        refused(bitnet("convert", folders["E"], "-o", out, *more), 2, "--ternarise", "config.json")
    (loss,) = (loss for loss in planned(bitnet, folders["E"], "--ternarise")["losses"] if loss["written"] == "I2_S")
    assert "nothing says" in loss["effect"]
    done = bitnet("convert", folders["E"], "-o", out, "--ternarise", "--quiet")
    assert done.returncode == 0 and done.stderr.startswith("bitnet: warning: ") and done.stderr.count("\n") == 1
    # A family whose published checkpoints are master weights says enough by its name, and there is nothing to warn of.
    config = json.loads((folders["E"] / "config.json").read_text()) | {"architectures": ["BitnetForCausalLM"]}
    folder = models.write_folder(tmp_path / "model", "E_master")
    (folder / "config.json").write_text(json.dumps(config))
    tensors = models.tensors_of("E_master", models.masters(models.Shape()))
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    for old, new in names.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    models.write_safetensors(folder / "model.safetensors", tensors)
    done = bitnet("convert", folder, "-o", tmp_path / "2.gguf", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_default_output(bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path) -> None:
    name = folders["C"].name
    (tmp_path / "models").mkdir()
    assert planned(bitnet, folders["C"])["output"] == str(Path("models", f"{name}.gguf"))
    assert bitnet("convert", folders["C"], cwd=tmp_path).returncode == 0
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*.gguf")] == [Path("models", f"{name}.gguf")]
    refused(bitnet("convert", folders["C"], cwd=tmp_path), 2, "--force")
    done = bitnet("convert", folders["C"], "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "is there already" in done.stdout
    refused(bitnet("convert", tmp_path, cwd=tmp_path), 3, "config.json")


CHANGES: tuple[tuple[str, Any], ...] = (
    *(("hidden_act", value) for value in ("silu", "relu2", "gelu", 3)),
    *(("num_attention_heads", value) for value in (2, 3, 8, "4", 0)),
    *(("num_key_value_heads", value) for value in (1, 3, 4)),
    *(("rope_scaling", value) for value in (None, {"factor": 2.0}, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "longrope"})),
    *(("quantization_config", value) for value in (None, {"quant_method": "bitnet", "modules_to_not_convert": ["down_proj"]}, [])),
    *(("tie_word_embeddings", value) for value in (False, True, "yes")),
    *(("eos_token_id", value) for value in ([1, 2, 3], -1, 999)),
    *(("vocab_size", value) for value in (319, 320, 321)),
    *(("attention_bias", True), ("rms_norm_eps", 0.1), ("partial_rotary_factor", 0.5), ("architectures", ["LlamaForCausalLM"])),
)


def outcome(folder: Path, target: Path, **options: Any) -> str:
    """Kind and words of the error that `convert` ends with; `written` where there is none."""
    try:
        convert(folder, target, quiet=True, force=True, **options)
    except BitnetError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def test_it_ends_as_the_conversion_does(models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings changed one by one in two flavours, and weights that are damaged: read only when they are converted."""
    seen = Counter[str]()
    for letter in ("C_packed", "D_dequantised"):
        folder = models.write_folder(tmp_path / letter, letter)
        settings = (folder / "config.json").read_text()
        for key, value in CHANGES:
            (folder / "config.json").write_text(json.dumps(json.loads(settings) | {key: value}))
            expected = outcome(folder, tmp_path / "m.gguf")
            assert outcome(folder, tmp_path / "m.gguf", dry_run=True) == expected, (key, value)
            seen[expected.partition(":")[0]] += 1
        (folder / "config.json").write_text(settings)
        data = (folder / "model.safetensors").read_bytes()
        for byte in (b"\xff", b"\x80", b"\x3f"):
            (folder / "model.safetensors").write_bytes(data[:-64] + byte * 64)
            expected = outcome(folder, tmp_path / "m.gguf")
            assert outcome(folder, tmp_path / "m.gguf", dry_run=True) == expected, byte
            seen[expected.partition(":")[0]] += 1
    assert all(seen[kind] >= 5 for kind in ("written", "UnsupportedError", "BadFileError")), seen
    capsys.readouterr()
