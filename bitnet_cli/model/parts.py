"""Scales of projections that have several -> parts of rows with one each, which kernels read (bitnet_kernels/parts.py).

Models of the TriLM family were trained on several GPUs, each with its share of every matrix and a scale of its own: shares of rows, or
of columns where a matrix takes what other GPUs made (the output and down projections). Kernels have scales of rows only. Scales of columns
move to the rows that make those columns: `attn_output` adds up products with `attn_v`, `ffn_down` with `ffn_up`, and nothing between is
anything but linear, as long as there are no norms and no rounding to int8 there. Their float16 factors multiply exactly in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bitnet_kernels.arrays import DOWN, PROJECTIONS, UP, O, V
from numpy.typing import NDArray

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.layer_table import INPUT_NORMS, SUB_NORMS
from bitnet_cli.model.config import ModelConfig

Floats = NDArray[np.float32]
MAKES = {int(O): int(V), int(DOWN): int(UP)}  # projection -> the one whose rows are its columns


class Scales(NamedTuple):
    """Of one projection."""

    rows: Floats  # (rows,)
    columns: Floats | None = None  # (cols,)


class Parts(NamedTuple):
    """As Weights.part_at, part_ends and part_scales."""

    at: NDArray[np.int64]
    ends: NDArray[np.int64]
    scales: Floats


NO_PARTS = Parts(np.zeros((0, PROJECTIONS), np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def parts_of(path: str, c: ModelConfig, layers: Sequence[Sequence[Scales]]) -> Parts:
    """Scales of every layer's projections -> parts. UnsupportedError: of `require_movable`."""
    starts, ends, scales = [], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    done = 0
    for number, layer in enumerate(layers):
        rows = _without_columns(path, c, number, layer)
        row_starts = []
        for values in rows:
            last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
            row_starts.append(done)
            ends.append(last + 1)
            scales.append(values[last])
            done += len(last)
        starts.append(row_starts)
    return Parts(np.array(starts, np.int64), np.concatenate(ends).astype(np.int64), np.concatenate(scales).astype(np.float32))


def require_movable(path: str, c: ModelConfig, number: int, layer: Sequence[Scales]) -> None:
    """UnsupportedError where a layer's projections have several scales that kernels cannot be given. number: of the layer."""
    if c.activation == "relu2" and any(len(np.unique(scales.rows)) > 1 or scales.columns is not None for scales in layer):
        raise UnsupportedError(f"{path}: layer {number}: several scales in a projection are not supported with ReLU²")
    for which, scales in enumerate(layer):
        if scales.columns is None:
            continue
        where = f"{path}: layer {number}: scales that differ between the columns of a projection"
        if which not in MAKES:
            raise UnsupportedError(f"{where} are supported in attn_output and ffn_down only")
        if {SUB_NORMS, INPUT_NORMS} & c.has or c.float_activations is False:
            raise UnsupportedError(f"{where} need float activations, and no norm before it")
        heads = scales.columns.reshape(c.kv_heads, -1, c.head_dim) if which == O else scales.columns[None, None]
        if not (heads == heads[:, :1]).all():
            raise UnsupportedError(f"{where}, and between query heads that share values, are not supported")


def _without_columns(path: str, c: ModelConfig, number: int, layer: Sequence[Scales]) -> list[Floats]:
    require_movable(path, c, number, layer)
    rows = [scales.rows for scales in layer]
    for which, scales in enumerate(layer):
        if scales.columns is not None:
            columns = scales.columns
            if which == O:
                columns = columns.reshape(c.kv_heads, -1, c.head_dim)[:, 0].reshape(-1)
            rows[MAKES[which]] = (rows[MAKES[which]] * columns).astype(np.float32)
    return rows
