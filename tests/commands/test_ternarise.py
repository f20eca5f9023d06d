"""Float weights of a GGUF model that nothing calls ternary: `bitnet quantize` rounds them only where the user says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

RNG = np.random.default_rng(0)
TRAINED = RNG.normal(0, 0.02, (128, 128)).astype(np.float32)
TERNARY = (RNG.integers(-1, 2, (128, 128)) * np.float32(0.5)).astype(np.float32)


def write(path: Path, architecture: str, *projections: Any) -> Path:
    outputs = [
        OutputTensor(f"blk.{i}.ffn_up.weight", TensorType.F32, value.shape, lambda value=value: value)
        for i, value in enumerate(projections)
    ]
    write_gguf(path, architecture, {}, outputs)
    return path


@pytest.mark.parametrize("projections", [(TRAINED,), (TERNARY, TRAINED)])
def test_plain_floats_of_another_architecture(tmp_path: Path, projections: tuple[Any, ...]) -> None:
    """Also where only a later matrix is not ternary, which is found while the output is being written."""
    source, out = write(tmp_path / "in.gguf", "llama", *projections), tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=r"architecture llama: .*--ternarise"):
        quantize(source, out, quiet=True)
    assert list(tmp_path.iterdir()) == [source]
    quantize(source, out, ternarise=True, quiet=True)
    with open_gguf(out) as gguf:
        assert {info.type for info in gguf.tensors.values()} == {TensorType.I2_S}


def test_what_needs_no_permission(tmp_path: Path) -> None:
    quantize(write(tmp_path / "1.gguf", "llama", TERNARY), tmp_path / "2.gguf", quiet=True)
    quantize(write(tmp_path / "3.gguf", "bitnet", TRAINED), tmp_path / "4.gguf", quiet=True)


def test_on_the_command_line(bitnet: Callable[..., Any], refused: Callable[..., None], tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.gguf", "llama", TRAINED), tmp_path / "out.gguf"
    refused(bitnet("quantize", source, out), 2, "in.gguf", "blk.0.ffn_up.weight", "--ternarise")
    done = bitnet("inspect", source)
    assert done.returncode == 0 and "--ternarise" in done.stdout
    done = bitnet("quantize", source, out, "--ternarise")
    assert done.returncode == 0 and "rounded by absmean" in done.stderr
