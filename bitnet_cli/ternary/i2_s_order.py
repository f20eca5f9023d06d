"""Which of two orders the I2_S weights of a model are in: 128/32 as published, or 64/16 as bitnet.cpp packs on ARM. The file does not say.

Read in the wrong order, the columns of every matrix change places in groups of 16 (a quarter of them stay). Counts of -1, 0, 1 do not
show that, nor does another matrix with the same input: its columns have moved the same way. Rows have not moved. So the test is a matrix
whose columns are another one's rows: column c of `ffn_down` and row c of `ffn_up` belong to the same hidden unit, and in a trained model
units that matter have fewer zeros in both. Correlation of the two, over the columns that move, embedded model, layers 0 to 5:

    right order   0.44  0.93  0.93  0.93  0.71  0.64
    wrong order   0.00  0.01  0.05  0.01  0.08  0.05

Hidden units have no order of their own: exchanging two of them, weights and all, is a symmetry of the network and of its training. So
without a relation between the two densities the columns are exchangeable, and each correlation over n columns has the variance
1 / (n - 1) exactly, whatever the densities are. `judge` decides where the two orders differ by SIGMAS of that; otherwise (random weights)
it says None. It is shown on one trained model only: no other could be had when this was written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.ternary import i2_s
from bitnet_cli.ternary.layouts import CHUNK_WEIGHTS

SIGMAS = 8.0
LAYERS = 4  # looked at: 20 ms each for BitNet 2B-4T
KEY = "bitnet.i2_s_order"  # metadata: PUBLISHED where the user has said so, which ends all guessing
PUBLISHED, ARM = "128/32", "64/16"

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """published, arm: mean size of the correlation in that order; sigmas: of their difference, positive where `arm` is larger."""

    published: float
    arm: float
    sigmas: float

    @property
    def order(self) -> str | None:
        """PUBLISHED, ARM, or None where the weights do not tell."""
        if abs(self.sigmas) < SIGMAS:
            return None
        return ARM if self.sigmas > 0 else PUBLISHED

    def __str__(self) -> str:
        return (
            f"columns of ffn_down and rows of ffn_up correlate by {self.arm:.2f} in the order {ARM} of bitnet.cpp's ARM builds, "
            f"and by {self.published:.2f} in {PUBLISHED}"
        )


def judge_file(file: GGUFFile) -> Evidence:
    """Judge at most LAYERS layers of an open file, from first to last. A file whose metadata names its order is not looked at."""
    names = [(f"blk.{layer}.ffn_down.weight", f"blk.{layer}.ffn_up.weight") for layer in range(len(file.tensors))]
    found = [(file.tensors[down], file.tensors[up]) for down, up in names if down in file.tensors and up in file.tensors]
    if file.metadata.get(KEY) == PUBLISHED:
        found = []
    chosen = sorted({round(i * (len(found) - 1) / (LAYERS - 1)) for i in range(LAYERS)}) if found else []
    pairs = []
    for down, up in (found[layer] for layer in chosen):
        packed = down.type == up.type == TensorType.I2_S and len(down.shape) == len(up.shape) == 2
        if packed and down.shape[1] == up.shape[0] and down.shape[1] % i2_s.BLOCK == up.shape[1] % i2_s.BLOCK == 0:
            columns = column_counts(file.raw(down.name), down.shape[0], down.shape[1])
            pairs.append((columns, row_counts(file.raw(up.name), up.shape[0], up.shape[1])))
    return judge(pairs)


def judge(pairs: list[tuple[Counts, Counts]]) -> Evidence:
    """One pair a layer: weights other than 0 in each column of `ffn_down`, read as 128/32, and in each row of `ffn_up`; (units,) each."""
    published, arm, variance = 0.0, 0.0, 0.0
    for columns, rows in pairs:
        moved = _arm_order(np.arange(len(columns))) != np.arange(len(columns))
        published += abs(_correlation(columns[moved], rows[moved]))
        arm += abs(_correlation(_arm_order(columns)[moved], rows[moved]))
        variance += 2 / (np.count_nonzero(moved) - 1)
    count = max(1, len(pairs))
    return Evidence(published / count, arm / count, (arm - published) / np.sqrt(variance) if pairs else 0.0)


def column_counts(raw: NDArray[np.uint8], rows: int, cols: int) -> Counts:
    """Weights other than 0 in each column of an I2_S tensor read as 128/32: (cols,)."""
    total = np.zeros(cols, np.int64)
    for chunk in _other_than_0(raw, rows, cols):
        total += np.add.reduce(chunk.view(np.uint8), axis=0, dtype=np.uint8)  # at most 255 rows: eight times as fast as in int64
    return total


def row_counts(raw: NDArray[np.uint8], rows: int, cols: int) -> Counts:
    """Weights other than 0 in each row of an I2_S tensor: (rows,)."""
    return np.concatenate([np.count_nonzero(chunk, axis=1) for chunk in _other_than_0(raw, rows, cols)])


def _other_than_0(raw: NDArray[np.uint8], rows: int, cols: int) -> Iterator[NDArray[np.bool_]]:
    step = max(1, min(255, CHUNK_WEIGHTS // cols))
    for row in range(0, rows, step):
        yield i2_s.unpack_rows(raw[row * cols // 4 : min(row + step, rows) * cols // 4], cols) != 0


def _arm_order(columns: Counts) -> Counts:
    """Numbers of columns as 128/32 finds them -> as 64/16 does: byte p of half h and field g is column 32g + 16h + p or 64h + 16g + p."""
    return columns.reshape(-1, 4, 2, 16).swapaxes(1, 2).reshape(-1)


def _correlation(x: Counts, y: Counts) -> float:
    """Pearson's; 0 where one does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    size = np.sqrt((dx @ dx) * (dy @ dy))
    return float(dx @ dy / size) if size else 0.0
