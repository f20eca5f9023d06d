"""Ternary weights with a scale for every row (axolotl's ternary training): checkpoint -> GGUF tensors.

I2_S has one scale a tensor, and packed blocks have float16 ones, which would take 13 of a float32 scale's 24 bits. So the default file has
I2_S with the scale 1, and beside it a tensor `.scale` of one float32 a row, (rows,): lossless, and read by this package only; llama.cpp
refuses such a `.scale`. TQ1_0, TQ2_0 and Q2_0 hold each row's scale in its blocks, rounded to 11 bits, over a power of two in `.scale`,
(1,); llama.cpp runs these. IQ2_BN has a float32 scale in every row, for ik_llama.cpp. F16 has the products. Rows that no block divides are
F16 with the values -1, 0 and 1, and a `.scale` as beside I2_S.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.blocks import Table
from bitnet_cli.checkpoint.flavours import Flavour, TernaryWeight
from bitnet_cli.checkpoint.packing import FINEST, block_tensor, encode, type_of_rows
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary import absmean, iq2_bn
from bitnet_cli.ternary.layouts import LAYOUTS

OWN_SCALES = (
    "one float32 scale a row, in tensors that only `bitnet` reads; tq2_0 or q2_0 rounds them to 11 bits, for llama.cpp; iq2_bn keeps them, "
    "for ik_llama.cpp"
)
ROUNDED_SCALES = "the scale of each row is rounded to 11 bits; i2_s keeps it"

BY_ROW = (Flavour.ROWS, Flavour.MASTER_ROWS)
RowWeight = tuple[TernaryWeight, NDArray[np.float32]]  # values with the scale 1, and the scale of each row, (rows,)


def rows_have_one_scale(weight: StoredTensor) -> bool:
    """Whether in each row of a float tensor all values that are not 0 have one size."""
    return all(_ternary_rows(np.abs(chunk)) for chunk in weight.float32_chunks())


def read_rows(weight: StoredTensor, shape: tuple[int, int], flavour: Flavour) -> RowWeight:
    """Flavours of BY_ROW. A scale is mean|W| of its row for master weights, at least 1e-5 (arXiv 2402.17764, equation 3), else max|W|.

    BadFileError for a value that is not finite, UnsupportedError for a row that is not ternary where it should be.
    """
    master = flavour is Flavour.MASTER_ROWS
    found = [_mean(chunk) if master else np.abs(chunk).max(axis=1) for chunk in weight.float32_chunks()]
    scales = np.concatenate(found)
    if not np.isfinite(scales).all():
        raise BadFileError(weight.path, weight.name, "has values that are not finite")
    scales = np.maximum(scales, np.float32(absmean.SMALLEST_SCALE if master else np.finfo(np.float32).tiny))

    def chunks() -> Iterator[NDArray[np.int8]]:
        row = 0
        for chunk in weight.float32_chunks():
            if master:
                yield absmean.round_to_ternary(chunk, scales[row : row + len(chunk), None])
            elif _ternary_rows(np.abs(chunk)):
                yield np.sign(chunk).astype(np.int8)
            else:
                raise UnsupportedError(f"{weight.path}: {weight.name}: values other than -s, 0, s with one s a row, as others here have")
            row += len(chunk)

    return TernaryWeight(*shape, np.float32(1), chunks), scales


def row_tensors(
    name: str, shape: tuple[int, int], wanted: TensorType, source: tuple[Path, str], read: Callable[[], RowWeight]
) -> list[OutputTensor]:
    """`<name>.weight` and what holds its scales. `read` is called once, when the writer asks for the weights; errors name `source`."""
    found: list[NDArray[np.float32]] = []
    kind = type_of_rows(wanted, shape[1])
    if wanted is TensorType.I2_S or (wanted in LAYOUTS and kind is TensorType.F16):

        def packed() -> NDArray[np.uint8]:
            values, scales = read()
            found.append(scales)
            return encode(values, kind, *source)

        # The writer asks in the order of the list, so the weights have been read by now.
        scale = OutputTensor(f"{name}.scale", TensorType.F32, shape[:1], lambda: found[-1].astype("<f4"))
        return [OutputTensor(f"{name}.weight", kind, shape, packed), scale]

    if wanted is TensorType.IQ2_BN:
        return [OutputTensor(f"{name}.weight", wanted, shape, lambda: _with_scales(read))]

    def blocks(size: int) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float16]]]:
        values, scales = read()
        unit = np.float32(1) if wanted is TensorType.F16 else np.exp2(np.floor(np.log2(scales.max())))
        found.append(np.array([unit], "<f4"))
        row, halves = 0, (scales / unit).astype(np.float16)[:, None]
        for chunk in values.chunks():
            yield chunk, np.repeat(halves[row : row + len(chunk)], shape[1] // size, axis=1)
            row += len(chunk)

    one_a_row = Table(np.ones((1, max(1, shape[1] // FINEST)), np.float16), twos=False, zeros=True)
    if shape[1] % FINEST:
        raise UnsupportedError(f"{source[0]}: {source[1]}: scales of rows of {shape[1]} weights, which {FINEST} does not divide")
    tensors = [block_tensor(name, shape, wanted, source, blocks, one_a_row)]
    if wanted is not TensorType.F16:
        tensors.append(OutputTensor(f"{name}.scale", TensorType.F32, (1,), lambda: found[-1]))
    return tensors


def row_notes(wanted: TensorType) -> list[str]:
    """What becomes of the scales of rows, for the user of a file of this type."""
    if wanted is TensorType.IQ2_BN:
        return []
    return [OWN_SCALES if wanted is TensorType.I2_S else ROUNDED_SCALES]


def _with_scales(read: Callable[[], RowWeight]) -> NDArray[np.uint8]:
    """IQ2_BN, whose rows begin with a float32 scale."""
    values, scales = read()
    parts, row = [], 0
    for chunk in values.chunks():
        parts.append(iq2_bn.pack_rows(chunk, scales[row : row + len(chunk)]))
        row += len(chunk)
    return np.concatenate(parts)


def _mean(chunk: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = np.abs(chunk).mean(axis=1, dtype=np.float64).astype(np.float32)
    return means


def _ternary_rows(size: NDArray[np.float32]) -> bool:
    return bool(((size == 0) | (size == size.max(axis=1, keepdims=True))).all())
