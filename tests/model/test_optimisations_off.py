"""The same answer with each optimisation off: what is skipped, searched, re-packed, shared, guessed or kept decides the time and no token.

One text of the embedded model, greedy, by the way with everything off and by ways with one thing on, or all. What is only for large models
is asked for all the same. Bits of logits where both ways have them, tokens elsewhere.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import compile_cache, isa
from numpy.typing import NDArray

from bitnet_cli import load
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import base3_rows, columns, head, lookup
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence

pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels are what is optimised")
COUNT = 90
PROMPT = [int(i) for i in np.random.default_rng(12).integers(3, 4000, 30)]
Make = Callable[..., Sequence]


@pytest.fixture
def text_of() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(**options: Any) -> Sequence:
            text = Sequence(Engine(stack.enter_context(open_gguf(EMBEDDED_MODEL)), context=256, **options))
            stack.callback(text.engine.close)
            return text

        yield make


def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No derived layouts at all, as if the model were too small for them."""
    for module in (base3_rows, columns, head):
        monkeypatch.setattr(module, "SMALLEST", 1 << 60)


def written(text: Sequence, top: int, pieces: int = 1) -> tuple[list[int], list[NDArray[np.float32]]]:
    """COUNT tokens, greedy, and the logits of each; `pieces`: how many tokens the prompt is fed at a time, 0: all."""
    step = pieces or len(PROMPT)
    for start in range(0, len(PROMPT), step):
        logits = text.feed(PROMPT[start : start + step], top if start + step >= len(PROMPT) else 0)
    ids, rows = [], []
    for _ in range(COUNT):
        rows.append(logits.copy())
        ids.append(int(logits.argmax()))
        logits = text.feed(ids[-1:], top)
    return ids, rows


@pytest.fixture(scope="module")
def plain() -> tuple[list[int], list[NDArray[np.float32]]]:
    """With everything off: one thread, all logits, two bits a weight, no columns, no prefix. Gates are skipped; the test below has none."""
    with pytest.MonkeyPatch.context() as patch, open_gguf(EMBEDDED_MODEL) as file:
        off(patch)
        text = Sequence(Engine(file, context=256, threads=1, weight_bits="2"))
        try:
            return written(text, 0)
        finally:
            text.engine.close()


SWITCHES: dict[str, dict[str, Any]] = {
    "threads": {"threads": 2},
    "head search": {"on": [head], "top": 1},
    "columns": {"on": [columns]},
    "base-3 rows": {"on": [base3_rows], "weight_bits": "1.6"},
    "prompt in one": {"pieces": 0},
    "prompt by threes": {"pieces": 3},
    "all": {"on": [head, columns, base3_rows], "weight_bits": "1.6", "top": 40, "threads": 2, "pieces": 0},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_logits_with_one_thing_on(name: str, plain: Any, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    off(monkeypatch)
    switch = dict(SWITCHES[name])
    on, top, pieces = switch.pop("on", []), switch.pop("top", 0), switch.pop("pieces", 1)
    for module in on:
        monkeypatch.setattr(module, "SMALLEST", 0)
    text = text_of(**{"threads": 1, "weight_bits": "2", **switch})
    ids, rows = written(text, top, pieces)
    weights = text.engine.arrays.weights
    assert ids == plain[0]
    for row, other in zip(rows, plain[1], strict=True):
        known = row != -np.inf
        assert known.any() and np.array_equal(row[known], other[known])
        assert known.sum() >= max(top, 1) and (other[~known] <= row[known].max()).all()
    assert (bool(weights.columns_built[0]), bool(weights.base3_built[0])) == (columns in on, base3_rows in on and bool(len(weights.base3)))
    assert (head in on) == any((row == -np.inf).any() for row in rows)


def test_gates_that_are_skipped(plain: Any, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of several tokens compute every row of `up`: the whole text at once has the logits that decode had."""
    off(monkeypatch)
    text = text_of(threads=1, weight_bits="2")
    rows = text.feed_all([*PROMPT, *plain[0][:-1]])[len(PROMPT) - 1 :]
    assert len(rows) == COUNT and all(np.array_equal(row, other) for row, other in zip(rows, plain[1], strict=True))


def test_what_others_have_computed_of_a_text(plain: Any, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second text takes over the pages of the first, in the middle of it."""
    off(monkeypatch)
    first = text_of(threads=1, weight_bits="2")
    written(first, 0)
    for kept in (1, 7, 16, len(PROMPT)):
        second = Sequence(first.engine)
        known = second.begin([*PROMPT, *plain[0][:kept]])
        assert known == len(PROMPT) + kept - 1
        assert np.array_equal(second.feed(plain[0][kept - 1 : kept]), plain[1][kept])
        second.release()


def texts(model: Any, lookups: int = 0, **more: Any) -> list[str]:
    words = ("And the king said,", "And the king said, And the king", "In the beginning", "And it came to pass")
    return ["".join(model.generate(word, max_tokens=60, temperature=0, lookup=lookups, **more)) for word in words]


def test_guesses_and_a_cache_of_texts_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt lookup whether it pays or not, and one model for all texts against a model for each."""
    monkeypatch.setattr(lookup, "GAIN", 0.0)
    with load(EMBEDDED_MODEL, threads=2) as model:
        one_after_the_other, guessed = texts(model), texts(model, 8)
        again = texts(model)
    fresh = []
    for number in range(4):
        with load(EMBEDDED_MODEL, threads=1, mapped=number % 2 == 0) as model:
            fresh.append(texts(model)[number])
    assert one_after_the_other == guessed == again == fresh


GREEDY = (
    "import sys; from bitnet_cli import load\n"
    "with load(threads=2) as model: print(list(model.generate('And the king', max_tokens=40, temperature=0)))\n"
    "print('numba' in sys.modules, file=sys.stderr)"
)


@pytest.mark.slow
def test_kept_machine_code_and_what_numba_keeps(tmp_path: Path) -> None:
    """The same text by machine code without Numba, by Numba's own files, and by kernels that were compiled anew."""

    def text(**changes: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", GREEDY], env={**os.environ, **changes}, capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout, done.stderr.splitlines()[-1]

    text()
    folder = compile_cache.folder()
    assert folder is not None
    shutil.copytree(folder, tmp_path / "base" / folder.name)
    (tmp_path / "base").chmod(0o700)
    for path in (tmp_path / "base").rglob("*.code"):
        path.unlink()
    kept, by_numba = text(), text(BITNET_CACHE_DIR=str(tmp_path / "base"))
    anew = text(BITNET_CACHE_DIR=str(tmp_path / "empty"))
    assert (kept[1], by_numba[1], anew[1]) == ("False", "True", "True")
    assert kept[0] == by_numba[0] == anew[0]
