"""Tensor types of a GGUF file: id -> type, and a type and a shape -> size in bytes.

Shapes are in NumPy order: the last dimension is the row length, which GGUF calls ne[0]. A quantised row is a whole number of blocks; a
block holds a fixed number of weights in a fixed number of bytes. I2_S (bitnet.cpp) is the exception: one scale a tensor, so its size
is n / 4 bytes of weights and 32 bytes of tail, whatever the shape. Rows of ik_llama.cpp's ternary types begin with a scale; in IQ2_BN_R4
four rows lie together.

Ids and block sizes: ggml.h and ggml-common.h of llama.cpp; 36 from the ggml.h of microsoft/BitNet; 134, 135, 335 from ik_llama.cpp
(ggml/include/ggml.h, and row_meta_size in ggml/src/ggml.c); 142 and 143 from PrismML's fork of llama.cpp.
"""

import math
import os
from collections.abc import Sequence
from enum import IntEnum

from bitnet_cli.errors import BadFileError, UnsupportedError


class TensorType(IntEnum):
    """The types this version reads."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    I2_S = 36
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42
    IQ1_BN = 134
    IQ2_BN = 135
    PQ2_0 = 142  # a file may say 42 (dialects.py)
    PTQ1_0 = 143
    IQ2_BN_R4 = 335
    IQ2_BN_UNSCALED = 1 << 32 | 135  # a file says 135 (dialects.py)


BLOCKS: dict[TensorType, tuple[int, int]] = {  # weights in a block, bytes in a block
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ4_XS: (256, 136),
    TensorType.IQ1_M: (256, 56),
    TensorType.BF16: (1, 2),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.I2_S: (4, 1),  # the size rule only: the layout groups 128 weights, which whoever unpacks it checks
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
    TensorType.Q2_0: (64, 18),
    TensorType.PQ2_0: (128, 34),
    TensorType.PTQ1_0: (128, 28),
    TensorType.IQ1_BN: (64, 13),
    TensorType.IQ2_BN: (64, 16),
    TensorType.IQ2_BN_R4: (64, 16),
    TensorType.IQ2_BN_UNSCALED: (64, 16),
}
PREFIXES: dict[TensorType, int] = {TensorType.IQ1_BN: 2, TensorType.IQ2_BN: 4, TensorType.IQ2_BN_R4: 4}  # bytes of a row's own scale
TOGETHER: dict[TensorType, int] = {TensorType.IQ2_BN_R4: 4}  # rows whose bytes are interleaved
TAILS: dict[TensorType, int] = {TensorType.I2_S: 32}  # bytes after the last block, once a tensor

# Known to ggml or to a fork of it, but not read here. 4, 5 and 31 to 33 were withdrawn from ggml.
UNREAD: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    37: "I8_S",
    38: "TL1",
}

TL2 = "TL2"  # of bitnet.cpp's older files: id 39, which is MXFP4 in mainline


def tensor_type(type_id: int, path: str | os.PathLike[str], field: str, offset: int | None = None) -> TensorType:
    """The type with this id. UnsupportedError for one that is known but not read, BadFileError for an id that nobody has given out."""
    try:
        return TensorType(type_id)
    except ValueError:
        pass
    if type_id in UNREAD:
        raise not_read(path, field, UNREAD[type_id])
    raise BadFileError(path, field, f"unknown tensor type {type_id}", offset)


def not_read(path: str | os.PathLike[str], field: str, name: str) -> UnsupportedError:
    """The error for a type that has a name and is not read."""
    number = next((number for number, known in UNREAD.items() if known == name), int(TensorType.MXFP4))
    supported = ", ".join(t.name for t in TensorType if t < 1 << 32)
    return UnsupportedError(f"{os.fspath(path)}: {field}: type {name} ({number}) is not supported; supported: {supported}")


def row_bytes(kind: TensorType, cols: int) -> int:
    """Bytes of a row of `cols` weights, which are whole blocks; without the tensor's tail."""
    weights, size = BLOCKS[kind]
    return PREFIXES.get(kind, 0) + cols // weights * size


def nbytes(kind: TensorType, shape: Sequence[int]) -> int:
    """Size in bytes of a tensor, as an exact Python int. ValueError: empty shape, dimension below 1, broken block, odd rows."""
    dims = [int(d) for d in shape]  # NumPy integers would wrap around
    if not dims or min(dims) < 1:
        raise ValueError(f"shape {tuple(dims)} needs one or more dimensions of at least 1")
    weights, together, rows = BLOCKS[kind][0], TOGETHER.get(kind, 1), math.prod(dims[:-1])
    if dims[-1] % weights:
        raise ValueError(f"row length {dims[-1]} is not a multiple of the {weights} weights in a {kind.name} block")
    if together > 1 and (len(dims) < 2 or dims[-2] % together):
        raise ValueError(f"{rows} rows are not a multiple of the {together} that {kind.name} interleaves")
    return rows * row_bytes(kind, dims[-1]) + TAILS.get(kind, 0)


def tl2_nbytes(shape: Sequence[int]) -> int:
    """Size in bytes of a tensor of TL2 (`ggml_nbytes` in the ggml.c of bitnet.cpp): 1.67 to 2 bits a weight, where MXFP4 takes 4.25."""
    cols, rows = int(shape[-1]), math.prod(int(d) for d in shape[:-1])
    size = (cols - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return -(-size // 32) * 32 + 32
