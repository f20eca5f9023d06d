"""The kernels' self-test: it runs what a model runs, says what is wrong with it, and passes where nothing is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import WrongKernelsError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model import base3_rows, columns, head, self_test
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.micro_model import TOKENS, micro_model

from .builder import random_model, write_model
from .group_models import write_grouped

COMPILED = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")


def layouts(path: Path, **options: Any) -> tuple[Any, Any]:
    """Of a model's frame, and of its micro-model's."""
    with open_gguf(path) as file:
        engine = Engine(file, **options)
        model = micro_model(engine.arrays.sizes, engine.arrays.weights, engine.cache_type)
        return self_test._layout(engine.arrays), self_test._layout(model[:4])


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8", "q4", "q3"])
@pytest.mark.parametrize("query_type", ["f32", "q4"])
def test_caches_have_the_layout_of_the_model(cache_type: str, query_type: str) -> None:
    one, other = layouts(EMBEDDED_MODEL, cache_type=cache_type, query_type=query_type, context=64)
    assert one == other


def test_families_have_the_layout_of_the_model(models: ModuleType, tmp_path: Path) -> None:
    from bitnet_cli.commands.convert import convert

    for kind in models.KINDS:
        path = tmp_path / f"{kind}.gguf"
        convert(models.write_folder(tmp_path / kind, "D_dequantised", kind=kind), path, quiet=True)
        one, other = layouts(path)
        assert one == other, kind


@pytest.mark.parametrize("kind", [TensorType.Q2_0, TensorType.Q1_0])
def test_scales_of_groups_have_the_layout_of_the_model(kind: TensorType, tmp_path: Path) -> None:
    write_grouped(tmp_path / "m.gguf", kind, embedding=kind)
    one, other = layouts(tmp_path / "m.gguf")
    assert one == other


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """An engine over the embedded model in which all that pays for large models only is built; the self-test has not run."""
    monkeypatch.setattr(self_test, "_passed", set())
    for module, least in ((head, "HEAD"), (columns, "TERNARY"), (base3_rows, "TERNARY")):
        monkeypatch.setattr(module, f"SMALLEST_{least}", 0)
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        with open_gguf(EMBEDDED_MODEL) as file:
            made.append(Engine(file, **{"context": 256, "weight_bits": "1.6", "cache_type": "f16", **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@COMPILED
def test_passes_and_is_not_run_again(engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine()
    one.start()
    assert len(self_test._passed) == 1
    monkeypatch.setattr(self_test, "_wrong", lambda *_: iter(["asked"]))
    one.start()
    with pytest.raises(WrongKernelsError, match="asked"):
        self_test.check(one.arrays, one.cache_type, False)  # another run, which reads no base-3 rows


def damaged(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Any, int], None]) -> None:
    """Kernels that compute rightly, and then change something: damage(scratch, tokens of the step)."""

    class Wrong(self_test.Team):
        def run(self, texts: Any, first_layer: int, last_layer: int, wanted: Any = ()) -> None:
            super().run(texts, first_layer, last_layer, wanted)
            damage(self._arrays, texts[0].tokens)

    monkeypatch.setattr(self_test, "Team", Wrong)


def scaled(name: str, place: Any, only: Callable[[int], bool] = lambda tokens: True) -> Callable[[Any, int], None]:
    def damage(arrays: Any, tokens: int) -> None:
        if only(tokens):
            if name == "keys":
                arrays.cache.keys[place] = 0
            else:
                getattr(arrays.scratch, name)[place] *= 1.5

    return damage


@COMPILED
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(scaled("qkv", (3, slice(64))), "projections of queries, keys and values", id="projection"),
        pytest.param(scaled("keys", (0, 0, 0, slice(None), 5)), "keys and values", id="cache"),
        pytest.param(scaled("mixed", (TOKENS - 1, slice(32))), "attention", id="attention"),
        pytest.param(scaled("gate", (TOKENS - 1,)), "feed-forward units", id="units"),
        pytest.param(scaled("x", (0, slice(16)), lambda tokens: tokens > 3), "residual stream", id="stream"),
        pytest.param(scaled("logits", (0, slice(9)), lambda tokens: tokens > 3), "logits", id="logits"),
        pytest.param(scaled("x", (0, slice(1)), lambda tokens: tokens == 1), "decode", id="decode"),
        pytest.param(scaled("x", (2, slice(1)), lambda tokens: tokens == 3), "decode of three tokens", id="three"),
    ],
)
def test_says_what_is_wrong(
    damage: Callable[[Any, int], None], words: str, engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(monkeypatch, damage)
    with pytest.raises(WrongKernelsError) as caught:
        engine().start()
    kernels = isa.chosen()
    assert str(caught.value).startswith(f"the kernels for {kernels} compute wrongly on this machine (their self-test: {words})")
    assert ("BITNET_ISA=portable" in str(caught.value)) is (kernels != "portable")


@COMPILED
@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        (head, "build_planes", "search for the largest logits"),
        (columns, "build_columns", "decode by columns"),
        (base3_rows, "build", "decode by base-3 rows"),
    ],
)
def test_layouts_that_are_built_wrongly(
    module: Any, name: str, words: str, engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(module, name)

    def build(*arguments: Any) -> None:
        right(*arguments)
        weights = next(a for a in arguments if hasattr(a, "packed"))
        target = {"build_planes": weights.planes.six, "build_columns": weights.columns, "build": weights.base3}[name]
        target[: len(target) // 2] //= np.uint8(2)

    monkeypatch.setattr(module, name, build)
    with pytest.raises(WrongKernelsError, match=words):
        engine().start()


def test_the_naive_set_needs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(self_test, "_wrong", lambda *_: iter(["asked"]))
    monkeypatch.setattr(self_test, "_passed", set())
    monkeypatch.setattr(isa, "chosen", lambda: isa.NAIVE)
    path = write_model(tmp_path / "m.gguf", random_model(seed=1))
    with open_gguf(path) as file:
        Engine(file).start()
