"""Each way to store ternary weights against the rule it was written by, and what must be refused rather than guessed."""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.flavours import Flavour, TernaryWeight, looks_ternary, read_ternary
from bitnet_cli.checkpoint.folder import Checkpoint, open_checkpoint
from bitnet_cli.checkpoint.safetensors import read_table
from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.ternary import absmean

EXPECTED = {
    "A": (Flavour.ONLINE, "mean|W|"),
    "B": (Flavour.PACKED_MULTIPLY, "multiply by weight_scale"),
    "C": (Flavour.PACKED_DIVIDE, "divide by weight_scale"),
    "D": (Flavour.DEQUANTISED, "max|W|"),
    "E": (Flavour.MASTER, "mean|W|"),
    "F": (Flavour.UNPACKED_DIVIDE, "divide by weight_scale"),
}
GATE = "model.layers.1.mlp.gate_proj.weight"


def weights(checkpoint: Checkpoint) -> dict[str, TernaryWeight]:
    read = {}
    for name, projection in checkpoint.projections.items():
        assert projection.flavour is not None
        read[name] = read_ternary(projection.weight, projection.scale, projection.shape, projection.flavour)
    return read


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


@pytest.fixture
def write(models: ModuleType, tmp_path: Path) -> Any:
    """write(flavour, **tensors): a folder of that flavour with some tensors replaced, or removed where the value is None."""

    def write_changed(flavour: str, tensors: dict[str, Any] | None = None, **options: Any) -> Path:
        name = next(f for f in models.FLAVOURS if f.startswith(flavour))
        folder: Path = models.write_folder(tmp_path / name, name, **options)
        if tensors:
            seed, exact = options.get("seed", 0), options.get("exact", True)
            every = models.tensors_of(name, models.masters(models.Shape(), seed, exact)) | tensors
            models.write_safetensors(folder / "model.safetensors", {k: v for k, v in every.items() if v is not None})
        return folder

    return write_changed


@pytest.mark.parametrize("letter", EXPECTED)
def test_detection_and_values(letter: str, folders: dict[str, Path], models: ModuleType) -> None:
    checkpoint = open_checkpoint(folders[letter], float_is_master=letter == "E")
    flavour, rule = EXPECTED[letter]
    assert checkpoint.flavour is flavour and flavour.scale_rule == rule
    parameters = models.masters(models.Shape())
    read = weights(checkpoint)
    assert len(read) == 14
    for name, weight in read.items():
        values, scale = models.ternary(parameters[checkpoint.projections[name].weight.name])
        assert np.array_equal(weight.values(), values)
        assert weight.scale == scale and weight.scale.dtype == np.float32
        assert 0.1 < np.mean(values == 0) < 0.9  # so that D's scale is not A's by accident


@pytest.mark.parametrize(
    ("letter", "bound"),
    [
        ("A", 0.0),
        ("E", 0.0),
        # 1 / s rounded, and 1 / that rounded: each half a unit in the last of 24 bits.
        ("C", 2.0**-23 + 2.0**-48),
        ("F", 2.0**-23 + 2.0**-48),
        # s, or s times a sign, rounded to the 8 bits of bfloat16.
        ("B", 2.0**-8),
        ("D", 2.0**-8),
    ],
)
def test_scales_of_general_masters(letter: str, bound: float, models: ModuleType, tmp_path: Path) -> None:
    """The values are the same in every flavour; scales differ by what the stored type rounds away and no more."""
    name = next(f for f in models.FLAVOURS if f.startswith(letter))
    checkpoint = open_checkpoint(models.write_folder(tmp_path, name, seed=3, exact=False), float_is_master=True)
    parameters = models.masters(models.Shape(), seed=3, exact=False)
    errors = []
    for target, weight in weights(checkpoint).items():
        values, scale = models.ternary(parameters[checkpoint.projections[target].weight.name])
        assert np.array_equal(weight.values(), values)
        errors.append(abs(float(weight.scale) / float(scale) - 1))
    assert max(errors) <= bound
    assert (max(errors) > 0) == (bound > 0)


def test_b_and_c_differ_in_one_word_of_the_config(folders: dict[str, Path], write: Any) -> None:
    """The trap: the same bytes read with the other rule give the reciprocal."""
    folder = write("B")
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config=section | {"linear_class": "bitlinear"})
    divided, multiplied = weights(open_checkpoint(folder)), weights(open_checkpoint(folders["B"]))
    for name, weight in divided.items():
        assert weight.scale == 1 / multiplied[name].scale != multiplied[name].scale


def test_plain_floats_need_the_flag(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--ternarise"):
        open_checkpoint(folders["E"])


def test_dequantised_ternary_is_not_a_master_even_with_the_flag(folders: dict[str, Path]) -> None:
    assert open_checkpoint(folders["D"], float_is_master=True).flavour is Flavour.DEQUANTISED


def test_the_first_reproduction_implies_masters(write: Any, models: ModuleType) -> None:
    """1bitLLM: BitnetForCausalLM with a lower-case n, its own names of the sub-norms, SiLU."""
    folder = write("E")
    table = models.tensors_of("E_master", models.masters(models.Shape()))
    renamed = {k.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): v for k, v in table.items()}
    models.write_safetensors(folder / "model.safetensors", renamed)
    own = {"rope_parameters": "absent", "hidden_act": "silu"}
    change_config(folder, architectures=["BitnetForCausalLM"], model_type="llama", rope_theta=10000.0, **own)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.flavour is Flavour.MASTER and checkpoint.config.activation == "silu"
    assert checkpoint.norms["blk.1.attn_sub_norm"].name == "model.layers.1.self_attn.inner_attn_ln.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-45])
@pytest.mark.parametrize("letter", ["B", "C"])
def test_unusable_scale(letter: str, value: float, write: Any) -> None:
    folder = write(letter, {f"{GATE}_scale": ("F32", np.array([value], np.float32))})
    with pytest.raises(BadFileError, match=f"{GATE}_scale: scale is .*expected a positive number"):
        weights(open_checkpoint(folder))


def test_scale_whose_reciprocal_is_denormal(write: Any) -> None:
    folder = write("C", {f"{GATE}_scale": ("F32", np.array([3e38], np.float32))})
    with pytest.raises(BadFileError, match="1 / scale is"):
        weights(open_checkpoint(folder))


def test_several_scales(write: Any) -> None:
    folder = write("C", {f"{GATE}_scale": ("F32", np.ones(640, np.float32))})
    with pytest.raises(UnsupportedError, match="640 scales in one tensor"):
        weights(open_checkpoint(folder))


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_code_3(shift: int, write: Any, models: ModuleType) -> None:
    packed = models.tensors_of("C_packed", models.masters(models.Shape()))[GATE][1].copy()
    packed[7, 11] |= 3 << shift
    with pytest.raises(BadFileError, match="2-bit code is 3"):
        weights_of = weights(open_checkpoint(write("C", {GATE: ("U8", packed)})))
        weights_of["blk.1.ffn_gate"].values()


def test_everything_skipped(write: Any) -> None:
    folder = write("A")
    change_config(folder, quantization_config={"quant_method": "bitnet", "modules_to_not_convert": ["_proj"]})
    with pytest.raises(UnsupportedError, match="keeps every projection in float"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("letter", "value"), [("A", np.nan), ("A", np.inf), ("E", np.nan), ("D", np.nan), ("D", np.inf)])
def test_floats_that_are_no_numbers(letter: str, value: float, write: Any, models: ModuleType) -> None:
    name = next(f for f in models.FLAVOURS if f.startswith(letter))
    bad = models.from_bf16(models.tensors_of(name, models.masters(models.Shape()))[GATE][1])
    bad[600, 200] = value
    folder = write(letter, {GATE: ("F32", bad)})
    with pytest.raises(BadFileError, match=r"gate_proj\.weight: (mean|max)\|W\| is (nan|inf)"):
        weights(open_checkpoint(folder, float_is_master=True))


@pytest.mark.parametrize("value", [0.5, np.nan, 2.0])
def test_unpacked_that_is_not_ternary(value: float, write: Any, models: ModuleType) -> None:
    bad = models.ternary(models.masters(models.Shape())[GATE])[0].astype(np.float32)
    bad[600, 200] = value
    checkpoint = open_checkpoint(write("F", {GATE: ("F32", bad)}))
    with pytest.raises(BadFileError, match="values other than -1, 0, 1"):
        weights(checkpoint)["blk.1.ffn_gate"].values()


def test_unpacked_int8(write: Any, models: ModuleType) -> None:
    values = models.ternary(models.masters(models.Shape())[GATE])[0]
    checkpoint = open_checkpoint(write("F", {GATE: ("I8", values)}))
    assert np.array_equal(weights(checkpoint)["blk.1.ffn_gate"].values(), values)


def test_dequantised_with_several_scales_is_refused_by_name(write: Any, models: ModuleType, tmp_path: Path) -> None:
    """Shards or groups with a scale each (TriLM, Bonsai): one scale would be wrong, absmean would be worse."""
    values, scale = models.ternary(models.masters(models.Shape())[GATE])
    shards = values * np.repeat([scale, 2 * scale], 320)[:, None].astype(np.float32)
    folder = write("D", {GATE: ("F32", shards)})
    assert open_checkpoint(folder).flavour is Flavour.ROWS
    with pytest.raises(UnsupportedError, match="with ReLU²; `bitnet run` would refuse the file"):
        convert(folder, tmp_path / "m.gguf", quiet=True)


def test_tensor_of_zeros(write: Any) -> None:
    for letter in ("A", "D"):
        read = weights(open_checkpoint(write(letter, {GATE: ("F32", np.zeros((640, 256), np.float32))})))["blk.1.ffn_gate"]
        assert not read.values().any() and read.scale == np.float32(1e-5)


def test_looks_ternary(tmp_path: Path, models: ModuleType) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-1, 2, (64, 128)).astype(np.float32)
    cases = {
        "one scale": (values * np.float32(0.3), True),
        "zeros": (np.zeros((64, 128), np.float32), True),
        "a scale for each row": (values * rng.uniform(1, 2, (64, 1)).astype(np.float32), True),
        "a scale for each group of 32": ((values.reshape(-1, 32) * rng.uniform(1, 2, (256, 1))).astype(np.float32).reshape(64, 128), True),
        "one value off": (np.where(np.arange(8192).reshape(64, 128) == 8000, 0.9, values).astype(np.float32), False),
        "trained": (rng.normal(size=(64, 128)).astype(np.float32), False),
        "zeros, then trained": (np.vstack([np.zeros((9000, 128)), rng.normal(size=(64, 128))]).astype(np.float32), False),
    }
    models.write_safetensors(tmp_path / "x", {name: ("F32", value) for name, (value, _) in cases.items()})
    table = read_table(tmp_path / "x")
    assert {name: looks_ternary(table[name]) for name in cases} == {name: expected for name, (_, expected) in cases.items()}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_absmean_does_not_depend_on_the_chunks(dtype: type[np.floating]) -> None:
    """Row sums in float64, added exactly: chunks of any size, and rows in any order, give one scale."""
    rng = np.random.default_rng(1)
    weight = (rng.normal(0, 0.02, (200, 6913)) * rng.lognormal(0, 3, (200, 1))).astype(dtype)
    values, scale = absmean.ternarise(weight)
    for step in (1, 7, 33, 199):
        chunks = [weight[i : i + step] for i in range(0, 200, step)]
        assert absmean.mean_abs(chunks) == scale
        assert np.array_equal(np.concatenate([absmean.round_to_ternary(c, scale) for c in chunks]), values)
    assert absmean.mean_abs([weight[rng.permutation(200)]]) == scale
    exact = math.fsum(np.abs(weight.astype(np.float64)).reshape(-1).tolist()) / weight.size
    assert abs(float(scale) / exact - 1) < 2**-24


def test_absmean_rounds_halves_to_even_and_has_a_smallest_scale() -> None:
    weight = np.array([[0.5, -0.5, 1.5, -1.5, 1.0, 1.0]], np.float32)  # mean|W| = 1
    values, scale = absmean.ternarise(weight)
    assert scale == 1 and values.tolist() == [[0, 0, 1, -1, 1, 1]]
    assert absmean.ternarise(np.full((1, 4), 1e-9, np.float32))[1] == np.float32(1e-5)
    assert np.isnan(absmean.mean_abs([np.array([[np.nan, 1]], np.float32)]))


def test_modules_to_not_convert_stay_float(write: Any, models: ModuleType) -> None:
    folder = write("A")
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    skipped = ["model.layers.0.mlp", "k_proj", "lm_head"]
    change_config(folder, quantization_config=section | {"modules_to_not_convert": skipped})
    kept = {name for name, p in open_checkpoint(folder).projections.items() if p.flavour is None}
    assert kept == {"blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down", "blk.0.attn_k", "blk.1.attn_k"}
    # A prefix ends at a module boundary: layers.1 is not layers.11, and mlp.gate is not mlp.gate_proj.
    change_config(folder, quantization_config=section | {"modules_to_not_convert": ["model.layers.0.mlp.gate", "model.layer", "lm_head"]})
    assert all(p.flavour is Flavour.ONLINE for p in open_checkpoint(folder).projections.values())


@pytest.mark.live
def test_unpacking_agrees_with_transformers(tmp_path: Path, models: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    values = np.random.default_rng(2).integers(-1, 2, (640, 256)).astype(np.int8)
    packed = bitnet.pack_weights(torch.from_numpy(values.copy())).numpy()
    models.write_safetensors(tmp_path / "x", {"w": ("U8", packed), "w_scale": ("F32", np.array([4.0], np.float32))})
    table = read_table(tmp_path / "x")
    read = read_ternary(table["w"], table["w_scale"], (640, 256), Flavour.PACKED_DIVIDE)
    assert np.array_equal(read.values(), values) and read.scale == 0.25
    assert np.array_equal(bitnet.unpack_weights(torch.from_numpy(packed), torch.float32).numpy(), values)
    assert np.array_equal(models.packed(values), packed)


@pytest.mark.live
def test_absmean_agrees_with_transformers(models: ModuleType) -> None:
    """The online class, which computes in float32: equal scales where float32 sums are exact, else to its rounding."""
    torch = pytest.importorskip("torch")
    for exact in (True, False):
        for name, weight in models.masters(models.Shape(), exact=exact).items():
            if "_proj" in name:
                reference = torch.from_numpy(weight)
                scale = reference.abs().mean().clamp(min=1e-5)
                values, found = absmean.ternarise(weight)
                assert abs(float(scale) / float(found) - 1) <= (0 if exact else 1e-6)
                assert np.array_equal(values, (reference * (1 / torch.tensor(found))).round().clamp(-1, 1).numpy())
