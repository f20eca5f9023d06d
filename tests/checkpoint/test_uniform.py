"""Projections whose weights are all alike are named, of a folder and of a file; what Git leaves in the place of a file is, too."""

import codecs
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.folder import open_checkpoint
from bitnet_cli.checkpoint.uniform import uniform_projections
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.inspect import inspect
from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.tensors import uniform
from bitnet_cli.ternary.layouts import LAYOUTS

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 1180162688\n"
GATE, NAME = "model.layers.1.mlp.gate_proj.weight", "blk.1.ffn_gate.weight"
CASES: dict[str, tuple[str, str, Any, str]] = {
    "packed zeros": ("C_packed", "U8", np.full((160, 256), 0x55, np.uint8), "0"),
    "packed ones": ("B_packed_auto", "U8", np.full((160, 256), 0xAA, np.uint8), "1"),
    "packed minus ones": ("C_packed", "U8", np.zeros((160, 256), np.uint8), "-1"),
    "master zeros": ("A_online", "F32", np.zeros((640, 256), np.float32), "0"),
    "master constant": ("A_online", "F32", np.full((640, 256), 0.03125, np.float32), "0.03125"),
    "dequantised zeros": ("D_dequantised", "F32", np.zeros((640, 256), np.float32), "0"),
    "dequantised constant": ("D_dequantised", "F32", np.full((640, 256), -0.25, np.float32), "-0.25"),
}


@pytest.fixture(scope="module")
def parameters(models: ModuleType) -> Any:
    return models.masters(models.Shape())


@pytest.fixture
def write(models: ModuleType, folders: dict[str, Path], parameters: Any, tmp_path: Path) -> Callable[..., Path]:
    """write(flavour, dtype, weights): a folder in which the gate of the last layer is replaced."""

    def make(flavour: str, dtype: str, values: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(folders[flavour[0]], folder)
        models.write_safetensors(folder / "model.safetensors", models.tensors_of(flavour, parameters) | {GATE: (dtype, values)})
        return folder

    return make


def told(captured: Any) -> str:
    """What was written, without line ends."""
    return " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize(
    ("name", "outtype"), [*((name, "i2_s") for name in CASES), *(("packed ones", kind) for kind in ("tq1_0", "tq2_0", "q2_0", "f16"))]
)
def test_a_projection_of_one_value_is_named(
    name: str, outtype: str, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the conversion and its dry run alike, by `inspect` of the folder, and by `inspect --check` of what was written."""
    flavour, dtype, values, value = CASES[name]
    folder, output = write(flavour, dtype, values), tmp_path / "model.gguf"
    convert(folder, output, outtype=outtype, dry_run=True)
    assert f"{GATE}: every weight is {value}, " in told(capsys.readouterr())
    convert(folder, output, outtype=outtype)
    said = told(capsys.readouterr())
    assert f"warning: {GATE}: every weight is {value}, " in said and said.count("every weight") == 1
    inspect(str(folder), full=True, tensors=False, as_json=False, quiet=True)
    assert f"{GATE}: every weight is {value}, " in told(capsys.readouterr())
    with open_gguf(output) as file:
        (warning,) = uniform.uniform_projections(file)
    assert warning.startswith(f"tensor {NAME}: every weight is ")
    inspect(str(output), full=True, tensors=False, as_json=False, quiet=True)
    shown = told(capsys.readouterr())
    assert warning in shown and "every code and number is usable" in shown and "works" in shown
    inspect(str(output), full=True, tensors=False, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out)["check"]["warnings"] == [warning]


def test_sound_projections_are_not(folders: dict[str, Path], write: Callable[..., Path]) -> None:
    for letter in "ABCDF":
        assert uniform_projections(open_checkpoint(folders[letter])) == []
    nearly = np.full((160, 256), 0x55, np.uint8)
    nearly[-1, -1] = 0x56  # one weight of 163,840
    assert uniform_projections(open_checkpoint(write("C_packed", "U8", nearly))) == []


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q2_0"])
def test_blocks_with_a_scale_of_0_are_zeros(kind: str, tmp_path: Path) -> None:
    """Whatever their codes say; and zeros with all kinds of scales."""
    rng, layout = np.random.default_rng(1), LAYOUTS[TensorType[kind]]
    values = rng.integers(-1, 2, (4, 512)).astype(np.int8)

    def found(values: Any, scales: Any) -> list[str]:
        blocks = layout.pack_rows(values).reshape(-1, layout.BLOCK_BYTES)
        blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = np.asarray(scales, "<f2").reshape(-1, 1).view(np.uint8)
        tensor = OutputTensor("blk.0.ffn_up.weight", TensorType[kind], values.shape, lambda: blocks.reshape(-1))
        write_gguf(tmp_path / "m.gguf", "llama", {}, [tensor], force=True)
        with open_gguf(tmp_path / "m.gguf") as file:
            return [line.split(",")[0] for line in uniform.uniform_projections(file)]

    several = rng.uniform(0.1, 1, values.size // layout.BLOCK)
    assert found(values, several) == []
    assert found(values, np.where(np.arange(len(several)) < len(several) - 1, 0, several)) == []
    assert found(values, several * 0) == ["tensor blk.0.ffn_up.weight: every weight is 0"]
    assert found(values, several * -0.0) == ["tensor blk.0.ffn_up.weight: every weight is 0"]
    assert found(values * 0, several) == ["tensor blk.0.ffn_up.weight: every weight is 0"]
    assert found(values * 0 + 1, several) == ["tensor blk.0.ffn_up.weight: every weight is +1 times the scale of its block"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("pointer", [POINTER, POINTER.replace(b"\n", b"\r\n"), POINTER.replace(b"git-lfs", b"hawser")])
def test_a_pointer_of_git_lfs_is_named(name: str, pointer: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["C"], folder)
    (folder / name).write_bytes(pointer)
    with pytest.raises(BadFileError, match=rf"{re.escape(name)}: file: a Git LFS pointer, .* `git lfs pull`"):
        convert(folder, tmp_path / "model.gguf", quiet=True)
    assert not (tmp_path / "model.gguf").exists()


def test_a_shard_that_is_a_pointer(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["C"], folder)
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    shards = {name: f"model-0000{i}-of-00002.safetensors" for i, name in ((1, "model.norm.weight"), (2, "model.embed_tokens.weight"))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(BadFileError, match=r"model-00002-of-00002\.safetensors: file: a Git LFS pointer"):
        convert(folder, tmp_path / "model.gguf", quiet=True)


def test_a_gguf_file_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(POINTER)
    with pytest.raises(BadFileError, match=r"m\.gguf: magic: a Git LFS pointer, .* `git lfs pull`"):
        open_gguf(tmp_path / "m.gguf")


def test_a_byte_order_mark_before_json_is_no_part_of_it(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["C"], folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())
    convert(folder, tmp_path / "marked.gguf", quiet=True)
    convert(folders["C"], tmp_path / "plain.gguf", quiet=True)
    with open_gguf(tmp_path / "marked.gguf") as marked, open_gguf(tmp_path / "plain.gguf") as plain:
        different = {key for key in plain.metadata if plain.metadata[key] != marked.metadata[key]}
        assert different <= {"general.name"}
