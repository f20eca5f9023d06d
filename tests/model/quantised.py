"""Matrices of every GGUF type, forged: what the gguf package can quantise it does, of all others blocks are random with sane scales."""

import gguf
import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import BLOCKS, TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.tensors.dequantise import rows_as_float32

# Byte offsets of float16 scales and minima in a block of the types that gguf.quants cannot write.
HALVES = {
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ2_XXS: (0,),
    TensorType.IQ2_XS: (0,),
    TensorType.IQ2_S: (0,),
    TensorType.IQ3_XXS: (0,),
    TensorType.IQ3_S: (0,),
    TensorType.IQ1_S: (0,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
    TensorType.Q1_0: (0,),
    TensorType.Q2_0: (0,),
    TensorType.PQ2_0: (0,),
    TensorType.PTQ1_0: (26,),
}


def forged(kind: TensorType, rows: int, cols: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Bytes of a (rows, cols) matrix, and the values that they stand for: about as large as those of a real embedding."""
    rng = np.random.default_rng(seed)
    weights, size = BLOCKS[kind]
    blocks = rng.integers(0, 256, (rows * cols // weights, size), np.uint8)
    if kind is TensorType.IQ1_M:  # the upper halves of bytes 49, 51, 53, 55 are its float16
        bits = rng.uniform(0.01, 0.05, len(blocks)).astype("<f2").view("<u2")
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (bits >> np.uint16(4 * i) & np.uint16(15)).astype(np.uint8) << 4
    elif kind is TensorType.NVFP4:
        blocks[:, :4] = rng.integers(0x20, 0x38, (len(blocks), 4))
    elif kind in HALVES:
        for at in HALVES[kind]:
            blocks[:, at : at + 2] = (rng.uniform(0.5, 1, (len(blocks), 1)) * 2.0**-10).astype("<f2").view(np.uint8)
    else:
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(kind))).view(np.uint8).reshape(len(blocks), size)
    raw = blocks.reshape(-1)
    return raw, rows_as_float32(kind, raw, cols)


def tensor(name: str, kind: TensorType, raw: NDArray[np.uint8], shape: tuple[int, int]) -> OutputTensor:
    return OutputTensor(name, kind, shape, lambda: raw)
