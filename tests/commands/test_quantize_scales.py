"""`bitnet quantize` of projections with several scales, as TriLM's: scales stay in blocks, values and scales to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.ternary.layouts import LAYOUTS

ROWS, COLS = 128, 512
UP, GATE = "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"


def packed(values: NDArray[np.int8], scales: NDArray[np.float16], kind: TensorType) -> NDArray[np.uint8]:
    """scales: (rows, blocks of a row)."""
    layout = LAYOUTS[kind]
    blocks = layout.pack_rows(values).reshape(-1, layout.BLOCK_BYTES).copy()
    blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = scales.reshape(-1, 1).view(np.uint8)
    return blocks


def write(path: Path, tensors: dict[str, tuple[TensorType, tuple[int, ...], Any]]) -> Path:
    outputs = [OutputTensor(name, kind, shape, lambda data=data: data) for name, (kind, shape, data) in tensors.items()]
    write_gguf(path, "llama", {}, outputs)
    return path


def contents(path: Path) -> dict[str, tuple[TensorType, bytes]]:
    with open_gguf(path) as gguf:
        return {name: (info.type, gguf.raw(name).tobytes()) for name, info in gguf.tensors.items()}


@pytest.fixture
def values() -> NDArray[np.int8]:
    found = np.random.default_rng(0).integers(-1, 2, (ROWS, COLS)).astype(np.int8)
    found[3, :256] = 0  # a block without weights, whose scale says nothing
    return found


@pytest.fixture
def scales(values: NDArray[np.int8]) -> NDArray[np.float16]:
    found = np.random.default_rng(1).uniform(0.01, 0.1, (ROWS, COLS // 256)).astype(np.float16)
    found[3, 0] = 0
    return found


@pytest.fixture
def source(values: NDArray[np.int8], scales: NDArray[np.float16], tmp_path: Path) -> Path:
    """`up` has several scales, and one that multiplies them all; `gate` has one."""
    one = np.full_like(scales, 1)
    return write(
        tmp_path / "in.gguf",
        {
            UP: (TensorType.TQ2_0, values.shape, packed(values, scales, TensorType.TQ2_0)),
            UP.replace("weight", "scale"): (TensorType.F32, (1,), np.array([0.3], "<f4")),
            GATE: (TensorType.TQ2_0, values.shape, packed(values, one, TensorType.TQ2_0)),
            GATE.replace("weight", "scale"): (TensorType.F32, (1,), np.array([0.7], "<f4")),
        },
    )


@pytest.mark.parametrize("kind", ["tq1_0", "q2_0", "i2_s"])
def test_there_and_back(kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(source, tmp_path / "there.gguf", kind)
    told = capsys.readouterr().err
    assert "0 ternary already, 0 by absmean, 1 packed before, 1 with several scales" in told
    there = contents(tmp_path / "there.gguf")
    wanted = {"tq1_0": TensorType.TQ1_0, "q2_0": TensorType.Q2_0, "i2_s": TensorType.TQ2_0}[kind]
    assert there[UP][0] is wanted
    if kind == "i2_s":
        assert there[GATE][0] is TensorType.I2_S
        assert "several scales a tensor: the projections are TQ2_0" in told
    quantize(tmp_path / "there.gguf", tmp_path / "back.gguf", "tq2_0", quiet=True)
    assert contents(tmp_path / "back.gguf") == contents(source)


def test_floats_hold_the_products(source: Path, values: NDArray[np.int8], scales: NDArray[np.float16], tmp_path: Path) -> None:
    quantize(source, tmp_path / "f16.gguf", "f16", quiet=True)
    found = contents(tmp_path / "f16.gguf")
    products = values * np.repeat(scales, 256, axis=1)
    assert found[UP] == (TensorType.F16, products.tobytes())
    assert found[UP.replace("weight", "scale")] == contents(source)[UP.replace("weight", "scale")]
    quantize(tmp_path / "f16.gguf", tmp_path / "back.gguf", "tq2_0", quiet=True)
    assert contents(tmp_path / "back.gguf")[UP] == contents(source)[UP]


def test_scales_of_fewer_weights_than_a_block(values: NDArray[np.int8], tmp_path: Path) -> None:
    """Neighbouring blocks of 64 with one scale become a block of 256; with different ones they cannot."""
    values[:, ::64] = 1
    for name, each in (("same", 256), ("others", 64)):
        fine = np.repeat(np.random.default_rng(2).uniform(0.5, 1, (ROWS, COLS // each)).astype(np.float16), each // 64, axis=1)
        source = write(tmp_path / f"{name}.gguf", {UP: (TensorType.Q2_0, values.shape, packed(values, fine, TensorType.Q2_0))})
        target = tmp_path / f"{name}_out.gguf"
        if each == 256:
            quantize(source, target, "tq2_0", quiet=True)
            assert contents(target)[UP] == (TensorType.TQ2_0, packed(values, fine[:, ::4].copy(), TensorType.TQ2_0).tobytes())
        else:
            with pytest.raises(UnsupportedError, match="not one scale in each 256 neighbours of a row; q2_0 has blocks of 64"):
                quantize(source, target, "tq2_0", quiet=True)
            assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"), [(np.float16(np.nan), "not finite"), (np.float16(-0.5), "negative")], ids=["not a number", "negative"]
)
def test_bad_scales(change: np.float16, message: str, values: NDArray[np.int8], scales: NDArray[np.float16], tmp_path: Path) -> None:
    scales[5, 1] = change
    source = write(tmp_path / "in.gguf", {UP: (TensorType.TQ2_0, values.shape, packed(values, scales, TensorType.TQ2_0))})
    with pytest.raises(BadFileError, match=message):
        quantize(source, tmp_path / "out.gguf", "q2_0", quiet=True)
    assert list(tmp_path.iterdir()) == [source]
