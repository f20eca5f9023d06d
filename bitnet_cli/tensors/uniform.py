"""Projections whose weights are all alike: zeros, or one value. No training leaves such a thing; a converter or a lost shard does.

In: an open GGUF file. Out: a sentence a tensor, for `bitnet inspect --check` and after a conversion. Quick: a tensor is read until one of
its blocks differs from the first, which is nearly always within the first chunk.
"""

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TAILS, TOGETHER, TensorType, row_bytes
from bitnet_cli.tensors.contents import CHUNK_BYTES, DENSE, EXPONENTS, HALVES
from bitnet_cli.ternary.layouts import LAYOUTS

BROKEN = "which no trained model has: something was lost before it came here"


def uniform_projections(file: GGUFFile) -> list[str]:
    """`tensor NAME: every weight is ...`, in the order of the file."""
    told = []
    for info in file.tensors.values():
        if len(info.shape) == 2 and info.name.endswith(".weight") and info.name not in DENSE and "norm" not in info.name:
            value = _only_value(file.raw(info.name), info)
            if value is not None:
                told.append(f"tensor {info.name}: every weight is {value}, {BROKEN}")
    return told


def _only_value(raw: NDArray[np.uint8], info: TensorInfo) -> str | None:
    """What all weights are; None where they differ, or where the type says too little."""
    if info.type in PREFIXES:
        return _only_value_of_rows(raw, info)
    body = raw[: info.nbytes - TAILS.get(info.type, 0)]
    layout = LAYOUTS.get(info.type)
    if layout is None and info.type not in EXPONENTS:
        return None
    size = layout.BLOCK // 4 if info.type is TensorType.I2_S and layout else BLOCKS[info.type][1]
    blocks = body[: len(body) // size * size].reshape(-1, size)
    if not len(blocks):
        return None
    halves = [at + i for at in (HALVES.get(info.type, ()) if layout else ()) for i in (0, 1)]
    codes, scales = [i for i in range(size) if i not in halves], halves
    if scales and _all_zero(blocks, scales):  # a scale of 0, whatever the codes say
        return "0"
    if not _all_first(blocks, codes):
        return None
    if layout is None:
        return f"{_number(info.type, blocks[0]):g}"
    first = np.unique(layout.unpack_rows(blocks[:1].reshape(-1), layout.BLOCK))
    if len(first) > 1:
        return None
    return f"{first[0]:+d} times {'the scale of its block' if scales else 'the scale'}" if first[0] else "0"


def _only_value_of_rows(raw: NDArray[np.uint8], info: TensorInfo) -> str | None:
    """As above, of types whose rows begin with their scale; some of them have the bytes of several rows interleaved."""
    layout, cols, together = LAYOUTS[info.type], info.shape[1], TOGETHER.get(info.type, 1)
    stride = row_bytes(info.type, cols) * together
    if not layout.row_scales(raw, cols).any():
        return "0"
    values = np.unique(layout.unpack_rows(raw[:stride], cols))
    if len(values) > 1:
        return None
    codes = raw.reshape(-1, stride)[:, PREFIXES[info.type] * together :]
    step = max(1, CHUNK_BYTES // stride)
    if not all((codes[i : i + step] == codes[0]).all() for i in range(0, len(codes), step)):
        return None
    return f"{values[0]:+d} times the scale of its row" if values[0] else "0"


def _all_first(blocks: NDArray[np.uint8], places: list[int]) -> bool:
    """Whether the bytes at these places are in every block those of the first."""
    step = max(1, CHUNK_BYTES // blocks.shape[1])
    return all((blocks[i : i + step][:, places] == blocks[0, places]).all() for i in range(0, len(blocks), step))


def _all_zero(blocks: NDArray[np.uint8], places: list[int]) -> bool:
    """Whether the float16 numbers whose bytes are at these places, low byte first, are all 0, of either sign."""
    step = max(1, CHUNK_BYTES // blocks.shape[1])
    low, high = places
    return all(not (blocks[i : i + step, low].any() or (blocks[i : i + step, high] & 127).any()) for i in range(0, len(blocks), step))


def _number(kind: TensorType, data: NDArray[np.uint8]) -> float:
    if kind is TensorType.BF16:
        return float((data.view("<u2").astype("<u4") << 16).view("<f4")[0])
    return float(data.view("<f4" if kind is TensorType.F32 else "<f2")[0])
