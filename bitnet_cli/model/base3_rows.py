"""The projections as base-3 rows for decode: when they pay, how they are made, and what they cost.

Decode is held by memory: rows of 1.6 bits a weight (kernels/base3.py) are a fifth fewer bytes than the file's 2 bits, and a token comes
sooner by as much, where taking five weights out of a byte is quick enough. Prefill reads the file's rows, as before; their pages are given
back as base-3 rows are made from them. Every choice gives the same integers, so the same tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bitnet_kernels import arrays, isa
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.machine.memory import available_bytes, give_back, is_mapped_file, zeros_on_huge_pages
from bitnet_cli.machine.threads import split
from bitnet_cli.model import given
from bitnet_cli.model.config import ModelConfig

CHOICES = ("auto", "2", "1.6")  # bits a weight that decode reads
SETS = ("amx", "avx512vnni")  # where base-3 rows are read as quickly as memory delivers them (docs/log.md#decode-at-1-6)
SMALLEST_TERNARY = 64 << 20  # bytes of 2-bit weights: fewer stay in the cache, where 2-bit rows are read 1.4 times as fast
DECIDE_AFTER = 8  # decoded tokens; later where few are to come (PAYS_OFF of derived.py)
_BUILD = Entry("base3", "build_rows")
CHUNK_BYTES = 16 << 20  # of 2-bit rows between two times that pages are given back


class Base3Plan(NamedTuple):
    """What to build, and after how many decoded tokens. No shapes: nothing."""

    shapes: Sequence[tuple[int, int]]  # (rows, cols) of a layer's projections, in the order of arrays.Q .. arrays.DOWN
    after: int
    required: bool  # a code 3 is an error; otherwise decode stays with 2 bits


def reserve(weights: arrays.Weights, c: ModelConfig, shapes: Sequence[tuple[int, int]], choice: str) -> tuple[arrays.Weights, Base3Plan]:
    """Room for base-3 rows in `weights`, if they are wanted. It is not written to, so it takes no memory yet. choice: of CHOICES."""
    if choice not in CHOICES:
        raise given.wrong("weight_bits", choice, ", ".join(CHOICES))
    nothing = Base3Plan((), 0, False)
    if choice == "2" or isa.chosen() == isa.NAIVE:
        return weights, nothing
    if len(weights.part_at) or weights.groups:
        if choice == "auto":
            return weights, nothing
        raise UnsupportedError("1.6 bits a weight: not supported with several scales in a tensor, nor with float activations")
    if choice == "auto" and not _pays(weights, c, c.layers * sum(rows * _row_bytes(cols) for rows, cols in shapes)):
        return weights, nothing
    return room(weights, c.layers, shapes), Base3Plan(shapes, 0 if choice == "1.6" else DECIDE_AFTER, choice == "1.6")


def room(weights: arrays.Weights, layers: int, shapes: Sequence[tuple[int, int]]) -> arrays.Weights:
    """`weights` with room for base-3 rows, which are not built."""
    sizes = np.array([[rows * _row_bytes(cols) for rows, cols in shapes]] * layers, np.int64)
    ends = sizes.cumsum()
    offsets = ends.reshape(sizes.shape) - sizes
    return weights._replace(base3=zeros_on_huge_pages(int(ends[-1])), base3_offsets=offsets, base3_built=np.zeros(1, np.int64))


def _row_bytes(cols: int) -> int:
    return arrays.base3_row_bytes(cols, isa.width())


def _pays(weights: arrays.Weights, c: ModelConfig, size: int) -> bool:
    # Rows that are not a file's stay in memory beside base-3 ones: over the budget for what is saved.
    if isa.chosen() not in SETS or c.ternary_weights // 4 < SMALLEST_TERNARY or not is_mapped_file(weights.packed):
        return False
    free = available_bytes()
    return free is None or free > 3 * size


def compile_builder(weights: arrays.Weights, plan: Base3Plan) -> None:
    """Compile what `build` calls, so that it does not happen in the middle of a text."""
    if plan.shapes:
        _BUILD.over(Frame(arrays.Base3Frame(weights.packed, weights.base3, np.zeros(0, np.uint8))), 5)


def build(weights: arrays.Weights, plan: Base3Plan, threads: int, path: str, layers: int | None = None) -> bool:
    """Fill weights.base3 from the 2-bit rows of so many layers more, None: all; from then on decode reads them. False: there are no more.

    Each matrix is split between threads. A weight with the code 3, which is no digit: UnsupportedError where base-3 rows are required; else
    its layer and those after it stay as they are.
    """
    begin, largest = int(weights.base3_built[0]), [0] * threads
    end = len(weights.offsets) if layers is None else min(begin + layers, len(weights.offsets))

    def convert(number: int, share: int) -> None:
        tile = np.zeros(5 * max(_row_bytes(cols) for _, cols in plan.shapes), np.uint8)
        build_rows = _BUILD.over(Frame(arrays.Base3Frame(weights.packed, weights.base3, tile)), 5)
        for offsets, places in zip(weights.offsets[begin:end], weights.base3_offsets[begin:end], strict=True):
            for (rows, cols), offset, at in zip(plan.shapes, offsets, places, strict=True):
                until, step = rows * (number + 1) // share, max(CHUNK_BYTES // (cols // 4), 1)
                for first in range(rows * number // share, until, step):
                    last = min(first + step, until)
                    largest[number] = max(largest[number], build_rows(int(offset), cols, int(at), first, last))
                    give_back(weights.packed, int(offset) + first * cols // 4, int(offset) + last * cols // 4)

    split(lambda number, _: convert(number, threads), threads, threads)
    if max(largest) > 2:
        if plan.required:
            raise UnsupportedError(f"{path}: a weight has the code 3, which 1.6 bits a weight cannot hold; run it with 2 bits")
        return False
    weights.base3_built[0] = end
    return end < len(weights.offsets)
