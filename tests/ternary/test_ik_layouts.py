"""ik_llama.cpp's layouts: rows that are no whole blocks, their scales, and bytes that no packer writes."""

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.ternary import counts, iq1_bn, iq2_bn, iq2_bn_r4


def ternary(rows: int, cols: int) -> NDArray[np.int8]:
    return np.random.default_rng(5).integers(-1, 2, (rows, cols)).astype(np.int8)


@pytest.mark.parametrize(("layout", "name"), [(iq1_bn, "IQ1_BN"), (iq2_bn, "IQ2_BN"), (iq2_bn_r4, "IQ2_BN_R4")])
def test_rows_that_are_no_whole_blocks(layout: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs .*rows of a multiple of 64 weights, not .*96"):
        layout.pack_rows(ternary(4, 96))


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_rows_that_are_interleaved_come_in_fours(rows: int) -> None:
    with pytest.raises(ValueError, match=f"IQ2_BN_R4 needs a multiple of 4 rows of a multiple of 64 weights, not {rows} of 128"):
        iq2_bn_r4.pack_rows(ternary(rows, 128))


@pytest.mark.parametrize("layout", [iq1_bn, iq2_bn, iq2_bn_r4])
def test_the_scale_where_nobody_says_is_1(layout: ModuleType) -> None:
    values = ternary(4, 128)
    assert np.array_equal(layout.pack_rows(values), layout.pack_rows(values, 1.0))


@pytest.mark.parametrize("place", [0, 5, 11, 12])
def test_bytes_that_no_packer_writes(place: int) -> None:
    """Of a block's 12 bytes of five weights each 243 are written, of its last one, of four, 81: whatever the others are."""
    written = np.unique((np.arange(243) * 256 + 242) // 243)
    good = set(written.tolist() if place < 12 else written[:81].tolist())
    raw = iq1_bn.pack_rows(ternary(1, 64), 0.5)
    for byte in range(256):
        changed = raw.copy()
        changed[2 + place] = byte
        assert iq1_bn.has_unwritten_bytes(changed, 64) is (byte not in good)


def test_no_counts_are_zero() -> None:
    assert counts.NONE == (0, 0, 0)
    assert counts.count(TensorType.IQ1_BN, iq1_bn.pack_rows(ternary(2, 64)), 64).weights == 128
