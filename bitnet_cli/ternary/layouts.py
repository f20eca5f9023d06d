"""The packed layouts as one table, and a packed tensor of any of them -> its one scale and its ternary values.

I2_S has one scale a tensor. The others have a float16 scale a block; what we write there is 1, and the tensor's float32 scale is a tensor
of its own, `<name>.scale` of shape (1,), by which llama.cpp multiplies the product (src/llama-model.cpp, "generic pass: load optional
per-tensor .scale tensors"; src/llama-graph.cpp, build_lora_mm). So nothing is rounded. Files of other tools have the tensor's scale in
every block instead, or scales that all differ (Bonsai: `needs_groups`); a block of zeros may have any. ik_llama.cpp's have a scale a row,
all the same in a BitNet model but for rows of zeros, which have the scale 0: they are read as blocks that share their row's.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import PREFIXES, TOGETHER, TensorType, row_bytes
from bitnet_cli.ternary import i2_s, iq1_bn, iq2_bn, iq2_bn_r4, iq2_bn_unscaled, pq2_0, ptq1_0, q1_0, q2_0, tq1_0, tq2_0

Chunks = Callable[[], Iterator[NDArray[np.int8]]]
Scales = NDArray[np.float16] | NDArray[np.float32]

CHUNK_WEIGHTS = 1 << 19  # weights unpacked at once: 512 KB as int8, which stays in the L2 cache

# A module with BLOCK, pack_rows and unpack_rows; the ones with a scale a block also have BLOCK_BYTES and SCALE_AT, those with a scale a row
# (types.PREFIXES) row_scales, and their pack_rows takes scales.
LAYOUTS: dict[TensorType, ModuleType] = {
    TensorType.I2_S: i2_s,
    TensorType.TQ1_0: tq1_0,
    TensorType.TQ2_0: tq2_0,
    TensorType.Q2_0: q2_0,
    TensorType.PQ2_0: pq2_0,
    TensorType.PTQ1_0: ptq1_0,
    TensorType.Q1_0: q1_0,
    TensorType.IQ1_BN: iq1_bn,
    TensorType.IQ2_BN: iq2_bn,
    TensorType.IQ2_BN_R4: iq2_bn_r4,
    TensorType.IQ2_BN_UNSCALED: iq2_bn_unscaled,
}
TWOS = (TensorType.IQ2_BN, TensorType.IQ2_BN_R4, TensorType.IQ2_BN_UNSCALED)  # code 3, a sign of damage, runs as 2: so ik_llama.cpp has it
WITH_TWOS = (TensorType.Q2_0, TensorType.PQ2_0)  # code 3 is the weight 2
WITHOUT_ZEROS = (TensorType.Q1_0,)
ONE_SCALE = (TensorType.I2_S, TensorType.IQ2_BN)  # types that are written with the tensor's float32 scale, and need no tensor `.scale`


def block_of(kind: TensorType) -> int:
    """Weights that a row must be a multiple of."""
    block: int = LAYOUTS[kind].BLOCK
    return block


def rows_or_columns(table: Scales, block: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None] | None:
    """Scales of blocks, (rows, blocks of a row), 0 where a block has only zeros -> those of rows, (rows,), and of columns, None for 1.

    None: they differ neither by row alone nor by column alone.
    """
    rows, blocks = table.max(1).astype(np.float32), table.max(0).astype(np.float32)
    if ((table == rows[:, None]) | (table == 0)).all():
        return np.where(rows, rows, np.float32(1)), None
    if ((table == blocks) | (table == 0)).all():
        return np.ones(len(table), np.float32), np.repeat(np.where(blocks, blocks, np.float32(1)), block)
    return None


def exact_signs(chunk: NDArray[np.floating] | NDArray[np.int8], scale: np.float32) -> NDArray[np.int8] | None:
    """int8 values with values * scale == chunk exactly, or None where there are none."""
    with np.errstate(invalid="ignore"):  # NaN: not equal to anything below
        values = np.sign(chunk).astype(np.int8)
    # dtype: NumPy 1 would multiply int8 by a float32 scalar in float16.
    return values if np.array_equal(np.multiply(values, scale, dtype=np.float32), chunk) else None


@dataclass(frozen=True)
class PackedTensor:
    """Bytes of a packed tensor in a file, and what an error about them should name.

    raw     (nbytes,) uint8
    extra   value of the `.scale` tensor; 1 where there is none
    arm     I2_S in the 64/16 order
    """

    kind: TensorType
    shape: tuple[int, int]  # rows, cols; cols a multiple of the layout's block
    raw: NDArray[np.uint8]
    path: str | os.PathLike[str]
    field: str
    extra: float = 1.0
    arm: bool = False

    def read(self, strict: bool = False) -> tuple[np.float32, Chunks]:
        """The scale (a normal float32 above 0), and a function that gives the values, chunks of whole rows, int8 in {-1, 0, 1}.

        UnsupportedError: blocks with different scales. BadFileError: a scale that is no positive number, a value 2 (when the chunk with
        it comes) in other layouts than WITH_TWOS; with `strict` also bytes that no packer writes, and a value 2 in those of TWOS, which
        without it is given as it is.
        """
        if strict:
            self._require_written()
        if self.kind is TensorType.I2_S:
            own, empty = self.raw[-i2_s.TAIL : 4 - i2_s.TAIL].view("<f4")[0], None
        else:
            own, empty = self._scale_of_blocks()
        with np.errstate(over="ignore"):
            scale = np.float32(own) * np.float32(self.extra)
        if not (np.isfinite(scale) and scale >= np.finfo(np.float32).tiny):  # a denormal is damage too: no trained weights are that small
            raise self._bad(f"scale is {scale}, expected a positive number")
        return scale, lambda: self._values(empty, strict)

    def several(self, strict: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, Chunks] | None:
        """Scales of the rows, (rows,), and of the columns, (cols,) or None for 1, and the values as from `read`; None where `read` has it.

        Not of what `needs_groups`.
        """
        if strict:
            self._require_written()
        table = self.block_scales()
        if table is None:
            return None
        split = rows_or_columns(table, block_of(self.kind))
        assert split is not None
        rows, columns = split
        with np.errstate(over="ignore", under="ignore"):
            scales = rows * np.float32(self.extra)
        if not ((scales >= np.finfo(np.float32).tiny) & (scales < np.inf)).all():
            raise self._bad(f"has the scales {scales.min():g} to {scales.max():g} of rows, expected positive numbers")
        return scales, columns, functools.partial(self._values, table.reshape(-1) == 0, strict)

    def needs_groups(self) -> bool:
        """Whether every block needs its own scale: they differ neither by row alone nor by column alone, or weights have the value 2."""
        if self.kind is TensorType.I2_S or self.kind in PREFIXES:
            return False
        table = self.block_scales()
        if table is not None and rows_or_columns(table, block_of(self.kind)) is None:
            return True
        return self.kind in WITH_TWOS and any(chunk.max(initial=0) > 1 for chunk in self._chunks())

    def shares(self, size: int) -> bool:
        """Whether the blocks in each `size` neighbours of a row have one scale. Of a layout with a scale a block."""
        count, rest = divmod(size, block_of(self.kind))
        if rest:
            return size < block_of(self.kind)
        blocks = self._stored_scales().reshape(-1, count)
        return self.shape[1] % size == 0 and bool((blocks == blocks[:, :1]).all())

    def in_groups(self, size: int, together: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float16]]]:
        """Chunks of rows: their codes as Q2_0 has them, (rows, cols / 4), and scales as stored, (rows, cols / size).

        Of a layout with a scale a block. size: divides its block, or is that of blocks that share a scale (`shares`); together: chunks but
        the last have a multiple of so many rows.
        BadFileError: as from `read`, and a scale that is negative or not finite.
        """
        block, row, (rows, cols) = block_of(self.kind), 0, self.shape
        scales = self._stored_scales().astype(np.float16).reshape(rows, -1)
        if not (scales >= 0).all() or not np.isfinite(scales).all():
            raise self._bad("the scale of a block is negative or not finite")
        table = np.repeat(scales, max(1, block // size), axis=1)[:, :: max(1, size // block)]
        if self.kind in WITH_TWOS:
            codes, step = self.raw.reshape(-1, LAYOUTS[self.kind].BLOCK_BYTES)[:, 2:], max(1, CHUNK_WEIGHTS // cols // together) * together
            blocks = cols // block
            for row in range(0, rows, step):
                part = codes[row * blocks : (row + step) * blocks]
                yield part.reshape(-1, cols // 4), table[row : row + step]
            return
        for values in self._values(None, True, together):
            yield q2_0.code_bytes(values), table[row : row + len(values)]
            row += len(values)

    def some_rows(self, most_bytes: int) -> "PackedTensor":
        """The same with a few whole rows only, spread over the tensor, of about so many bytes; itself where it has no more. No I2_S."""
        together = TOGETHER.get(self.kind, 1)
        groups, stride = self.shape[0] // together, len(self.raw) // self.shape[0] * together
        count = max(4, most_bytes // stride)
        if count >= groups:
            return self
        chosen = np.linspace(0, groups - 1, count).astype(np.int64)
        return replace(self, shape=(count * together, self.shape[1]), raw=self.raw.reshape(groups, stride)[chosen].reshape(-1))

    def block_scales(self) -> Scales | None:
        """Scales without `extra`, (rows, blocks of a row), 0 where a block has only zeros; None where one scale serves all.

        float16, or float32 of layouts with a scale a row, which is then that of all blocks of the row.
        """
        if self.kind is TensorType.I2_S:
            return None
        layout, scales = LAYOUTS[self.kind], self._stored_scales()
        if (scales == scales[0]).all():
            return None
        if not np.isfinite(scales).all():
            raise self._bad(f"the scale of a {self._unit} is not finite")
        weighty = np.concatenate([chunk.reshape(-1, layout.BLOCK).any(axis=1) for chunk in self._chunks()]) & (scales != 0)
        if len(np.unique(scales[weighty])) < 2:
            return None
        if (scales[weighty] < 0).any():
            raise self._bad(f"the scale of a {self._unit} is negative")
        return np.where(weighty, scales, scales.dtype.type(0)).reshape(self.shape[0], -1)

    def in_blocks(self, size: int) -> Iterator[tuple[NDArray[np.int8], NDArray[np.float16]]]:
        """Chunks of whole rows, (rows, cols), and the scales of blocks of `size`, (rows, cols / size). Not of I2_S.

        Scales are float16 numbers; a block of zeros has the scale 0. UnsupportedError: weights with different scales would share a block.
        """
        self._require_written()
        wide = self.block_scales()
        table = (self._stored_scales().reshape(self.shape[0], -1) if wide is None else wide).astype(np.float16)
        own, row = block_of(self.kind), 0
        fine = math.gcd(own, size)
        for values in self._values(table.reshape(-1) == 0, True):
            part = np.repeat(table[row : row + len(values)], own // fine, axis=1)
            part = np.where(values.reshape(len(values), -1, fine).any(axis=2), part, np.float16(0)).reshape(len(values), -1, size // fine)
            scales = part.max(axis=2)
            if ((part != scales[:, :, None]) & (part != 0)).any():
                where = f"{os.fspath(self.path)}: {self.field}"
                raise UnsupportedError(f"{where}: not one scale in each {size} neighbours of a row; q2_0 has blocks of {q2_0.BLOCK}")
            yield values, scales
            row += len(values)

    def _require_written(self) -> None:
        trits: ModuleType | None = {TensorType.TQ1_0: tq1_0, TensorType.PTQ1_0: ptq1_0}.get(self.kind)
        if (trits is not None and trits.has_unwritten_bytes(self.raw)) or (
            self.kind is TensorType.IQ1_BN and iq1_bn.has_unwritten_bytes(self.raw, self.shape[1])
        ):
            raise self._bad("a byte is none of the 243 that stand for five ternary values")

    @property
    def _unit(self) -> str:
        return "row" if self.kind in PREFIXES else "block"

    def _stored_scales(self) -> Scales:
        """(blocks,) in their order; of layouts with a scale a row, that of the row."""
        layout = LAYOUTS[self.kind]
        if self.kind in PREFIXES:
            rows: NDArray[np.float32] = layout.row_scales(self.raw, self.shape[1])
            return np.repeat(rows, self.shape[1] // layout.BLOCK)
        if self.kind is TensorType.IQ2_BN_UNSCALED:
            return np.ones(self.shape[0] * self.shape[1] // layout.BLOCK, np.float16)
        raw = self.raw.reshape(-1, layout.BLOCK_BYTES)[:, layout.SCALE_AT : layout.SCALE_AT + 2]
        found: NDArray[np.float16] = np.ascontiguousarray(raw).view("<f2")[:, 0]
        return found

    def _bad(self, reason: str) -> BadFileError:
        return BadFileError(self.path, self.field, reason)

    def _chunks(self, together: int = 1) -> Iterator[NDArray[np.int8]]:
        """Codes less 1 of consecutive rows, a multiple of `together` but for the last: values where no scale is 0."""
        rows, cols = self.shape
        stride, together = row_bytes(self.kind, cols), TOGETHER.get(self.kind, together)
        step = max(1, CHUNK_WEIGHTS // cols // together) * together
        for row in range(0, rows, step):
            part = self.raw[row * stride : min(row + step, rows) * stride]
            yield i2_s.unpack_rows(part, cols, self.arm) if self.kind is TensorType.I2_S else LAYOUTS[self.kind].unpack_rows(part, cols)

    def _values(self, empty: NDArray[np.bool_] | None, strict: bool, together: int = 1) -> Iterator[NDArray[np.int8]]:
        """`empty`: (blocks,) blocks whose scale is 0; None where there are none."""
        block, done, twos = block_of(self.kind), 0, self.kind in WITH_TWOS or (self.kind in TWOS and not strict)
        for chunk in self._chunks(together):
            if not twos and chunk.max(initial=0) > 1:
                raise self._bad("a 2-bit code is 3; only 0, 1 and 2 mean a ternary value")
            if empty is not None:
                blocks = chunk.reshape(-1, block)
                blocks[empty[done : done + len(blocks)]] = 0
                done += len(blocks)
            yield chunk

    def _scale_of_blocks(self) -> tuple[np.floating, NDArray[np.bool_] | None]:
        """The one scale of all blocks, and which blocks have the scale 0 and so hold zeros whatever their codes say."""
        layout, scales = LAYOUTS[self.kind], self._stored_scales()
        if (scales == scales[0]).all() and scales[0] != 0:
            return scales[0], None
        if not np.isfinite(scales).all():
            raise self._bad(f"the scale of a {self._unit} is not finite")
        empty = scales == 0
        found = np.unique(scales[~empty])
        if len(found) > 1:
            weighty = np.concatenate([chunk.reshape(-1, layout.BLOCK).any(axis=1) for chunk in self._chunks()])
            found = np.unique(scales[~empty & weighty])
        if len(found) > 1:
            kinds = f"{self._unit}s with {len(found)} different scales, {found[0]:g} to {found[-1]:g}"
            raise UnsupportedError(f"{os.fspath(self.path)}: {self.field}: {kinds}; one scale a tensor is supported")
        return (found[0] if len(found) else np.float16(1)), empty
