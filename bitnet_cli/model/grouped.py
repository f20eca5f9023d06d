"""Projections whose scales differ from group to group (Bonsai) -> rows of bitnet_kernels.group_rows, in memory of our own.

A model has groups where any projection needs them (PackedTensor.needs_groups); then all have, of the smallest block of their types, 64 to
256 weights. A Q2_0 file has one for each 64 even of a model with groups of 128: pairs of equal ones become one, a 17th fewer bytes to read.
Scales stay the file's float16; what lies beside them for a whole tensor, a `.scale` or the scale of I2_S, multiplies products.
"""

import math
from collections.abc import Iterator

import numpy as np
from bitnet_kernels import group_rows
from bitnet_kernels.group_rows import Groups
from numpy.typing import NDArray

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.machine.memory import zeros_on_huge_pages
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.parts import Scales
from bitnet_cli.model.projections import SAMPLE, Projections, extra_scale, has_row_scales, infos_of, values_of
from bitnet_cli.ternary.layouts import LAYOUTS, PackedTensor, block_of
from bitnet_cli.ternary.q2_0 import code_bytes

PAIR = 128
BLOCKED = tuple(kind for kind in LAYOUTS if hasattr(LAYOUTS[kind], "SCALE_AT"))  # layouts with a scale a block
Rows = Iterator[tuple[NDArray[np.uint8], NDArray[np.float16]]]  # code bytes and scales, as from PackedTensor.in_groups


def has_groups(file: GGUFFile, c: ModelConfig, sample: int | None = None) -> bool:
    """Whether a model's projections have scales that only kernels of groups apply. sample: look at so many bytes of each.

    UnsupportedError: it has, and something beside them that these kernels do not do.
    """
    blocked = [info for layer in infos_of(file, c) for info in layer if info.type in BLOCKED]
    if not any(_packed(file, info, sample).needs_groups() for info in blocked):
        return False
    require_groups(str(file.path), c, infos_of(file, c))
    return True


def block_size(infos: list[list[TensorInfo]]) -> int:
    """Weights of the largest group that divides every block of a model's projections."""
    return math.gcd(*(block_of(info.type) for layer in infos for info in layer if info.type in BLOCKED))


def group_size(file: GGUFFile, infos: list[list[TensorInfo]]) -> int:
    """The same; 128 where blocks of 64 have equal neighbours."""
    size, blocked = block_size(infos), [info for layer in infos for info in layer if info.type in BLOCKED]
    if size >= PAIR or any(info.shape[1] % PAIR for layer in infos for info in layer):
        return size
    return PAIR if all(_packed(file, info).shares(PAIR) for info in blocked) else size


def require_groups(path: str, c: ModelConfig, infos: list[list[TensorInfo]]) -> None:
    """UnsupportedError: a model with groups and something that their kernels do not do."""
    if c.activation == "relu2":
        raise UnsupportedError(f"{path}: scales that differ from group to group are not supported with ReLU²")
    size = block_size(infos)
    for info in (info for layer in infos for info in layer):
        if info.shape[1] % size:
            raise UnsupportedError(f"{path}: tensor {info.name}: rows of {info.shape[1]} weights, beside tensors with groups of {size}")


def examine_groups(file: GGUFFile, c: ModelConfig, full: bool) -> bool:
    """As projections.examine, of a model that `has_groups`."""
    infos, everything = infos_of(file, c), True
    for info in (info for layer in infos for info in layer):
        source = _packed(file, info, None if full else SAMPLE) if info.type in BLOCKED else None
        for _ in _rows(file, info, block_size(infos), source)[1]:
            pass
        everything &= source is None or source.shape[0] == info.shape[0]
        file.forget(info.name)
    return everything


def load_groups(file: GGUFFile, c: ModelConfig) -> Projections:
    """Of a model that `has_groups`. BadFileError, UnsupportedError: values or scales that are not run."""
    infos = infos_of(file, c)
    size = group_size(file, infos)
    sizes = [group_rows.matrix_bytes(info.shape[0], info.shape[1], size) for layer in infos for info in layer]
    ends = np.cumsum(sizes, dtype=np.int64)
    packed, offsets = zeros_on_huge_pages(int(ends[-1])), (ends - sizes).reshape(len(infos), -1)
    scales = np.ones(offsets.shape, np.float32)
    for place, offset in np.ndenumerate(offsets):
        info = infos[place[0]][place[1]]
        scales[place], rows = _rows(file, info, size, _packed(file, info) if info.type in BLOCKED else None)
        _lay_out(rows, info.shape[1], size, packed, int(offset))
        file.forget(info.name)
    packed.flags.writeable = False  # as the memory map: kernels are compiled for one kind of array
    return Projections(packed, offsets, scales, groups=Groups(size))


def has_grouped_head(file: TensorTable) -> bool:
    """Whether the head is in a layout with a scale a block, of which kernels of groups multiply."""
    return head_name(file) in file.tensors and file.tensors[head_name(file)].type in BLOCKED


def head_name(file: TensorTable) -> str:
    """The matrix that makes logits: `output.weight`, or the embedding where they are tied."""
    return "output.weight" if "output.weight" in file.tensors else "token_embd.weight"


def load_head(file: GGUFFile) -> tuple[NDArray[np.uint8], Groups]:
    """A head that `has_grouped_head` -> rows of group_rows.py. BadFileError: scales or bytes that are damaged."""
    info = file.tensors[head_name(file)]
    source = PackedTensor(info.type, (info.shape[0], info.shape[1]), file.raw(info.name), file.path, f"tensor {info.name}")
    size = PAIR if source.shares(PAIR) and block_of(info.type) < PAIR else block_of(info.type)
    packed = zeros_on_huge_pages(group_rows.matrix_bytes(info.shape[0], info.shape[1], size))
    _lay_out(source.in_groups(size, group_rows.ROWS), info.shape[1], size, packed, 0)
    file.forget(info.name)
    packed.flags.writeable = False  # as the memory map
    return packed, Groups(size)


def _lay_out(rows: Rows, cols: int, size: int, packed: NDArray[np.uint8], at: int) -> None:
    """A matrix from byte `at` on."""
    for codes, table in rows:
        end = at + group_rows.matrix_bytes(len(codes), cols, size)
        group_rows.lay_out(np.ascontiguousarray(codes).view("<u4"), table, packed[at:end])
        at = end


def _packed(file: GGUFFile, info: TensorInfo, sample: int | None = None) -> PackedTensor:
    shape, extra = (info.shape[0], info.shape[1]), extra_scale(file, info.name)
    source = PackedTensor(info.type, shape, file.raw(info.name), file.path, f"tensor {info.name}", float(extra))
    return source if sample is None else source.some_rows(sample)


def _rows(file: GGUFFile, info: TensorInfo, size: int, source: PackedTensor | None) -> tuple[np.float32, Rows]:
    """Scale of a whole projection, and its rows. source: of a type of BLOCKED."""
    if has_row_scales(file, info.name):
        raise UnsupportedError(f"{file.path}: tensor {info.name}: a scale a row beside scales that differ from group to group")
    if source is not None:
        return np.float32(source.extra), source.in_groups(size, group_rows.ROWS)
    values = values_of(file, info)
    if isinstance(values.scales, Scales):
        raise UnsupportedError(f"{file.path}: tensor {info.name}: a scale a row beside scales that differ from group to group")
    codes = code_bytes(np.concatenate(list(values.chunks())))
    return values.scales, iter([(codes, np.ones((info.shape[0], info.shape[1] // size), np.float16))])
