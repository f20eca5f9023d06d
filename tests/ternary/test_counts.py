"""Counting codes in packed bytes: the same as unpacking and counting, for every layout and every byte."""

from types import ModuleType

import numpy as np
import pytest

from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.ternary import counts, i2_s, q2_0, tq1_0, tq2_0

LAYOUTS = [(TensorType.I2_S, i2_s), (TensorType.TQ1_0, tq1_0), (TensorType.TQ2_0, tq2_0), (TensorType.Q2_0, q2_0)]


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_zeros_of_random_weights(kind: TensorType, layout: ModuleType) -> None:
    values = np.random.default_rng(1).choice([-1, 0, 1], (24, 768), p=[0.5, 0.2, 0.3]).astype(np.int8)
    assert counts.count(kind, layout.pack_rows(values)) == (values.size, int((values == 0).sum()), 0)


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_every_byte(kind: TensorType, layout: ModuleType) -> None:
    """Bytes at random, scales and all: zeros as the layout's own unpacking finds them, and its sign of damage."""
    size = counts.block_bytes(kind)
    assert size is not None
    raw = np.random.default_rng(2).integers(0, 256, 512 * size, np.uint8)
    weights = 512 * layout.BLOCK
    values = layout.unpack_rows(raw, layout.BLOCK)
    found = counts.count(kind, raw)
    assert (found.weights, found.zeros) == (weights, int((values == 0).sum()))
    if kind is TensorType.TQ1_0:
        five = np.unique((np.arange(243) * 256 + 242) // 243)
        blocks = raw.reshape(-1, size)
        assert found.invalid == int((~np.isin(blocks[:, :48], five)).sum() + (~np.isin(blocks[:, 48:52], five[::3])).sum())
    else:
        assert found.invalid == int((values == 2).sum())


def test_other_types_have_no_ternary_blocks() -> None:
    ternary = {kind for kind, _ in LAYOUTS}
    assert {kind for kind in TensorType if counts.block_bytes(kind) is not None} == ternary
