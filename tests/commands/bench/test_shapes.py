"""Random weights in published shapes, and the projection from some layers to all."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bitnet_cli.commands.bench import command, project, shapes
from bitnet_cli.commands.bench.measure import Runner
from bitnet_cli.commands.bench.plan import Trial
from bitnet_cli.commands.bench.rows import Power
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.gguf_file.reader import TensorType, open_gguf
from bitnet_cli.layer_table import layer_weights
from bitnet_cli.machine.energy import Meter
from bitnet_cli.model import traffic
from bitnet_cli.model.config import read_config
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.ternary import i2_s

SMALL = shapes.Shape(256, 384, 3, 4, 2, 320, context=512)
MiB = 1 << 20


@pytest.mark.slow
def test_a_shape_with_groups_is_a_qwen3_that_runs(tmp_path: Path) -> None:
    """Heads wider than hidden / heads, an untied head; the file is as large as the shape says, and a token reads all but the embedding."""
    shape = SMALL._replace(layers=2, groups=True, head_size=128, tied=False)
    size = shapes.write_shape(tmp_path / "m.gguf", shape, "small")
    assert shape.file_bytes() <= size < shape.file_bytes() + 30000
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.tensors["output.weight"].type is TensorType.PQ2_0
        engine = Engine(file, context=32)
        logits = Sequence(engine).feed([1, 2, 3])
        assert np.isfinite(logits).all()
        assert traffic.bytes_a_token(engine) == pytest.approx(shape.file_bytes() - 320 * 256 * 34 / 128, rel=0.03)
        engine.close()


def test_published_shapes_have_published_sizes() -> None:
    """Ternary weights by hand for two; BitNet 2B-4T has 2,084,044,800. Widths must be whole blocks, or I2_S could not hold them."""
    assert shapes.SHAPES["2B-4T"].ternary_weights() == 2_084_044_800
    assert shapes.SHAPES["125M"].ternary_weights() == 11 * (4 * 768 * 768 + 3 * 768 * 3072)
    assert shapes.SHAPES["100B"].file_bytes() == 72 * (4 * 8192**2 + 3 * 8192 * 45568) // 4 + 2 * 32002 * 8192
    for shape in shapes.SHAPES.values():
        assert shape.hidden % 128 == shape.feed_forward % 128 == shape.hidden % shape.heads == 0


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_a_temporary_model(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid, a third of the weights 0, layers different in memory and content; and nothing stays behind."""
    monkeypatch.setattr(shapes.tempfile, "tempdir", str(tmp_path))
    with shapes.temporary_model(SMALL, "small", activation) as file:
        config = read_config(file)
        assert (config.layers, config.hidden, config.activation, config.context) == (3, 256, activation, 512)
        assert config.ternary_weights == SMALL.ternary_weights()
        ups = [file.raw(f"blk.{layer}.ffn_up.weight") for layer in range(3)]
        assert not np.array_equal(ups[0], ups[1])
        values = i2_s.unpack(ups[0], 384, 256)[0]
        assert values.min() == -1 and values.max() == 1
        assert abs(np.mean(values == 0) - 1 / 3) < 0.01
        assert abs(file.size - SMALL.file_bytes()) < 100_000
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes.tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(BitnetError, match=r"need \d+ MB of disk"),
        shapes.temporary_model(SMALL._replace(layers=10**9 * 4), "huge", "relu2"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_how_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """7B has 54 MB a layer: five are more than 256 MiB, and eight times a cache of 64 MiB needs ten. Small shapes leave one layer out."""
    monkeypatch.setattr(project, "available_bytes", lambda: 8 << 30)
    big, small = shapes.SHAPES["7B"], shapes.SHAPES["125M"]
    for cache, measured in ((32 * MiB, 5), (64 * MiB, 10)):
        monkeypatch.setattr(project, "last_cache_bytes", lambda cache=cache: cache)
        assert project.layers_to_measure(big, 6 << 30, forced=False) == (measured, 32)
        assert project.layers_to_measure(big, 4 << 30, forced=False) == (32, 32)
        assert project.layers_to_measure(big, 4 << 30, forced=True) == (measured, 32)
    assert project.layers_to_measure(small, 1, forced=True) == (10, 11)
    assert "are less than 8 times" in project.method(project.Layers(10, 11), small)
    monkeypatch.setattr(project, "available_bytes", lambda: None)  # not told: run it
    assert not project.layers_to_measure(big, 6 << 30, forced=False).projected


class Clock:
    """In place of an engine of 2 layers: 5 ms a layer in a chunk, 1 ms in a token, half of that where the head did not run before."""

    engine = SimpleNamespace(config=SimpleNamespace(layers=2))
    head_ran = False

    def time_part(self, tokens: int, position: int, layers: int, logits: int, top: int = 0) -> float:
        before, self.head_ran = self.head_ran, logits > 0
        if tokens == 1 and not before:
            return 0.0005 * layers
        assert position == {128: 10 + (256 - 128) // 2, 1: 10 + 3}[tokens]
        return (0.005 if tokens > 1 else 0.001) * layers


def test_layers_that_were_not_run_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 layers, 2 of them run. A prompt of 256 tokens, two chunks, in 30 ms: 8 x 10 ms more. 8 tokens in 24 ms: 8 x 8 x 1 ms more."""
    monkeypatch.setattr(project, "time_part", Clock.time_part)
    runner = Runner(Clock(), [], Meter(Path("nowhere")), project.Layers(2, 10))  # type: ignore[arg-type]
    assert runner._longer(Trial(256, 0, 10, 0), 30e6) == pytest.approx(110 / 30)
    assert runner._longer(Trial(0, 8, 10, 0), 24e6) == pytest.approx(88 / 24)
    whole = Runner(Clock(), [], Meter(Path("nowhere")), project.Layers(2, 2))  # type: ignore[arg-type]
    assert whole._longer(Trial(256, 0, 10, 0), 30e6) == 1.0


@pytest.mark.parametrize("projected", [False, True])
def test_the_command(projected: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes, operations and parameters are the whole model's, whether it was run whole or projected."""
    monkeypatch.setitem(shapes.SHAPES, "125M", SMALL)
    lists = command.Lists("16", "4", "0,8", "1", "f16", "2", "auto", "0")
    choices = command.Choices(2, True, "json", None, None, Power(), True)
    command.bench(None, command.Shapes("125M", projected, "relu2"), lists, choices)
    for row in json.loads(capsys.readouterr().out):
        assert row["projected"] is projected
        assert row["layers"] == 3 and row.get("layers_measured", 3) == (2 if projected else 3)
        assert ("2 of 3 layers" in row["method"]) if projected else ("method" not in row)
        assert row["model_n_params"] == SMALL.ternary_weights() + 320 * 256 + 3 * (3 * 256 + 384) - (projected * (3 * 256 + 384)) + 256
        assert row["ternary_ops_a_token"] == 2 * SMALL.ternary_weights()
        # Where rows were skipped, as many in the mean layer; the naive kernels skip none.
        if row["n_gen"]:
            share = row["skipped_up"] * 256 * 384 / layer_weights(SMALL)
            assert row["ternary_bytes_a_token"] == pytest.approx(SMALL.ternary_weights() / 4 * (1 - share))
            assert row["kv_bytes_a_token"] == pytest.approx((row["n_depth"] + 2) * 3 * 2 * 128 * 2)


def test_options_that_contradict() -> None:
    lists, choices = (
        command.Lists("16", "4", "0", "1", "f16", "2", "auto", "0"),
        command.Choices(1, True, "json", None, None, Power(), True),
    )
    for model, given, words in (
        ("tiny", command.Shapes("7B", False, "relu2"), "not both"),
        (None, command.Shapes(None, True, "relu2"), "--projected is for --shape"),
        (None, command.Shapes("8B", False, "relu2"), "expected 125M, 350M"),
    ):
        with pytest.raises(UsageError, match=words):
            command.bench(model, given, lists, choices)
