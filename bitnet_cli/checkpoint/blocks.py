"""Float weights with a scale for each block of neighbours in a row -> ternary values and float16 scales.

Ternary floats come from checkpoints that were unpacked: TriLM's (a scale for each GPU of the training) and Bonsai's (one for each 128
weights, `code - 1` of 2-bit codes times that, so a weight may be twice its scale). Values and scales of these come back to the bit. Float
master weights are rounded, with a scale for each group: mean|W| of it, at least 1e-5 (arXiv 2402.17764, equation 3), as a float16.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.ternary import absmean

Rows = tuple[NDArray[np.int8], NDArray[np.float16]]  # of some whole rows: values (rows, cols), scales (rows, cols / block)
Blocks = Callable[[int], Iterator[Rows]]  # weights of a block -> all rows


class Table(NamedTuple):
    """What a tensor's blocks are like, in blocks of as many weights as share a scale at least (packing.FINEST)."""

    scales: NDArray[np.float16]  # (rows, blocks of a row), 0: no weights there
    twos: bool  # a weight is twice its scale
    zeros: bool  # a weight is 0


def table_of(parts: Iterator[Rows]) -> Table:
    """Look at all rows of a tensor."""
    scales, twos, zeros = [], False, False
    for values, some in parts:
        scales.append(some)
        twos |= bool((values > 1).any())
        zeros |= not values.all()
    return Table(np.concatenate(scales), twos, zeros)


def read_blocks(weight: StoredTensor, block: int, rows: int) -> Iterator[Rows]:
    """A tensor of -s, 0, s, 2 s with one s in each block, 0 where there are no weights. rows: chunks are a multiple of it.

    UnsupportedError for other values, and where s is no float16: packed types hold such scales only.
    """
    for chunk in _chunks(weight, rows):
        blocks = chunk.reshape(-1, block)
        scales = np.abs(blocks).max(axis=1)
        twice = ~((blocks == 0) | (np.abs(blocks) == scales[:, None])).all(axis=1)
        scales[twice] /= 2
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            stored = scales.astype(np.float16)
            values = np.where(scales[:, None] == 0, np.float32(0), blocks / scales[:, None])
        known = (values >= -1) & (values <= 2) & (values == np.rint(values))
        if not (known.all() and np.array_equal(stored.astype(np.float32), scales)):
            raise UnsupportedError(f"{weight.path}: {weight.name}: not one float16 scale in each {block} neighbours of a row")
        yield values.astype(np.int8).reshape(chunk.shape), stored.reshape(len(chunk), -1)


def round_blocks(weight: StoredTensor, group: int, block: int, rows: int) -> Iterator[Rows]:
    """Float master weights with a scale a group, in blocks of `block`: it divides the group, or is a multiple of it whose scales agree."""
    for chunk in _chunks(weight, rows):
        groups = chunk.reshape(-1, group)
        if not np.isfinite(groups).all():
            raise BadFileError(weight.path, weight.name, "has values that are not finite")
        mean = np.abs(groups).mean(axis=1, dtype=np.float64)
        scales = np.clip(mean, absmean.SMALLEST_SCALE, np.finfo(np.float16).max).astype(np.float16)
        values = absmean.round_to_ternary(groups, scales.astype(np.float32)[:, None])
        table = np.repeat(scales.reshape(len(chunk), -1), max(1, group // block), axis=1)[:, :: max(1, block // group)]
        yield values.reshape(chunk.shape), table


def _chunks(weight: StoredTensor, rows: int) -> Iterator[NDArray[np.float32]]:
    step = max(1, CHUNK_ELEMENTS // (weight.shape[1] * rows)) * rows
    for start in range(0, weight.shape[0], step):
        yield weight.float32(start, min(start + step, weight.shape[0]))
