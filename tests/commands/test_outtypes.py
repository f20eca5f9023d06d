"""Every type of ternary weights from every other, by `quantize` and by `convert --outtype`: the same model to the bit, or a plain word."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.checkpoint.packing import FILE_TYPES, OUTTYPES
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.ternary import i2_s, i2_s_order, tq1_0, tq2_0
from bitnet_cli.ternary.layouts import LAYOUTS, PackedTensor

PACKED = ("i2_s", "tq1_0", "tq2_0", "q2_0")
NAME = "blk.0.ffn_up.weight"


def ternary(gguf: GGUFFile, name: str = NAME) -> tuple[NDArray[np.int8], np.float32]:
    """Values and scale of a packed projection; written out here for the scale, so that quantize is not compared with itself."""
    info, own = gguf.tensors[name], name.removesuffix("weight") + "scale"
    weights = gguf.raw(name)[: -i2_s.TAIL] if info.type is TensorType.I2_S else gguf.raw(name)
    values = LAYOUTS[info.type].unpack_rows(weights, info.shape[1])
    if info.type is TensorType.I2_S:
        assert own not in gguf.tensors
        return values, gguf.raw(name)[-i2_s.TAIL : 4 - i2_s.TAIL].view("<f4")[0]
    scale, _ = PackedTensor(info.type, (info.shape[0], info.shape[1]), gguf.raw(name), gguf.path, name).read()
    assert scale == 1
    return values, gguf.raw(own).view("<f4")[0]


def write(path: Path, weight: OutputTensor, *more: OutputTensor, arch: str = "bitnet") -> Path:
    write_gguf(path, arch, {}, [weight, *more])
    return path


def packed(values: NDArray[np.int8], scale: float = 0.1) -> OutputTensor:
    return OutputTensor(NAME, TensorType.I2_S, values.shape, lambda: i2_s.pack(values, scale))


def floats(values: NDArray[np.int8], scale: float = 0.1) -> OutputTensor:
    return OutputTensor(NAME, TensorType.F32, values.shape, lambda: values * np.float32(scale))


def random(rows: int, cols: int) -> NDArray[np.int8]:
    return np.random.default_rng(cols).integers(-1, 2, (rows, cols)).astype(np.int8)


def test_round_through_all_is_the_same_file(tmp_path: Path) -> None:
    before = EMBEDDED_MODEL
    for step, kind in enumerate(("tq2_0", "q2_0", "tq1_0", "i2_s")):
        after = tmp_path / f"{step}.gguf"
        quantize(before, after, kind, quiet=True)
        before = after
    assert before.read_bytes() == EMBEDDED_MODEL.read_bytes()


@pytest.mark.parametrize("target", PACKED)
@pytest.mark.parametrize("source", PACKED)
def test_every_direction_keeps_values_and_scale(source: str, target: str, tmp_path: Path) -> None:
    quantize(EMBEDDED_MODEL, tmp_path / "a.gguf", source, quiet=True)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", target, quiet=True)
    with open_gguf(EMBEDDED_MODEL) as before, open_gguf(tmp_path / "b.gguf") as after:
        for name in (name for name, info in before.tensors.items() if info.type is TensorType.I2_S):
            assert after.tensors[name].type is OUTTYPES[target]
            values, scale = ternary(after, name)
            expected, expected_scale = ternary(before, name)
            assert np.array_equal(values, expected) and scale == expected_scale
        assert after.metadata["general.file_type"] == FILE_TYPES[OUTTYPES[target]]
        others = [name for name, info in before.tensors.items() if info.type is not TensorType.I2_S]
        assert all(np.array_equal(before.raw(name), after.raw(name)) for name in others)


@pytest.mark.parametrize("kind", [kind for kind in OUTTYPES if kind != "q1_0"])  # which has no zeros
def test_convert_writes_what_quantize_makes_of_it(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The tiny model's feed-forward width is 640, so one of its seven projections has no whole blocks of 256."""
    convert(folders["C"], tmp_path / "i2_s.gguf", quiet=True)
    convert(folders["C"], tmp_path / "direct.gguf", outtype=kind, quiet=True)
    quantize(tmp_path / "i2_s.gguf", tmp_path / "by_quantize.gguf", kind, quiet=True)
    assert (tmp_path / "direct.gguf").read_bytes() == (tmp_path / "by_quantize.gguf").read_bytes()
    with open_gguf(tmp_path / "direct.gguf") as gguf:
        stand_in = kind in ("tq1_0", "tq2_0")
        assert gguf.tensors["blk.1.ffn_down.weight"].type is (TensorType.Q2_0 if stand_in else OUTTYPES[kind])
        assert gguf.tensors["blk.1.ffn_up.weight"].type is OUTTYPES[kind]


def test_scales_of_float_masters_are_read_once_and_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    convert(folders["A"], tmp_path / "i2_s.gguf", quiet=True)
    convert(folders["A"], tmp_path / "tq2_0.gguf", outtype="tq2_0", quiet=True)
    with open_gguf(tmp_path / "i2_s.gguf") as expected, open_gguf(tmp_path / "tq2_0.gguf") as got:
        assert ternary(got)[1] == ternary(expected)[1] != 1


@pytest.mark.parametrize(
    ("cols", "kind", "written"),
    [
        (256, "tq1_0", "TQ1_0"),
        (640, "tq1_0", "Q2_0"),
        (192, "tq2_0", "Q2_0"),
        (192, "q2_0", "Q2_0"),
        (128, "i2_s", "I2_S"),
        (192, "i2_s", "Q2_0"),
    ],
)
def test_rows_of_other_lengths(cols: int, kind: str, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = random(4, cols)
    source = write(tmp_path / "in.gguf", floats(values))
    quantize(source, tmp_path / "out.gguf", kind)
    with open_gguf(tmp_path / "out.gguf") as gguf:
        assert gguf.tensors[NAME].type is TensorType[written]
        found, scale = ternary(gguf)
        assert np.array_equal(found, values) and scale == np.float32(0.1)
    told = f"1 projections have rows that {128 if kind == 'i2_s' else 256} does not divide and are Q2_0"
    assert (told in capsys.readouterr().err) == (written.lower() != kind)


@pytest.mark.parametrize("kind", ["i2_s", "tq1_0", "tq2_0", "q2_0"])
def test_rows_that_fit_no_packed_type(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are kept to the bit, as -1, 0, 1 in F16 and the scale in float32; and packing that file again changes nothing."""
    values = random(4, 84)
    quantize(write(tmp_path / "in.gguf", floats(values)), tmp_path / "out.gguf", kind)
    assert "does not divide and are F16, 16 bits a weight" in capsys.readouterr().err
    quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", kind, quiet=True)
    for name in ("out.gguf", "again.gguf"):
        with open_gguf(tmp_path / name) as gguf:
            assert gguf.tensors[NAME].type is TensorType.F16
            assert np.array_equal(gguf.raw(NAME).view("<f2").reshape(4, 84), values)
            assert gguf.raw(NAME.replace("weight", "scale")).view("<f4").tolist() == [np.float32(0.1)]


def test_f16_that_was_asked_for_has_no_scale_of_its_own(tmp_path: Path) -> None:
    quantize(write(tmp_path / "in.gguf", floats(random(4, 84))), tmp_path / "out.gguf", "f16", quiet=True)
    with open_gguf(tmp_path / "out.gguf") as gguf:
        assert list(gguf.tensors) == [NAME]


@pytest.mark.parametrize("scale", [0.1, 6.2e-5, 6e4])
def test_f16_holds_the_product(scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = random(4, 256)
    quantize(write(tmp_path / "in.gguf", packed(values, scale)), tmp_path / "out.gguf", "f16")
    assert "weight * scale with the scale rounded to 11 bits" in capsys.readouterr().err
    with open_gguf(tmp_path / "out.gguf") as gguf:
        stored = gguf.raw(NAME).view(np.float16).reshape(4, 256)
    assert np.array_equal(stored, values.astype(np.float16) * np.float16(scale))
    assert not np.signbit(stored[values == 0]).any()
    quantize(tmp_path / "out.gguf", tmp_path / "back.gguf", "i2_s", quiet=True)
    with open_gguf(tmp_path / "back.gguf") as gguf:
        found, back = ternary(gguf)
    assert np.array_equal(found, values) and back == np.float32(np.float16(scale))


@pytest.mark.parametrize("scale", [6e-5, 65520.0, 1e30])
def test_scales_that_f16_has_not(scale: float, tmp_path: Path) -> None:
    source = write(tmp_path / "in.gguf", packed(random(4, 256), scale))
    with pytest.raises(UnsupportedError, match=r"ffn_up.weight: the scale .* is beyond the range of F16"):
        quantize(source, tmp_path / "out.gguf", "f16", quiet=True)
    assert list(tmp_path.iterdir()) == [source]


def blocks_with(scale: float, values: NDArray[np.int8]) -> OutputTensor:
    raw = tq2_0.pack_rows(values).reshape(-1, 66).copy()
    raw[:, 64:] = np.array([scale], "<f2").view(np.uint8)
    return OutputTensor(NAME, TensorType.TQ2_0, values.shape, lambda: raw)


def scale_tensor(values: Any, kind: TensorType = TensorType.F32, name: str = "blk.0.ffn_up.scale") -> OutputTensor:
    array = np.asarray(values, "<f4")
    stored = {TensorType.F16: lambda: array.astype("<f2"), TensorType.BF16: lambda: (array.view("<u4") >> 16).astype("<u2")}
    return OutputTensor(name, kind, array.shape, stored.get(kind, lambda: array if kind is TensorType.F32 else np.zeros(34, np.uint8)))


@pytest.mark.parametrize("before", [True, False], ids=["scale first", "weight first"])
def test_scales_of_their_own_become_part_of_the_projection(before: bool, tmp_path: Path) -> None:
    """As other tools write them: the scale in the blocks, in a tensor, or in both."""
    values = random(4, 256)
    tensors = [scale_tensor([0.1]), blocks_with(0.5, values)]
    quantize(write(tmp_path / "in.gguf", *tensors[:: 1 if before else -1]), tmp_path / "i2_s.gguf", quiet=True)
    quantize(tmp_path / "in.gguf", tmp_path / "q2_0.gguf", "q2_0", quiet=True)
    quantize(write(tmp_path / "f.gguf", floats(values, 0.5), scale_tensor([0.1])), tmp_path / "floats.gguf", quiet=True)
    for name in ("i2_s", "q2_0", "floats"):
        with open_gguf(tmp_path / f"{name}.gguf") as gguf:
            found, scale = ternary(gguf)
        assert np.array_equal(found, values) and scale == np.float32(0.1) / 2


@pytest.mark.parametrize("kind", [TensorType.F16, TensorType.BF16])
def test_scales_of_their_own_of_other_float_types(kind: TensorType, tmp_path: Path) -> None:
    values = random(4, 256)
    quantize(write(tmp_path / "in.gguf", blocks_with(0.5, values), scale_tensor([0.375], kind)), tmp_path / "i2_s.gguf", quiet=True)
    with open_gguf(tmp_path / "i2_s.gguf") as gguf:
        found, scale = ternary(gguf)
    assert np.array_equal(found, values) and scale == 0.1875


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (scale_tensor([0.1, 0.2]), UnsupportedError, r"ffn_up.scale: F32 \[2\]; .*one a tensor"),
        (scale_tensor(range(32), TensorType.Q8_0), UnsupportedError, r"ffn_up.scale: Q8_0 \[32\]"),
        (scale_tensor([np.nan]), BadFileError, "ffn_up.scale: scale is nan"),
        (scale_tensor([-1]), BadFileError, "ffn_up.scale: scale is -1.0"),
        (scale_tensor([1], name="output.scale"), UnsupportedError, "output.scale: a scale of something that is no projection"),
    ],
)
def test_scale_tensors_that_are_refused(more: OutputTensor, error: type[Exception], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.gguf", blocks_with(1, random(4, 256)), more)
    with pytest.raises(error, match=message):
        quantize(source, tmp_path / "out.gguf", quiet=True)
    assert list(tmp_path.iterdir()) == [source]


def test_damage_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    raw = tq1_0.pack_rows(random(4, 256))
    raw[3] = 1  # 256 / 243 rounded up is 2
    assert tq1_0.has_unwritten_bytes(raw)
    source = write(tmp_path / "in.gguf", OutputTensor(NAME, TensorType.TQ1_0, (4, 256), lambda: raw))
    with pytest.raises(BadFileError, match="none of the 243"):
        quantize(source, tmp_path / "out.gguf", "q2_0", quiet=True)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("arch", "kind", "told"), [("bitnet-b1.58", "tq2_0", True), ("bitnet", "tq2_0", False), ("bitnet-b1.58", "i2_s", False)]
)
def test_a_file_that_llama_cpp_does_not_run_says_so(
    arch: str, kind: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(write(tmp_path / "in.gguf", packed(random(4, 256)), arch=arch), tmp_path / "out.gguf", kind)
    assert ("llama.cpp has no architecture bitnet-b1.58" in capsys.readouterr().err) == told


def test_i2_s_of_arm_builds_is_repaired(arm_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(arm_model, tmp_path / "auto.gguf")
    assert "I2_S was read in the order of ARM builds, because columns of ffn_down" in capsys.readouterr().err
    assert (tmp_path / "auto.gguf").read_bytes() == EMBEDDED_MODEL.read_bytes()
    quantize(arm_model, tmp_path / "named.gguf", i2_s_layout="arm")
    assert "note" not in capsys.readouterr().err
    with open_gguf(tmp_path / "named.gguf") as gguf, open_gguf(EMBEDDED_MODEL) as expected:
        assert gguf.metadata.pop(i2_s_order.KEY) == "128/32"
        assert gguf.metadata == expected.metadata
        assert all(np.array_equal(gguf.raw(name), expected.raw(name)) for name in expected.tensors)


def test_the_user_knows_better_than_the_weights(arm_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(arm_model, tmp_path / "out.gguf", i2_s_layout="x86")
    assert "I2_S was read as --i2s-layout says, against the weights" in capsys.readouterr().err
    with open_gguf(arm_model) as before, open_gguf(tmp_path / "out.gguf") as after:
        assert all(np.array_equal(before.raw(name), after.raw(name)) for name in before.tensors)
        assert after.metadata[i2_s_order.KEY] == "128/32"
    quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", "tq2_0")
    assert "ARM" not in capsys.readouterr().err
    with open_gguf(tmp_path / "again.gguf") as gguf:
        assert i2_s_order.KEY not in gguf.metadata


def test_random_weights_are_read_as_published_unless_said(tmp_path: Path) -> None:
    values = random(4, 256)
    source = write(tmp_path / "in.gguf", packed(values))
    quantize(source, tmp_path / "auto.gguf", quiet=True)
    quantize(source, tmp_path / "arm.gguf", i2_s_layout="arm", quiet=True)
    with open_gguf(tmp_path / "auto.gguf") as auto, open_gguf(tmp_path / "arm.gguf") as arm:
        assert np.array_equal(ternary(auto)[0], values)
        assert np.array_equal(ternary(arm)[0], i2_s.unpack_rows(i2_s.pack_rows(values), 256, arm=True))


def test_command_line(
    bitnet: Callable[..., Any], refused: Callable[..., None], arm_model: Path, models: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    done = bitnet("quantize", arm_model, out, "q2_0", "--i2s-layout", "arm", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = models.write_folder(tmp_path / "model", "C_packed")
    done = bitnet("convert", folder, "-o", tmp_path / "c.gguf", "--outtype", "tq2_0")
    assert done.returncode == 0 and "2 projections have rows that 256 does not divide and are Q2_0" in done.stderr
    assert bitnet("quantize", arm_model, out, "tq3_0", "--force").returncode == 2
    refused(
        bitnet("run", "-m", arm_model, "-p", "x", "-n", "1", "-q"), 4, "I2_S in an order that is not run", "bitnet quantize IN OUT i2_s"
    )
    with pytest.raises(UsageError, match="expected one of i2_s, tq1_0, tq2_0, q2_0, pq2_0, ptq1_0, q1_0, iq2_bn, f16"):
        quantize(arm_model, tmp_path / "x.gguf", "tq3_0")
