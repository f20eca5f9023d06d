"""`bitnet convert` as a user meets it: what it writes, what it says, and what is left when it is stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.ternary import i2_s

posix = pytest.mark.skipif(os.name != "posix", reason="signals, limits and permissions of POSIX")


def tensor_bytes(path: Path) -> dict[str, bytes]:
    with open_gguf(path) as gguf:
        return {name: gguf.raw(name).tobytes() for name in gguf.tensors}


@pytest.fixture(scope="module")
def converted(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("converted")
    for letter, folder in folders.items():
        convert(folder, base / f"{letter}.gguf", ternarise=letter == "E", quiet=True)
    return {letter: base / f"{letter}.gguf" for letter in folders}


def test_every_flavour_gives_the_same_file(converted: dict[str, Path]) -> None:
    """Weights and scales to the bit, and the metadata but for the name of the folder."""
    assert len(converted) == 6
    reference = tensor_bytes(converted["A"])
    for path in converted.values():
        assert tensor_bytes(path) == reference
    metadata = []
    for path in converted.values():
        with open_gguf(path) as gguf:
            metadata.append({k: v for k, v in gguf.typed_metadata.items() if k != "general.name"})
    assert all(m == metadata[0] for m in metadata)


def test_the_file_holds_the_model(converted: dict[str, Path], models: ModuleType) -> None:
    parameters = models.masters(models.Shape())
    with open_gguf(converted["C"]) as gguf:
        assert gguf.metadata["general.architecture"] == "bitnet-b1.58" and gguf.metadata["general.file_type"] == 40
        assert gguf.trailing == 0
        embedding = gguf.raw("token_embd.weight").view(np.float16).reshape(320, 256)
        assert np.array_equal(embedding, parameters["model.embed_tokens.weight"].astype(np.float16))
        norm = gguf.raw("blk.1.ffn_sub_norm.weight").view(np.float32)
        assert np.array_equal(norm, parameters["model.layers.1.mlp.ffn_sub_norm.weight"])
        for target, source in {"attn_q": "self_attn.q", "attn_output": "self_attn.o", "ffn_down": "mlp.down"}.items():
            info = gguf.tensors[f"blk.1.{target}.weight"]
            values, scale = i2_s.unpack(gguf.raw(info.name), *info.shape)
            expected, expected_scale = models.ternary(parameters[f"model.layers.1.{source}_proj.weight"])
            assert info.type is TensorType.I2_S and np.array_equal(values, expected) and scale == expected_scale


def test_embedding_as_q8_0(folders: dict[str, Path], converted: dict[str, Path], tmp_path: Path) -> None:
    convert(folders["C"], tmp_path / "q.gguf", embedding_type="q8_0", quiet=True)
    with open_gguf(tmp_path / "q.gguf") as gguf:
        assert gguf.tensors["token_embd.weight"].type is TensorType.Q8_0
    ours, reference = tensor_bytes(tmp_path / "q.gguf"), tensor_bytes(converted["C"])
    assert {name for name in ours if ours[name] != reference[name]} == {"token_embd.weight"}


def test_shards_give_the_same_file(folders: dict[str, Path], converted: dict[str, Path], models: ModuleType, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["C"] / name).read_bytes())
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        models.write_safetensors(tmp_path / shard, {k: v for k, v in tensors.items() if weight_map[k] == shard})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(tmp_path, tmp_path / "out.gguf", quiet=True)
    assert tensor_bytes(tmp_path / "out.gguf") == tensor_bytes(converted["C"])


def test_kept_projections_are_float16(bitnet: Callable[..., Any], refused: Callable[..., None], models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "model", "A_online")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["model.layers.1.mlp.down_proj", "lm_head"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(bitnet("convert", folder, "-o", tmp_path / "out.gguf"), 4, "ffn_down.weight: F16 projections are not run", "--outtype")
    refused(bitnet("convert", folder, "--dry-run"), 4, "ffn_down.weight: F16 projections are not run")
    done = bitnet("convert", folder, "-o", tmp_path / "out.gguf", "--outtype", "i2_s")
    assert done.returncode == 0 and "1 projections kept in F16" in done.stderr and "`bitnet run` refuses the file" in done.stderr
    with open_gguf(tmp_path / "out.gguf") as gguf:
        assert gguf.tensors["blk.1.ffn_down.weight"].type is TensorType.F16
        value = gguf.raw("blk.1.ffn_down.weight").view(np.float16)
    assert np.array_equal(value, models.masters(models.Shape())["model.layers.1.mlp.down_proj.weight"].reshape(-1))


@pytest.mark.parametrize(
    ("letter", "flavour", "rule"),
    [
        ("A", "A (float master, online)", "mean|W|"),
        ("B", "B (packed, autobitlinear)", "multiply by weight_scale"),
        ("C", "C (packed, bitlinear)", "divide by weight_scale"),
    ],
)
def test_summary_is_one_line_on_stderr(
    bitnet: Callable[..., Any], folders: dict[str, Path], tmp_path: Path, letter: str, flavour: str, rule: str
) -> None:
    out = tmp_path / "out.gguf"
    done = bitnet("convert", folders[letter], "-o", out)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
    for words in (
        str(out),
        "BitNetForCausalLM",
        f"flavour {flavour}",
        f"scale: {rule}",
        "24 tensors",
        f"{out.stat().st_size} bytes",
        "MB/s",
    ):
        assert words in done.stderr
    assert "\x1b" not in done.stderr  # no bar where nobody looks


def test_quiet_is_silent_and_numba_is_not_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    code = "import sys; from bitnet_cli.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('numba' in sys.modules)"
    arguments = ["convert", str(folders["A"]), "-o", str(tmp_path / "out.gguf"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert (tmp_path / "out.gguf").exists()


@posix
def test_bar_on_a_terminal(folders: dict[str, Path], tmp_path: Path) -> None:
    import pty

    main, side = pty.openpty()
    at_once = "from bitnet_cli.commands import reporting; reporting.PATIENCE = 0; from bitnet_cli.cli import main; main()"
    command = [sys.executable, "-c", at_once, "convert", str(folders["A"]), "-o", str(tmp_path / "out.gguf")]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=side, env=environment)
    os.close(side)
    shown = b""
    while chunk := read_or_end(main):
        shown += chunk
    os.close(main)
    assert done.returncode == 0 and done.stdout == b""
    assert b"converting" in shown and b"\x1b[" in shown and b"24 tensors" in shown


def read_or_end(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux says EIO where others say end of file
        return b""


def test_plain_floats_need_to_be_named(
    bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path
) -> None:
    refused(bitnet("convert", folders["E"], "-o", tmp_path / "out.gguf"), 2, "--ternarise")
    assert list(tmp_path.iterdir()) == []


def test_output_exists(bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    refused(bitnet("convert", folders["C"], "-o", out), 2, "out.gguf", "--force")
    assert out.read_bytes() == b"precious"
    convert(folders["C"], out, force=True, quiet=True)
    assert out.read_bytes()[:4] == b"GGUF" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "link"])
def test_output_is_an_input(models: ModuleType, tmp_path: Path, name: str) -> None:
    folder = models.write_folder(tmp_path / "model", "C_packed")
    (folder / "link").symlink_to("model.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="is the input file"):
        convert(folder, folder / name, force=True, quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_places_that_are_not_there(
    bitnet: Callable[..., Any], refused: Callable[..., None], folders: dict[str, Path], tmp_path: Path
) -> None:
    refused(bitnet("convert", folders["C"], "-o", tmp_path / "no" / "out.gguf"), 2, "does not exist")
    refused(bitnet("convert", folders["C"], "-o", tmp_path), 2, "is a folder")
    refused(bitnet("convert", tmp_path / "no", "-o", tmp_path / "out.gguf"), 2, "no such folder")
    refused(bitnet("convert", tmp_path, "-o", tmp_path / "out.gguf"), 3, "config.json", "No such file")
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_of_bad_input(bitnet: Callable[..., Any], refused: Callable[..., None], models: ModuleType, tmp_path: Path) -> None:
    folder = models.write_folder(tmp_path / "model", "C_packed")
    weights, out = folder / "model.safetensors", tmp_path / "out.gguf"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1])
    refused(bitnet("convert", folder, "-o", out), 3, "model.safetensors", "byte")
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(bitnet("convert", folder, "-o", out), 4, "pickle is never loaded, use safetensors")
    # Found only while the weights are read, when the output has been begun.
    tensors = models.tensors_of("C_packed", models.masters(models.Shape()))
    tensors["model.layers.1.mlp.down_proj.weight"][1][3, 3] = 255
    models.write_safetensors(weights, tensors)
    refused(bitnet("convert", folder, "-o", out), 3, "model.layers.1.mlp.down_proj.weight", "2-bit code is 3")
    assert list(tmp_path.iterdir()) == [folder]
