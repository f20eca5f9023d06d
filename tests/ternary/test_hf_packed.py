"""Hugging Face's packed ternary weights: against the definition, bit by bit."""

import numpy as np
import pytest

from bitnet_cli.ternary import hf_packed


@pytest.mark.parametrize("rows", [4, 8, 20])
def test_there_and_back(rows: int) -> None:
    ternary = np.random.default_rng(rows).integers(-1, 2, (rows, 7)).astype(np.int8)
    packed = hf_packed.pack(ternary)
    assert packed.shape == (rows // 4, 7) and packed.dtype == np.uint8
    for (row, col), value in np.ndenumerate(ternary):
        block, at = divmod(row, rows // 4)
        assert int(packed[at, col]) >> 2 * block & 3 == value + 1
    assert np.array_equal(hf_packed.unpack(packed), ternary)
    for block in range(4):
        assert np.array_equal(hf_packed.unpack_block(packed, block), ternary[block * rows // 4 : (block + 1) * rows // 4])


def test_every_byte() -> None:
    """Those with a code 3 mean nothing."""
    for byte in range(256):
        packed, codes = np.array([[byte]], np.uint8), [byte >> bit & 3 for bit in (0, 2, 4, 6)]
        assert hf_packed.has_code_3(packed) is (3 in codes)
        if 3 in codes:
            with pytest.raises(ValueError, match="code is 3"):
                hf_packed.unpack(packed)
        else:
            assert hf_packed.unpack(packed).reshape(-1).tolist() == [code - 1 for code in codes]
