"""Ternary values and their scale -> the GGUF tensors that hold them, in any type that `--outtype` names.

I2_S holds both to the bit. So do TQ1_0, TQ2_0 and Q2_0, with block scales of 1 and a tensor `.scale` (ternary/layouts.py), which llama.cpp
applies. IQ2_BN, which ik_llama.cpp reads, has the float32 scale before every row. F16 holds the product, -s, 0, s: it is 8 times as large
and its s has 11 bits, but anything can read it.

Q1_0 has no zeros. Tensors with a scale for each block (blocks.py) go into a type whose blocks hold them.

A row must be whole blocks. Where it is not, another type stands in that holds the tensor to the bit: Q2_0 with its blocks of 64 (the down
projection of bitnet_b1_58-3B has rows of 8,640), and for rows that 64 does not divide (5,460 in bitnet_b1_58-xl) F16 with the values -1, 0
and 1 and a tensor `.scale`. No packed type that llama.cpp or bitnet.cpp know has smaller blocks than 64 but Q4_0, Q8_0 and the like with
32, which does not divide 5,460 either; F16 is the smallest type without blocks that llama.cpp multiplies by. `bitnet run` packs it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.blocks import Blocks, Table, table_of
from bitnet_cli.checkpoint.flavours import TernaryWeight
from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.types import PREFIXES, TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary import i2_s, q2_0
from bitnet_cli.ternary.layouts import LAYOUTS, ONE_SCALE, WITH_TWOS, WITHOUT_ZEROS, block_of

# Not IQ1_BN, whose scale has 11 bits, nor IQ2_BN_R4, which ik_llama.cpp makes of IQ2_BN itself (--run-time-repack).
OUTTYPES = {
    kind.name.lower(): kind
    for kind in (
        TensorType.I2_S,
        TensorType.TQ1_0,
        TensorType.TQ2_0,
        TensorType.Q2_0,
        TensorType.PQ2_0,
        TensorType.PTQ1_0,
        TensorType.Q1_0,
        TensorType.IQ2_BN,
        TensorType.F16,
    )
}
# general.file_type: 40 is bitnet.cpp's number for I2_S (mainline's for Q1_0), 137 ik_llama.cpp's, the others are llama.cpp's
# (include/llama.h).
FILE_TYPES = {TensorType.I2_S: 40, TensorType.TQ1_0: 36, TensorType.TQ2_0: 37, TensorType.Q2_0: 41, TensorType.F16: 1}
FILE_TYPES |= {TensorType.IQ2_BN: 137, TensorType.Q1_0: 40, TensorType.PQ2_0: 1024, TensorType.PTQ1_0: 1024}  # 1024: not said
QUANTIZATION_VERSION = 2  # of ggml


def type_of_rows(wanted: TensorType, cols: int) -> TensorType:
    """The type that rows of `cols` weights get where `wanted` is asked for."""
    if wanted not in LAYOUTS or cols % block_of(wanted) == 0:
        return wanted
    return TensorType.Q2_0 if cols % block_of(TensorType.Q2_0) == 0 else TensorType.F16


def ternary_tensors(
    name: str, shape: tuple[int, int], wanted: TensorType, path: Path, stored_name: str, read: Callable[[], TernaryWeight]
) -> list[OutputTensor]:
    """`<name>.weight` and, where its type has no place for the scale, `<name>.scale`. Errors name `path` and `stored_name`.

    `read` is called once, when the writer asks for the weights.
    """
    kind = type_of_rows(wanted, shape[1])
    own_scale = wanted in LAYOUTS and kind not in ONE_SCALE
    found: list[np.float32] = []

    def weights() -> NDArray[np.uint8]:
        weight = read()
        found.append(weight.scale)
        return encode(dataclasses.replace(weight, scale=np.float32(1)) if own_scale else weight, kind, path, stored_name)

    tensors = [OutputTensor(f"{name}.weight", kind, shape, weights)]
    if own_scale:
        # The writer asks in the order of the list, so the weights have been read by now.
        tensors.append(OutputTensor(f"{name}.scale", TensorType.F32, (1,), lambda: np.array(found[-1:], "<f4")))
    return tensors


FINEST = q2_0.BLOCK  # weights that can share a scale, at least


def scale_table(shape: tuple[int, int], path: Path, stored_name: str, read: Blocks) -> Table:
    """Of a tensor, in blocks of FINEST weights. UnsupportedError: they have no scale each."""
    if shape[1] % FINEST:
        raise UnsupportedError(f"{path}: {stored_name}: several scales in rows of {shape[1]} weights, which {FINEST} does not divide")
    return table_of(read(FINEST))


def _holds(kind: TensorType, table: Table) -> bool:
    """Whether a type has the values, and a scale for each of its blocks, which are given in FINEST weights."""
    count, rest = divmod(block_of(kind), FINEST)
    if kind in ONE_SCALE or rest or table.scales.shape[1] % count:
        return False
    if (table.twos and kind not in WITH_TWOS) or (table.zeros and kind in WITHOUT_ZEROS):
        return False
    blocks = table.scales.reshape(len(table.scales), -1, count)
    return bool(((blocks == 0) | (blocks == blocks.max(axis=2, keepdims=True))).all())


STAND_INS = (TensorType.TQ2_0, TensorType.Q2_0)  # which llama.cpp reads


def block_tensor(
    name: str, shape: tuple[int, int], wanted: TensorType, source: tuple[Path, str], read: Blocks, table: Table
) -> OutputTensor:
    """A tensor with several scales, which lie in the blocks of a type that has them: where `wanted` has no place for them, TQ2_0 or Q2_0.

    F16 has products. Errors name `source`: file and tensor; table: of `scale_table`, its rows in any order.

    `read` is called once, with a number of weights: chunks of whole rows, and the scales of their blocks of that many weights.
    """
    kind = next((kind for kind in (wanted, *STAND_INS) if kind in LAYOUTS and _holds(kind, table)), None)
    if kind is None or (kind is not wanted and wanted in LAYOUTS and wanted not in ONE_SCALE and shape[1] % block_of(wanted) == 0):
        where = f"{source[0]}: {source[1]}"
        if kind is not None and table.twos and wanted not in WITH_TWOS:
            raise UnsupportedError(
                f"{where}: has the value 2 beside -1, 0, 1, which q2_0 and pq2_0 hold and {wanted.name.lower()} does not"
            )
        if kind is not None and wanted in WITHOUT_ZEROS and table.zeros:
            raise UnsupportedError(f"{where}: has zeros, which {wanted.name.lower()} does not hold")
        raise UnsupportedError(f"{where}: not one scale in each {block_of(wanted)} neighbours of a row; q2_0 has blocks of {FINEST}")
    layout = LAYOUTS[kind]

    def products() -> NDArray[np.float16]:
        return np.concatenate([values * np.repeat(scales, FINEST, axis=1) for values, scales in read(FINEST)])

    def packed() -> NDArray[np.uint8]:
        parts = []
        for values, scales in read(layout.BLOCK):
            blocks = layout.pack_rows(values).reshape(-1, layout.BLOCK_BYTES)
            blocks[:, layout.SCALE_AT : layout.SCALE_AT + 2] = scales.astype("<f2").reshape(-1, 1).view(np.uint8)
            parts.append(blocks)
        return np.concatenate(parts)

    if wanted is TensorType.F16:
        return OutputTensor(f"{name}.weight", wanted, shape, products)
    return OutputTensor(f"{name}.weight", kind, shape, packed)


def file_type(wanted: TensorType, tensors: list[OutputTensor]) -> TensorType:
    """The type that general.file_type names (FILE_TYPES): that which stands in for one that has no place for several scales."""
    scaled = {tensor.name.removesuffix("scale") + "weight" for tensor in tensors if tensor.name.endswith(".scale")}
    # Q2_0 beside a `.scale` may stand in because of its rows (type_of_rows), TQ2_0 never does.
    ours = [tensor for tensor in tensors if tensor.name.startswith("blk.")]
    blocked = {tensor.type for tensor in ours if tensor.type is TensorType.TQ2_0 or tensor.name not in scaled}
    return next((kind for kind in STAND_INS if wanted in ONE_SCALE and kind in blocked), wanted)


def encode(weight: TernaryWeight, kind: TensorType, path: Path, name: str) -> NDArray[np.uint8]:
    """The bytes of a tensor of `kind`, made chunk by chunk: beside the result, a few MB."""
    result = np.empty(nbytes(kind, (weight.rows, weight.cols)), np.uint8)
    half = np.float16(1)
    if kind is TensorType.F16:
        with np.errstate(over="ignore"):
            half = np.float16(weight.scale)
        if not (np.isfinite(half) and half >= np.finfo(np.float16).tiny):
            raise UnsupportedError(f"{path}: {name}: the scale {weight.scale:g} is beyond the range of F16's normal numbers")
    done = 0
    for chunk in weight.chunks():
        if kind in WITHOUT_ZEROS and not chunk.all():
            raise UnsupportedError(f"{path}: {name}: has zeros, which {kind.name.lower()} does not hold")
        scales = (weight.scale,) if kind in PREFIXES else ()
        part = _halves(chunk, half).view(np.uint8) if kind is TensorType.F16 else LAYOUTS[kind].pack_rows(chunk, *scales)
        result[done : done + part.size] = part.reshape(-1)
        done += part.size
    if kind is TensorType.I2_S:
        result[done:] = i2_s.tail(float(weight.scale))
    return result


def _halves(values: NDArray[np.int8], scale: np.float16) -> NDArray[np.uint16]:
    """Bits of values * scale as float16: those of the scale or 0, and the sign. NumPy's product of float16 takes ten times as long."""
    bits: NDArray[np.uint16] = (values != 0).astype("<u2") * scale.view(np.uint16) | (values < 0).astype("<u2") << 15
    return bits


def type_notes(architecture: str, wanted: TensorType, tensors: list[OutputTensor]) -> list[str]:
    """What the user of a file with these tensors should know about its ternary weights, a sentence each."""
    told = []
    ternary = {tensor.name.removesuffix("scale") + "weight" for tensor in tensors if tensor.name.endswith(".scale")}
    for kind, reader in ((TensorType.Q2_0, "which llama.cpp reads since July 2026"), (TensorType.F16, "16 bits a weight")):
        stand_ins = sum(tensor.type is kind and tensor.name in ternary for tensor in tensors)
        if stand_ins and wanted in LAYOUTS and kind is not wanted:
            told.append(f"{stand_ins} projections have rows that {block_of(wanted)} does not divide and are {kind.name}, {reader}")
    if wanted in ONE_SCALE and file_type(wanted, tensors) is TensorType.TQ2_0:
        unit = "tensor" if wanted is TensorType.I2_S else "row"
        told.append(f"several scales a tensor: the projections are TQ2_0, which has one in every block; {wanted.name} has one a {unit}")
    finer = sum(tensor.type is TensorType.Q2_0 and tensor.name not in ternary and tensor.name.startswith("blk.") for tensor in tensors)
    if finer and wanted in ONE_SCALE:
        told.append(f"{finer} projections have scales for fewer than 256 neighbours and are Q2_0, which has one for every 64")
    if wanted in (TensorType.PQ2_0, TensorType.PTQ1_0):
        told.append(f"`bitnet run` and PrismML's fork of llama.cpp read {wanted.name}; llama.cpp does not")
    if wanted is TensorType.IQ2_BN:
        told.append("`bitnet run` and ik_llama.cpp read IQ2_BN; llama.cpp and bitnet.cpp do not")
    if wanted in LAYOUTS and wanted not in ONE_SCALE and architecture.startswith("bitnet-"):
        told.append(f"llama.cpp has no architecture {architecture} (ReLU²): `bitnet run` runs this file, llama.cpp does not")
    if wanted is TensorType.F16:
        told.append("F16 holds weight * scale with the scale rounded to 11 bits")
    return told
