"""Projections of a checkpoint whose weights are all alike: zeros, or one value. No training leaves such a thing; a lost shard does.

In: an open checkpoint. Out: a sentence a tensor, for `convert`, its dry run and `inspect`. Quick: a tensor is read until a weight differs
from the first, which is nearly always in its first row. The twin for GGUF files is tensors/uniform.py.
"""

from collections.abc import Iterator

import numpy as np

from bitnet_cli.checkpoint.flavours import is_packed
from bitnet_cli.checkpoint.folder import Checkpoint, Projection
from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, StoredTensor
from bitnet_cli.tensors.uniform import BROKEN

PACKED = {0x00: -1, 0x55: 0, 0xAA: 1}  # bytes of four codes that are alike


def uniform_projections(checkpoint: Checkpoint) -> list[str]:
    """`NAME: every weight is ...`, names as in the checkpoint, in the order of the written file."""
    found = ((p.weight.name, _only_value(p)) for p in checkpoint.projections.values())
    return [f"{name}: every weight is {value:g}, {BROKEN}" for name, value in found if value is not None]


def _only_value(projection: Projection) -> float | None:
    """What all weights are, without the scale where that is stored beside them; None where they differ, or are no numbers."""
    weight, first = projection.weight, None
    for start, stop in _parts(weight):
        part = weight.float32(start, stop) if weight.is_float else weight.stored(start, stop)
        if not part.size:
            return None
        first = part.flat[0] if first is None else first
        if not (part == first).all():
            return None
    if first is None or not is_packed(weight, projection.shape):
        return None if first is None or not np.isfinite(first) else float(first)
    return PACKED.get(int(first))


def _parts(weight: StoredTensor) -> Iterator[tuple[int, int]]:
    """Rows [start, stop): the first one alone, then many at a time."""
    rows = weight.shape[0]
    step = max(1, CHUNK_ELEMENTS * rows // max(1, weight.elements))
    yield 0, min(1, rows)
    yield from ((start, min(start + step, rows)) for start in range(1, rows, step))
