"""Counting codes in packed bytes: the same as unpacking and counting, for every layout and every byte."""

from types import ModuleType

import numpy as np
import pytest

from bitnet_cli.gguf_file.types import TOGETHER, TensorType
from bitnet_cli.ternary import counts, iq1_bn
from bitnet_cli.ternary.layouts import LAYOUTS as EVERY
from bitnet_cli.ternary.layouts import WITH_TWOS, WITHOUT_ZEROS

LAYOUTS = list(EVERY.items())


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_zeros_of_random_weights(kind: TensorType, layout: ModuleType) -> None:
    shares = [0.7, 0, 0.3] if kind in WITHOUT_ZEROS else [0.5, 0.2, 0.3]
    values = np.random.default_rng(1).choice([-1, 0, 1], (24, 768), p=shares).astype(np.int8)
    assert counts.count(kind, layout.pack_rows(values), 768) == (values.size, int((values == 0).sum()), 0)


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_every_byte(kind: TensorType, layout: ModuleType) -> None:
    """Bytes at random, scales and all: zeros as the layout's own unpacking finds them, and its sign of damage."""
    size = counts.block_bytes(kind, layout.BLOCK)
    assert size is not None
    raw = np.random.default_rng(2).integers(0, 256, 512 * size, np.uint8)
    weights = 512 * layout.BLOCK * TOGETHER.get(kind, 1)
    values = layout.unpack_rows(raw, layout.BLOCK)
    found = counts.count(kind, raw, layout.BLOCK)
    assert (found.weights, found.zeros) == (weights, int((values == 0).sum()))
    if kind in (TensorType.TQ1_0, TensorType.PTQ1_0):
        five, (fives, fours) = np.unique((np.arange(243) * 256 + 242) // 243), (48, 52) if kind is TensorType.TQ1_0 else (24, 26)
        blocks = raw.reshape(-1, size)
        assert found.invalid == int((~np.isin(blocks[:, :fives], five)).sum() + (~np.isin(blocks[:, fives:fours], five[::3])).sum())
    elif kind is TensorType.IQ1_BN:
        five = np.unique((np.arange(243) * 256 + 242) // 243)
        blocks = raw.reshape(-1, size)[:, 2:]
        assert found.invalid == int((~np.isin(blocks[:, :12], five)).sum() + (~np.isin(blocks[:, 12], five[:81])).sum())
    elif kind in WITH_TWOS:
        assert found.invalid == 0
    else:
        assert found.invalid == int((values == 2).sum())


def test_other_types_have_no_ternary_blocks() -> None:
    ternary = {kind for kind, _ in LAYOUTS}
    assert {kind for kind in TensorType if counts.block_bytes(kind, 256) is not None} == ternary


@pytest.mark.parametrize("cols", [64, 192])
def test_an_odd_number_of_bytes(cols: int) -> None:
    """Blocks of IQ1_BN have 13 bytes; rows of one and of three of them, an odd number of rows."""
    values = np.random.default_rng(3).integers(-1, 2, (5, cols)).astype(np.int8)
    raw = iq1_bn.pack_rows(values, 0.5)
    assert counts.count(TensorType.IQ1_BN, raw, cols) == (values.size, int((values == 0).sum()), 0)
