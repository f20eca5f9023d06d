"""What the tensors of a GGUF file hold: bytes a part of the model takes, the share of zeros, and whether every number is usable.

In: an open file. Out: plain values for `bitnet inspect`. Sampling reads SAMPLE bytes of each ternary tensor; `check` reads the whole file.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TAILS, TOGETHER, TensorType, row_bytes
from bitnet_cli.tensors.dequantise import FLOATS, rows_as_float32
from bitnet_cli.tensors.grid_codes import iq1_m_scale
from bitnet_cli.ternary import counts

PARTS = ("ternary", "head_embedding", "norms", "other")
TERNARY = (
    "I2_S",
    "TQ1_0",
    "TQ2_0",
    "Q2_0",
    "IQ1_BN",
    "IQ2_BN",
    "IQ2_BN_R4",
    "IQ2_BN_UNSCALED",
    "TL1",
    "PTQ1_0",
    "PQ2_0",
    "Q1_0",
)  # names of types, also of types that are not read
DENSE = ("token_embd.weight", "output.weight")
SAMPLE, RUNS = 1 << 16, 16  # bytes of a ternary tensor that are sampled, in so many runs spread over it
CHUNK_BYTES = 1 << 20  # bytes, about: a chunk and its histogram stay in the L2 cache
# Byte offsets, in a block, of its float16 scales and minima.
HALVES = {
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ2_XXS: (0,),
    TensorType.IQ2_XS: (0,),
    TensorType.IQ2_S: (0,),
    TensorType.IQ3_XXS: (0,),
    TensorType.IQ3_S: (0,),
    TensorType.IQ1_S: (0,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
    TensorType.TQ1_0: (52,),
    TensorType.TQ2_0: (64,),
    TensorType.Q1_0: (0,),
    TensorType.Q2_0: (0,),
    TensorType.PQ2_0: (0,),
    TensorType.PTQ1_0: (26,),
}
# Integer type, and the bits that are all set in NaN and infinities and in nothing else.
EXPONENTS = {TensorType.F32: ("<u4", 0x7F800000), TensorType.F16: ("<u2", 0x7C00), TensorType.BF16: ("<u2", 0x7F80)}


class TensorRow(NamedTuple):
    """`nbytes` of a type that is not read goes up to the next tensor; its `weights` are right all the same."""

    name: str
    type: str
    part: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    weights: int
    read: bool


class Zeros(NamedTuple):
    """weights: of all ternary tensors; seen: of them, looked at; zeros: of those."""

    weights: int
    seen: int
    zeros: int

    @property
    def share(self) -> float | None:
        """None where nothing was looked at."""
        return self.zeros / self.seen if self.seen else None


NO_ZEROS = Zeros(0, 0, 0)


@dataclass
class Checked:
    zeros: Zeros = NO_ZEROS
    sha256: dict[str, str] = field(default_factory=dict)  # of a tensor's bytes
    problems: list[str] = field(default_factory=list)  # `tensor NAME: what (byte OFFSET)`
    unchecked: list[str] = field(default_factory=list)  # tensors of types that are not read


def tensor_rows(file: GGUFFile) -> list[TensorRow]:
    """Every tensor, in the order of the file."""
    rows = [_row(i.name, i.type.name, i.shape, i.offset, i.nbytes, True) for i in file.tensors.values()]
    rows += [_row(i.name, i.type, i.shape, i.offset, i.nbytes, False) for i in file.unread.values()]
    return sorted(rows, key=lambda row: row.offset)


def _row(name: str, kind: str, shape: tuple[int, ...], offset: int, nbytes: int, read: bool) -> TensorRow:
    if name in DENSE:
        part = "head_embedding"
    elif kind in TERNARY or name.endswith(".scale"):
        part = "ternary"
    else:
        part = "norms" if "norm" in name else "other"
    # A scale is no weight: bits a weight are counted over what it scales.
    weights = 0 if name.endswith(".scale") else math.prod(shape)
    return TensorRow(name, kind, part, shape, offset, nbytes, weights, read)


def sample_zeros(file: GGUFFile) -> Zeros:
    """Zeros in RUNS runs of blocks of each ternary tensor outside the head and embedding; in all of one no larger than SAMPLE bytes."""
    total = NO_ZEROS
    for info in _ternary(file):
        size = counts.block_bytes(info.type, info.shape[-1])
        assert size is not None
        blocks = file.raw(info.name)[: info.nbytes - TAILS.get(info.type, 0)]
        blocks = blocks[: len(blocks) // size * size].reshape(-1, size)  # I2_S without whole blocks: run refuses it, a sample need not
        run = max(1, SAMPLE // RUNS // size)
        if len(blocks) > run * RUNS:
            starts = np.linspace(0, len(blocks) - run, RUNS).astype(np.int64)
            blocks = np.concatenate([blocks[start : start + run] for start in starts])
        seen = counts.count(info.type, blocks.reshape(-1), info.shape[-1])
        total = Zeros(total.weights + math.prod(info.shape), total.seen + seen.weights, total.zeros + seen.zeros)
    return total


def _ternary(file: GGUFFile) -> Iterator[TensorInfo]:
    for info in file.tensors.values():
        if counts.block_bytes(info.type, info.shape[-1]) is not None and info.name not in DENSE:
            yield info


def check(file: GGUFFile, progress: Callable[[str, int, int], None] | None = None) -> Checked:
    """Read every byte: codes that mean no ternary value, scales and numbers that are not finite, scales that are not positive.

    `progress`: called after each tensor with its name, the bytes read so far and those of all tensors.
    """
    rows, result, done = tensor_rows(file), Checked(), 0
    total = sum(row.nbytes for row in rows)
    for row in rows:
        digest, problems = hashlib.sha256(), []
        if row.read:
            found = _check_tensor(file, file.tensors[row.name], digest.update)
            problems = found.problems
            if row.part == "ternary" and found.seen.weights:
                zeros = result.zeros
                weights = math.prod(row.shape)
                result.zeros = Zeros(zeros.weights + weights, zeros.seen + found.seen.weights, zeros.zeros + found.seen.zeros)
        else:
            result.unchecked.append(row.name)
            for start in range(row.offset, row.offset + row.nbytes, CHUNK_BYTES):
                digest.update(file.file_bytes()[start : min(start + CHUNK_BYTES, row.offset + row.nbytes)].data)
        result.sha256[row.name] = digest.hexdigest()
        result.problems += [f"tensor {row.name}: {problem}" for problem in problems]
        done += row.nbytes
        if row.read:
            file.forget(row.name)  # else all of the file counts as memory in use
        if progress is not None:
            progress(row.name, done, total)
    return result


@dataclass
class _Found:
    seen: counts.Counts = counts.NONE
    problems: list[str] = field(default_factory=list)


def _check_tensor(file: GGUFFile, info: TensorInfo, update: Callable[[memoryview], None]) -> _Found:
    """One tensor, chunk by chunk of whole blocks; `update` gets every byte in order. One line a kind of problem, for its first place."""
    raw, found = file.raw(info.name), _Found()
    begin = info.offset - file.place_of(info.offset).start  # in its file
    end = info.nbytes - TAILS.get(info.type, 0)
    unit = counts.block_bytes(info.type, info.shape[-1])
    block = unit or BLOCKS[info.type][1]
    ternary = unit is not None and info.name not in DENSE  # an embedding may have a fourth value
    step = max(1, CHUNK_BYTES // block) * block
    invalid = infinite = 0
    first_invalid = first_infinite = 0
    for start in range(0, end, step):
        chunk = raw[start : min(start + step, end)]
        update(chunk.data)
        if ternary and len(chunk) % block == 0:
            seen = counts.count(info.type, chunk, info.shape[-1])
            found.seen = counts.Counts(*(a + b for a, b in zip(found.seen, seen, strict=True)))
            first_invalid = first_invalid if invalid or not seen.invalid else begin + start
            invalid += seen.invalid
        bad = _bad_row_scales(info, chunk) if info.type in PREFIXES else _not_finite(info.type, chunk)
        if bad is not None:
            first_infinite = first_infinite if infinite else begin + start + bad[1]
            infinite += bad[0]
    update(raw[end:].data)
    if invalid:
        found.problems.append(
            f"{invalid} codes stand for no ternary value (first in the {CHUNK_BYTES >> 20} MiB from byte {first_invalid})"
        )
    if infinite:
        what = "numbers are not" if info.type in EXPONENTS else "scales of blocks are not"
        what = f"{what} finite" if info.type not in PREFIXES else "scales of rows are neither positive numbers nor 0"
        found.problems.append(f"{infinite} {what} (first at byte {first_infinite})")
    if info.type is TensorType.I2_S and len(raw) - end >= 4:
        if end % block or info.shape[-1] % (4 * block):
            found.problems.append(f"rows of {info.shape[-1]} weights are not whole blocks of {4 * block}")
        _check_scale(raw[end : end + 4].view("<f4")[0], begin + end, found)
    elif info.name.endswith(".scale") and info.type in FLOATS:
        _check_scale(rows_as_float32(info.type, raw, 1)[0, 0], begin, found)
    return found


def _check_scale(scale: np.float32, place: int, found: _Found) -> None:
    if not (np.isfinite(scale) and scale >= np.finfo(np.float32).tiny):
        found.problems.append(f"scale is {scale}, expected a positive number (byte {place})")


def _bad_row_scales(info: TensorInfo, chunk: NDArray[np.uint8]) -> tuple[int, int] | None:
    """As `_not_finite`, of types with a scale a row: how many are negative, not finite or denormal. A row of zeros has the scale 0."""
    prefix, together = PREFIXES[info.type], TOGETHER.get(info.type, 1)
    size = row_bytes(info.type, info.shape[-1]) * together
    stored = np.ascontiguousarray(chunk.reshape(-1, size)[:, : prefix * together]).view("<f2" if prefix == 2 else "<f4")
    scales = stored.astype(np.float32)
    bad = ~((scales == 0) | ((scales >= np.finfo(np.float32).tiny) & (scales < np.inf)))
    if not bad.any():
        return None
    first = int(bad.reshape(-1).argmax())
    return int(np.count_nonzero(bad)), first // together * size + first % together * prefix


def _not_finite(kind: TensorType, chunk: NDArray[np.uint8]) -> tuple[int, int] | None:
    """How many floats, or scales of blocks, are NaN or infinite, and where the first is in the chunk; None for none."""
    if kind in EXPONENTS:
        code, mask = EXPONENTS[kind]
        numbers = chunk.view(code)
        bad = (numbers & numbers.dtype.type(mask)) == mask
        return (int(np.count_nonzero(bad)), int(bad.argmax()) * numbers.itemsize) if bad.any() else None
    size = BLOCKS[kind][1]
    found: tuple[int, int] | None = None
    for at, bad in _bad_scales(kind, chunk.reshape(-1, size)):
        if bad.any():
            count, first = found or (0, len(chunk))
            found = (count + int(np.count_nonzero(bad)), min(first, int(bad.argmax()) * size + at))
    return found


def _bad_scales(kind: TensorType, blocks: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Byte of a scale in a block, and in which of the blocks it is not finite."""
    for at in HALVES.get(kind, ()):
        halves = np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2")[:, 0]
        yield at, (halves & np.uint16(0x7C00)) == 0x7C00
    if kind is TensorType.IQ1_M:
        yield 48, ~np.isfinite(iq1_m_scale(blocks))
    if kind is TensorType.MXFP4:
        yield 0, blocks[:, 0] == 0xFF  # NaN in the standard (OCP Microscaling Formats, section 5.4.1)
