"""`--activations` and what commands say of activation schemes, on the naive kernels."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_cli.gguf_file.reader import open_gguf

from ..model.builder import random_model, write_model
from .test_cache_type import bitnet

TEXT = bytes(range(97, 123)) * 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("activations"), random_model(seed=7, tied=False)
    kinds = {"int8": None, "a4.8": "a4.8", "int2": "int2"}
    return {name: write_model(folder / f"{name}.gguf", model, metadata={"activation_type": kind}) for name, kind in kinds.items()}


def perplexity(path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = bitnet("perplexity", "-m", str(path), "-c", "64", "--json", *arguments, text=TEXT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.decode()


def test_post_hoc_activations_warn_and_perplexity_shows_the_loss(files: dict[str, Path]) -> None:
    trained, warning = perplexity(files["int8"])
    assert trained["activations"] == "int8"
    assert "post-hoc" not in warning
    four, warning = perplexity(files["int8"], "--activations", "a4")
    assert four["activations"] == "a4.8"
    assert "bitnet: warning: activations a4.8 are post-hoc: this model was trained with int8; `bitnet perplexity` shows what" in warning
    assert four["nats"] != trained["nats"]
    assert perplexity(files["a4.8"])[0]["nats"] == four["nats"]
    back, warning = perplexity(files["a4.8"], "--activations", "a8")
    assert back["nats"] == trained["nats"]
    assert "trained with a4.8" in warning


def test_run(files: dict[str, Path]) -> None:
    arguments = ("-p", "ab", "-n", "4", "--temp", "0", "-t", "1")
    done = bitnet("run", "-m", str(files["int8"]), *arguments, "--activations", "a4")
    assert done.returncode == 0, done.stderr
    assert b"post-hoc" in done.stderr
    assert done.stdout == bitnet("run", "-m", str(files["a4.8"]), *arguments).stdout
    assert bitnet("run", "-m", str(files["int8"]), *arguments, "--activations", "a5").returncode == 2


def test_an_unknown_scheme(files: dict[str, Path]) -> None:
    """Refused by name with what is supported; `inspect` reports the rest of the file."""
    done = bitnet("run", "-m", str(files["int2"]), "-p", "ab")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"bitnet-b1.58.activation_type: 'int2' is not supported; supported are int8, float, a4.8" in done.stderr
    shown = bitnet("inspect", str(files["int2"]))
    assert shown.returncode == 0
    assert b"int2: not supported" in shown.stdout
    assert b"does not work: bitnet-b1.58.activation_type: 'int2'" in shown.stdout


def test_inspect(files: dict[str, Path]) -> None:
    facts = json.loads(bitnet("inspect", str(files["a4.8"]), "--json").stdout)
    assert facts["activations"] == {"scheme": "a4.8", "known": True, "top_k": None}
    assert facts["commands"]["run"]["works"]
    assert json.loads(bitnet("inspect", str(files["int8"]), "--json").stdout)["activations"] is None
    assert b"INT4 before q, k, v, gate and up" in bitnet("inspect", str(files["a4.8"])).stdout


def written(models: ModuleType, folder: Path, *arguments: str, **fields: Any) -> dict[str, Any]:
    """Metadata of a checkpoint with these fields in its quantization_config, converted."""
    models.write_folder(folder, "C_packed")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))
    done = bitnet("convert", str(folder), "-o", str(folder / "m.gguf"), *arguments)
    assert done.returncode == 0, done.stderr
    with open_gguf(folder / "m.gguf") as file:
        return {key.removeprefix("bitnet-b1.58."): value for key, value in file.metadata.items() if ".activation_" in key}


def test_convert_carries_the_scheme(models: ModuleType, tmp_path: Path) -> None:
    assert written(models, tmp_path / "a") == {}
    assert written(models, tmp_path / "b", activation_type="int8", top_k=0.25) == {}
    assert written(models, tmp_path / "c", activation_type="a4.8") == {"activation_type": "a4.8", "activation_top_k": 0.5}
    assert written(models, tmp_path / "d", activation_type="a4.8", top_k=0.25) == {"activation_type": "a4.8", "activation_top_k": 0.25}
    assert written(models, tmp_path / "e", activation_type="v2-a4") == {"activation_type": "v2-a4"}
    assert written(models, tmp_path / "f", "--activations", "a4.8-fp4", activation_type="a4.8") == {"activation_type": "a4.8-fp4"}


def test_dry_run_and_quantize_keep_it(models: ModuleType, tmp_path: Path) -> None:
    written(models, tmp_path, activation_type="a4.8", top_k=0.25)
    shown = bitnet("convert", str(tmp_path), "--dry-run")
    assert b"BitNetForCausalLM, relu2, a4.8 activations" in shown.stdout
    assert bitnet("quantize", str(tmp_path / "m.gguf"), str(tmp_path / "q.gguf"), "tq2_0").returncode == 0
    facts = json.loads(bitnet("inspect", str(tmp_path / "q.gguf"), "--json").stdout)
    assert facts["activations"] == {"scheme": "a4.8", "known": True, "top_k": 0.25}


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"activation_type": "int2"}, 4, "quantization_config.activation_type: 'int2' is not supported; supported are int8, float, a4.8"),
        ({"activation_type": ["a4.8"]}, 4, "quantization_config.activation_type"),
        ({"activation_type": "a4.8", "top_k": 0}, 3, "quantization_config.top_k: 0, expected a number from"),
        ({"activation_type": "float"}, 4, "float activations are not supported with ReLU²"),
    ],
)
def test_convert_refuses(fields: dict[str, Any], code: int, message: str, models: ModuleType, tmp_path: Path) -> None:
    models.write_folder(tmp_path, "C_packed")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] |= fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = bitnet("convert", str(tmp_path), "-o", str(tmp_path / "m.gguf"))
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert not (tmp_path / "m.gguf").exists()
