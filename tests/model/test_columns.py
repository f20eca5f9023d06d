"""`down` by columns: the same logits to the bit, built only for models that are sparse and large."""

from collections.abc import Callable

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model import columns
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import bytes_a_token, skipped_columns_share

Make = Callable[..., Sequence]
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 4000, 60)]
pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels read every column")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_the_same_with_columns_and_without(text_of: Make, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """The embedded model's 256 outputs are one or two blocks: with more threads than blocks, some have nothing to do."""
    rows = text_of(EMBEDDED_MODEL, threads=threads)
    monkeypatch.setattr(columns, "SMALLEST_TERNARY", 0)
    decoder = text_of(EMBEDDED_MODEL, threads=threads)
    for position, token in enumerate(IDS):
        assert np.array_equal(decoder.feed([token]), rows.feed([token])), position
        assert bool(decoder.engine.arrays.weights.columns_built[0]) == (position >= columns.DECIDE_AFTER)
    assert skipped_columns_share(decoder.engine.arrays.scratch) > 0.5
    assert bytes_a_token(decoder.engine) <= bytes_a_token(rows.engine)


def test_columns_are_for_large_sparse_models(text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    small = text_of(EMBEDDED_MODEL)
    assert not len(small.engine.arrays.weights.columns)
    monkeypatch.setattr(columns, "SMALLEST_TERNARY", 0)
    monkeypatch.setattr(columns, "SPARSE", 0.99)
    dense = text_of(EMBEDDED_MODEL)
    assert len(dense.engine.arrays.weights.columns)
    for token in IDS[:20]:
        dense.feed([token])
    assert not dense.engine.arrays.weights.columns_built[0]
    assert skipped_columns_share(dense.engine.arrays.scratch) == 0.0
