"""Tensor types that one number means in files of different age, told apart by the sizes of all their tensors together.

IQ1_BN and IQ2_BN of ik_llama.cpp had no scales of rows before October 2024 (its pull request 106). One tensor may fit both sizes, since the
next one begins at a multiple of the alignment; a file of which all tensors do is read as today's ik_llama.cpp reads it.
Number 39 is TL2 in older files of bitnet.cpp, and MXFP4 in mainline. Number 42, mainline's Q2_0 with 64 weights a block, is PQ2_0 with 128
in PrismML's files of April to July 2026.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TensorType, nbytes, tl2_nbytes

if TYPE_CHECKING:
    from bitnet_cli.gguf_file.parse import TensorInfo, UnreadTensor

SCALED = (TensorType.IQ1_BN, TensorType.IQ2_BN)


def without_row_scales(
    path: str | os.PathLike[str], table: Mapping[str, TensorInfo | UnreadTensor], end: int, alignment: int
) -> dict[str, TensorInfo]:
    """Tensors of a table, offsets from the start of the data, that are IQ2_BN_UNSCALED; none where SCALED ones fit as they are.

    end: bytes of the data. UnsupportedError: IQ1_BN without scales of rows, of which there were several in blocks of the same size.
    """
    infos = list(table.values())
    ends = [*(info.offset for info in infos), end][1:]
    found: list[tuple[TensorInfo, int, int]] = []  # with the bytes that it may take, and fewest that it must
    for info, after in zip(infos, ends, strict=True):
        if info.type in SCALED and isinstance(info.type, TensorType):
            room = after - info.offset
            found.append((info, room, 0 if info is infos[-1] else room - alignment + 1))  # after the last may be more
    shorter = [replace(info, nbytes=info.nbytes - PREFIXES[info.type] * math.prod(info.shape[:-1])) for info, _, _ in found]

    def fit(sizes: Iterable[int]) -> bool:
        return all(least <= size <= room for size, (_, room, least) in zip(sizes, found, strict=True))

    if fit(info.nbytes for info, _, _ in found) or not fit(info.nbytes for info in shorter):
        return {}
    if any(info.type is TensorType.IQ1_BN for info in shorter):
        raise UnsupportedError(
            f"{os.fspath(path)}: IQ1_BN of an ik_llama.cpp before October 2024, without scales of rows, is not supported"
        )
    return {info.name: replace(info, type=TensorType.IQ2_BN_UNSCALED) for info in shorter}


def in_groups_of_128(table: Mapping[str, TensorInfo | UnreadTensor]) -> dict[str, TensorInfo]:
    """Tensors with number 42 as PQ2_0, those of rows that 128 divides: what a file has in which Q2_0 does not fit (parse.py)."""
    return {
        name: replace(info, type=TensorType.PQ2_0, nbytes=nbytes(TensorType.PQ2_0, info.shape))
        for name, info in table.items()
        if info.type is TensorType.Q2_0 and info.shape[-1] % BLOCKS[TensorType.PQ2_0][0] == 0
    }


def tl2_tensors(table: Mapping[str, TensorInfo | UnreadTensor], end: int, alignment: int) -> list[str]:
    """Names of the tensors with number 39, where each has the size of TL2 and not each that of MXFP4. Arguments: as above."""
    infos = list(table.values())
    ends = [*(info.offset for info in infos), end][1:]
    found = [(info, after - info.offset) for info, after in zip(infos, ends, strict=True) if info.type is TensorType.MXFP4]

    def fit(sizes: Iterable[int]) -> bool:
        return all(0 <= room - size < alignment for size, (_, room) in zip(sizes, found, strict=True))

    if fit(info.nbytes for info, _ in found) or not fit(tl2_nbytes(info.shape) for info, _ in found):
        return []
    return [info.name for info, _ in found]
