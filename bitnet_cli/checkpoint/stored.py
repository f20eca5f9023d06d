"""Tensors that lie in a file, read when asked for and a few rows at a time: the common ground of safetensors and GGUF input.

Data is read with `pread` and not mapped: a file that shrinks or a disk that fails then gives an error and not a SIGBUS, and the memory in
use is what the caller holds. Numbers are little-endian.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError

CHUNK_ELEMENTS = 1 << 20  # elements read at once: 4 MB as float32, so both passes of absmean stay in the L2/L3 cache

READ = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1"}
FLOATS = ("F64", "F32", "F16", "BF16")


class OpenFile:
    """A descriptor that is closed when the last tensor of the file is dropped."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise BitnetError(f"{path}: {error.strerror}") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes from `offset`. Raises BadFileError where the file ends first."""
        buffer = np.empty(size, np.uint8)
        view, done = memoryview(buffer.data), 0
        while done < size:
            try:
                if hasattr(os, "preadv"):
                    count = os.preadv(self.descriptor, [view[done:]], offset + done)
                else:
                    os.lseek(self.descriptor, offset + done, os.SEEK_SET)
                    part = os.read(self.descriptor, min(size - done, 1 << 26))
                    count = len(part)
                    view[done : done + count] = part
            except OSError as error:
                raise BitnetError(f"{self.path}: {error.strerror} (byte {offset + done})") from None
            if count == 0:
                raise BadFileError(self.path, "data", "the file ended while it was read", offset + done)
            done += count
        return buffer


class PartedFile(OpenFile):
    """Several files read as one: `files` are paths and where each begins, as gguf_file/split.py lays them. A read lies in one of them."""

    def __init__(self, path: Path, files: Sequence[tuple[Path, int]]):
        self.path = path
        self._files = [(start, OpenFile(file)) for file, start in files]

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """As OpenFile.read."""
        start, file = next((start, file) for start, file in reversed(self._files) if start <= offset)
        return file.read(offset - start, size)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: where it is, not its data. `shape` is in row-major order, `dtype` is the format's name (F32, BF16, U8 ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int
    file: OpenFile

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def require_readable(self) -> None:
        """UnsupportedError for a dtype that is known and not read."""
        if self.dtype not in READ:
            raise UnsupportedError(f"{self.path}: {self.name}: dtype {self.dtype} is not read; {', '.join(READ)} are")

    def stored(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) in the stored type, shape (stop - start, ...); BF16 as uint16. A 0-dimensional tensor counts as one row."""
        self.require_readable()
        rows, rest = (self.shape[0], self.shape[1:]) if self.shape else (1, ())
        stop = rows if stop is None else stop
        row_bytes = self.nbytes // rows if rows else 0
        raw = self.file.read(self.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.view(READ[self.dtype]).reshape(stop - start, *rest)

    def float32(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) as float32, of a float tensor. BF16 is the upper half of a float32, so the shift is exact."""
        if not self.is_float:
            raise BadFileError(self.path, self.name, f"dtype {self.dtype}, expected one of {', '.join(FLOATS)}")
        values = self.stored(start, stop)
        if self.dtype == "BF16":
            wide = values.astype("<u4")
            wide <<= 16
            return wide.view(np.float32)
        # A float64 beyond float32's range becomes Inf, which every caller refuses by name.
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False)

    def float32_chunks(self) -> Iterator[NDArray[np.float32]]:
        """The whole tensor as consecutive chunks of rows, about 4 MB each."""
        rows = self.shape[0] if self.shape else 1
        step = max(1, CHUNK_ELEMENTS * rows // max(1, self.elements))
        for start in range(0, rows, step):
            yield self.float32(start, min(start + step, rows))

    @property
    def elements(self) -> int:
        return math.prod(self.shape)  # of Python ints: NumPy's would wrap around
