"""`down` by columns: the same logits to the bit, built only for models that are sparse and large."""

from collections.abc import Callable

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model import columns
from bitnet_cli.model.decoder import Decoder

Make = Callable[..., Decoder]
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 4000, 60)]
pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels read every column")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_the_same_with_columns_and_without(decoder_of: Make, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """The embedded model's 256 outputs are one or two blocks: with more threads than blocks, some have nothing to do."""
    rows = decoder_of(EMBEDDED_MODEL, threads=threads)
    monkeypatch.setattr(columns, "SMALLEST", 0)
    decoder = decoder_of(EMBEDDED_MODEL, threads=threads)
    for position, token in enumerate(IDS):
        assert np.array_equal(decoder.feed([token]), rows.feed([token])), position
        assert bool(decoder._weights.columns_built[0]) == (position >= columns.DECIDE_AFTER)
    assert decoder.skipped_columns_share() > 0.5
    assert decoder.bytes_a_token() <= rows.bytes_a_token()


def test_columns_are_for_large_sparse_models(decoder_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    small = decoder_of(EMBEDDED_MODEL)
    assert not len(small._weights.columns)
    monkeypatch.setattr(columns, "SMALLEST", 0)
    monkeypatch.setattr(columns, "SPARSE", 0.99)
    dense = decoder_of(EMBEDDED_MODEL)
    assert len(dense._weights.columns)
    for token in IDS[:20]:
        dense.feed([token])
    assert not dense._weights.columns_built[0]
    assert dense.skipped_columns_share() == 0.0
