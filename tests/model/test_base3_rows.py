"""Decode from base-3 rows: the same logits to the bit, when `auto` builds them, and what cannot be built."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import base3_rows, columns
from bitnet_cli.model.derived import PAYS_OFF
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence

from .builder import Sizes, random_model, write_model

Make = Callable[..., Sequence]
IDS = [int(i) for i in np.random.default_rng(5).integers(3, 4000, 40)]
pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels read 2-bit rows only")


def is_built(decoder: Sequence) -> bool:
    return bool(decoder.engine.arrays.weights.base3_built[0])


def assert_same(decoder: Sequence, other: Sequence, ids: list[int]) -> None:
    """A chunk, then token by token, then a chunk again: prefill reads the file's rows before and after."""
    for part in (ids[:9], *([token] for token in ids[9:30]), ids[30:]):
        assert np.array_equal(decoder.feed(part), other.feed(part))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_the_same(text_of: Make, threads: int) -> None:
    two, less = (text_of(EMBEDDED_MODEL, threads=threads, weight_bits=bits) for bits in ("2", "1.6"))
    less.engine.start()
    assert_same(less, two, IDS)
    assert is_built(less)
    assert not is_built(two)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_logits_of_a_model_whose_rows_end_in_half_a_register(text_of: Make, tmp_path: Path, activation: str, threads: int) -> None:
    path = write_model(tmp_path / "odd.gguf", random_model(Sizes(feed_forward=640), seed=8, activation=activation))
    two, less = (text_of(path, threads=threads, weight_bits=bits) for bits in ("2", "1.6"))
    assert_same(less, two, [token % 50 for token in IDS])
    assert is_built(less)


def test_auto_is_for_large_models_and_waits_for_some_tokens(text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base3_rows, "SETS", (isa.chosen(),))
    small = text_of(EMBEDDED_MODEL)
    assert not len(small.engine.arrays.weights.base3)
    monkeypatch.setattr(base3_rows, "SMALLEST_TERNARY", 0)
    decoder, never = text_of(EMBEDDED_MODEL), text_of(EMBEDDED_MODEL, weight_bits="2")
    layers = decoder.engine.config.layers
    decoder.feed(IDS)
    never.feed(IDS)
    for count, token in enumerate(IDS):
        built = min(max(count - base3_rows.DECIDE_AFTER, 0), layers)  # one more with each token
        assert decoder.engine.arrays.weights.base3_built[0] == built
        assert np.array_equal(decoder.feed([token]), never.feed([token]))
    # 256 columns are 2 registers of 64 bytes, as many as without; 768 are 3: five weights a byte pay only in longer rows.
    assert len(decoder.engine.arrays.weights.base3) <= decoder.engine.config.ternary_weights / 4
    monkeypatch.setattr(base3_rows, "SETS", ())
    assert not len(text_of(EMBEDDED_MODEL).engine.arrays.weights.base3)


def test_the_rest_at_once(text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `bench` wants it; but nothing that has not been begun."""
    monkeypatch.setattr(base3_rows, "SETS", (isa.chosen(),))
    monkeypatch.setattr(base3_rows, "SMALLEST_TERNARY", 0)
    decoder = text_of(EMBEDDED_MODEL)
    decoder.engine.derived.finish()
    assert not is_built(decoder)
    for token in IDS[: base3_rows.DECIDE_AFTER + 1]:
        decoder.feed([token])
    decoder.engine.derived.finish()
    assert decoder.engine.arrays.weights.base3_built[0] == decoder.engine.config.layers


def test_short_texts_are_not_worth_it(text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base3_rows, "SETS", (isa.chosen(),))
    monkeypatch.setattr(base3_rows, "SMALLEST_TERNARY", 0)
    monkeypatch.setattr(columns, "SMALLEST_TERNARY", 0)

    def fed(decoder: Sequence, expected: int | None, tokens: int) -> tuple[bool, bool]:
        """Whether base-3 rows and columns are built after some tokens of a text of at most `expected`."""
        decoder.rewind(0)
        decoder.engine.derived.expect(expected)
        for token in IDS[:tokens]:
            decoder.feed([token])
        return is_built(decoder), bool(decoder.engine.arrays.weights.columns_built[0])

    unknown, long, short = (text_of(EMBEDDED_MODEL) for _ in range(3))
    assert fed(unknown, None, 10) == fed(long, PAYS_OFF + 20, 10) == (True, True)
    monkeypatch.setattr("bitnet_cli.model.derived.PAYS_OFF", 50)
    assert fed(short, 40, 40) == (False, False)
    assert fed(short, 40, 9) == (False, False)
    assert fed(short, 40, 2) == (True, True)  # the 50th and 51st: texts before this one count
    assert fed(text_of(EMBEDDED_MODEL, weight_bits="1.6"), 1, 1)[0]


def test_a_code_that_is_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layer and those after it stay with 2 bits, in which it has a meaning; asked for 1.6, it is an error."""
    path = tmp_path / "three.gguf"
    content = bytearray(EMBEDDED_MODEL.read_bytes())
    with open_gguf(EMBEDDED_MODEL) as file:
        content[file.tensors["blk.2.ffn_up.weight"].offset + 1000] = 0xFF
    path.write_bytes(content)
    monkeypatch.setattr(base3_rows, "SETS", (isa.chosen(),))
    monkeypatch.setattr(base3_rows, "SMALLEST_TERNARY", 0)
    with open_gguf(path) as file:
        decoders = [Sequence(Engine(file, weight_bits=bits)) for bits in ("auto", "2", "1.6")]
    for token in IDS:
        assert np.array_equal(decoders[0].feed([token]), decoders[1].feed([token]))
    assert decoders[0].engine.arrays.weights.base3_built[0] == 2
    with pytest.raises(UnsupportedError, match=r"three\.gguf: a weight has the code 3"):
        decoders[2].feed([5])


def test_rows_of_other_layouts_are_not_stored_twice(monkeypatch: pytest.MonkeyPatch, text_of: Make) -> None:
    """`auto` asks for a mapped file: what was repacked cannot be given back."""
    monkeypatch.setattr(base3_rows, "SETS", (isa.chosen(),))
    monkeypatch.setattr(base3_rows, "SMALLEST_TERNARY", 0)
    monkeypatch.setattr(base3_rows, "is_mapped_file", lambda data: False)
    assert not len(text_of(EMBEDDED_MODEL).engine.arrays.weights.base3)
    assert len(text_of(EMBEDDED_MODEL, weight_bits="1.6").engine.arrays.weights.base3)
