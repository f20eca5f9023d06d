"""IQ2_BN as ik_llama.cpp wrote it from June to October 2024, under the same type number: iq2_bn.py without the scales of rows.

A tensor's scale is then a tensor of its own, `<name>.scale`, or there is none. gguf_file/dialects.py tells the two apart by the sizes.

Source: ik_llama.cpp, ggml/src/iqk/iqk_quantize.cpp before its pull request 106 ("Bitnet changes").
"""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.ternary import iq2_bn

BLOCK, BLOCK_BYTES = iq2_bn.BLOCK, iq2_bn.BLOCK_BYTES


def pack_rows(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(rows, cols) int8 in {-1, 0, 1}, cols a multiple of 64 -> (rows * cols / 4,) uint8."""
    return iq2_bn.pack_rows(ternary).reshape(len(ternary), -1)[:, 4:].reshape(-1)


def unpack_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.int8]:
    """(bytes,) uint8 of whole rows -> (rows, cols) int8: the codes less 1; 2 where a code is 3."""
    return iq2_bn.unpack_blocks(raw).reshape(-1, cols)
