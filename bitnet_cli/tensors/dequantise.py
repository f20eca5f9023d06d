"""Rows of a GGUF tensor of any type that is read -> float32, or the codes and scales that make them.

Every type but floats is integer codes with a scale, and maybe a minimum, for each 16 weights or more: w = scale code - minimum. Blocks are
taken apart in block_codes.py and grid_codes.py. I2_S has its one scale after the weights, not in rows: ternary/i2_s.py reads it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import BLOCKS, TensorType
from bitnet_cli.tensors import block_codes, grid_codes
from bitnet_cli.tensors.block_codes import Coded

FLOATS = {TensorType.F32: "F32", TensorType.F16: "F16", TensorType.BF16: "BF16"}  # names as in safetensors
_BLOCKS: dict[TensorType, Callable[[NDArray[np.uint8]], Coded]] = {
    TensorType.Q4_0: block_codes.q4_0,
    TensorType.Q4_1: block_codes.q4_1,
    TensorType.Q5_0: block_codes.q5_0,
    TensorType.Q5_1: block_codes.q5_1,
    TensorType.Q8_0: block_codes.q8_0,
    TensorType.Q2_K: block_codes.q2_k,
    TensorType.Q3_K: block_codes.q3_k,
    TensorType.Q4_K: block_codes.q4_k,
    TensorType.Q5_K: block_codes.q5_k,
    TensorType.Q6_K: block_codes.q6_k,
    TensorType.IQ4_NL: block_codes.iq4_nl,
    TensorType.IQ4_XS: block_codes.iq4_xs,
    TensorType.MXFP4: block_codes.mxfp4,
    TensorType.NVFP4: block_codes.nvfp4,
    TensorType.TQ1_0: block_codes.tq1_0,
    TensorType.TQ2_0: block_codes.tq2_0,
    TensorType.Q2_0: block_codes.q2_0,
    TensorType.PQ2_0: block_codes.pq2_0,
    TensorType.PTQ1_0: block_codes.ptq1_0,
    TensorType.Q1_0: block_codes.q1_0,
    TensorType.IQ2_XXS: grid_codes.iq2_xxs,
    TensorType.IQ2_XS: grid_codes.iq2_xs,
    TensorType.IQ2_S: grid_codes.iq2_s,
    TensorType.IQ3_XXS: grid_codes.iq3_xxs,
    TensorType.IQ3_S: grid_codes.iq3_s,
    TensorType.IQ1_S: grid_codes.iq1_s,
    TensorType.IQ1_M: grid_codes.iq1_m,
}
READABLE = (*FLOATS, *_BLOCKS)


def coded(kind: TensorType, raw: NDArray[np.uint8]) -> Coded:
    """(bytes,) uint8 of whole blocks of one of READABLE that is no float -> its codes and scales. KeyError for other types."""
    with np.errstate(all="ignore"):  # scales may be anything that the file says
        return _BLOCKS[kind](raw.reshape(-1, BLOCKS[kind][1]))


def rows_as_float32(kind: TensorType, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    """(bytes,) uint8 of whole rows of one of READABLE -> (rows, cols) float32. What is not finite in the file is not finite here."""
    if kind is TensorType.BF16:
        return (raw.view("<u2").astype("<u4") << np.uint32(16)).view(np.float32).reshape(-1, cols)
    if kind in FLOATS:
        return raw.view("<f4" if kind is TensorType.F32 else "<f2").astype(np.float32).reshape(-1, cols)
    codes, scales, minima = coded(kind, raw)
    with np.errstate(all="ignore"):
        values = codes.reshape(len(scales), -1).astype(np.float32) * scales[:, None]
        if minima is not None:
            values -= minima[:, None]
    result: NDArray[np.float32] = values.reshape(-1, cols)
    return result
