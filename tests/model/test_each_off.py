"""What makes a text faster changes none of its tokens: all of it together, each left out, and none.

The embedded model, which has ReLU² and a float16 head, without the thresholds of size, so that what pays for large models only is built. A
text beside another has two rows in a step: no gate is skipped then, no column and no base-3 row read.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model import base3_rows, columns, derived, head
from bitnet_cli.model.completion import Generation, Request, complete
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling

if isa.chosen() == isa.NAIVE:
    pytest.skip("the naive set has none of it", allow_module_level=True)

NEVER = 1 << 60
SAMPLING = [Sampling(0.0), Sampling(0.8, 40, 0.95, 0.0, repeat_penalty=1.1, seed=7)]
TOKENS = 48


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenModel]]:
    """Opens the model with everything on but what is named."""
    opened: list[OpenModel] = []

    def run(*off: str, **options: Any) -> OpenModel:
        for name, module, least in (("head", head, "HEAD"), ("columns", columns, "TERNARY"), ("base3", base3_rows, "TERNARY")):
            monkeypatch.setattr(module, f"SMALLEST_{least}", NEVER if name in off else 0)
        for name in ("SPARSE", "SPARSE_BESIDE_BASE3"):
            monkeypatch.setattr(columns, name, 0.0)
        monkeypatch.setattr(derived, "PAYS_OFF", 0)
        opened.append(open_model(EMBEDDED_MODEL, Options(**{"threads": 2, "context": 256, **options})))
        return opened[-1]

    yield run
    for model in opened:
        model.engine.close()


def prompt(model: OpenModel) -> list[int]:
    return model.tokenizer.encode(
        "And it came to pass in those days, that the king said unto the people, and the people said unto the king,"
    )


def texts(model: OpenModel, draft: int = 6) -> list[list[int]]:
    return [complete(model, prompt(model), sampling, Request(TOKENS, draft=draft)).ids for sampling in SAMPLING]


@pytest.fixture
def plain(opening: Callable[..., OpenModel]) -> list[list[int]]:
    """Texts of a model that has nothing of it, token by token."""
    model = opening("head", "columns", "base3", threads=1)
    weights = model.engine.arrays.weights
    found = texts(model, draft=0)
    assert not (len(weights.planes.scales) or weights.columns_built[0] or weights.base3_built[0])
    assert all(len(ids) == TOKENS for ids in found) and found[0] != found[1]
    return found


def test_all_on(plain: list[list[int]], opening: Callable[..., OpenModel]) -> None:
    model = opening()
    weights = model.engine.arrays.weights
    assert texts(model) == plain
    assert texts(model, draft=0) == plain
    assert len(weights.planes.scales) and weights.columns_built[0]
    assert weights.base3_built[0] or isa.chosen() not in base3_rows.SETS


@pytest.mark.parametrize("off", ["head", "columns", "base3"])
def test_one_layout_off(plain: list[list[int]], opening: Callable[..., OpenModel], off: str) -> None:
    model = opening(off)
    weights = model.engine.arrays.weights
    assert texts(model, draft=0) == plain
    assert {"head": len(weights.planes.scales), "columns": weights.columns_built[0], "base3": weights.base3_built[0]}[off] == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_other_threads(plain: list[list[int]], opening: Callable[..., OpenModel], threads: int) -> None:
    assert texts(opening(threads=threads)) == plain


def test_prefixes_kept_or_forgotten(plain: list[list[int]], opening: Callable[..., OpenModel]) -> None:
    model = opening()
    first = texts(model)
    pages = model.engine.pages
    assert first == texts(model) == plain  # the second time the prompt is known
    pages.forget()
    assert texts(model) == plain


def test_beside_another_text(plain: list[list[int]], opening: Callable[..., OpenModel]) -> None:
    model = opening()
    together: list[Generation] = [complete(model, prompt(model), sampling, Request(TOKENS)) for sampling in SAMPLING]
    while [text for text in together if text.advance()]:
        pass
    assert [text.ids for text in together] == plain
