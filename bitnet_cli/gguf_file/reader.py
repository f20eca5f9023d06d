"""GGUF file -> metadata, tensor table, and read-only views of the tensors' bytes.

In: a path, also of any part of a model that is split into several files. Out: `GGUFFile`. Files are memory-mapped: opening reads the
metadata and the tensor table only, and a tensor's bytes are read from disk when they are first touched. NumPy is imported when bytes are
asked for, not before.

The file must not be shortened or overwritten in place while it is mapped: the operating system answers a read of the lost bytes with
SIGBUS, which ends the process (kernels/lost_pages.py says why). Replacing it by renaming another file over it, as `write_gguf` does, is
safe: the map keeps the old one. A file that others may change, or that lies on a share, can be read into memory instead.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bitnet_cli.errors import BadFileError, UnsupportedError, unreadable
from bitnet_cli.gguf_file.metadata import Typed, Value, ValueType
from bitnet_cli.gguf_file.parse import Header, TensorInfo, UnreadTensor, parse
from bitnet_cli.gguf_file.split import OpenPart, Place, all_parts, join, map_together, read_together
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.gguf_file.types import TensorType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGUFFile", "TensorInfo", "TensorType", "Typed", "UnreadTensor", "Value", "ValueType", "open_gguf"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class GGUFFile(TensorTable):
    """An open GGUF file. Use as a context manager, or call `close`.

    path             as given to `open_gguf`
    files            where each file of the model begins in `file_bytes`; one, unless the model is split
    version          2 or 3
    alignment        bytes; every tensor starts at a multiple of it
    size             bytes of the whole file, or of all files of a split model
    metadata         key -> value, in the file's order
    typed_metadata   the same values with their GGUF types, which `write_gguf` writes back unchanged
    tensors          name -> TensorInfo, in the file's order
    unread           name -> UnreadTensor, those of types that are not read; empty unless opened with `unread`
    trailing         bytes after the last tensor and its padding; 0 in a file that holds a model and nothing else; of all parts together
    """

    def __init__(self, path: Path, data: mmap.mmap | NDArray[np.uint8], handle: int, header: Header, files: list[Place]):
        """handle: of the first file, which is closed with this object; the other files need not stay open."""
        self.path = path
        self.files = files
        self._handle = handle
        self._close_handle = weakref.finalize(self, os.close, handle)
        self.size = sum(place.size for place in files)
        self.version = header.version
        self.alignment = header.alignment
        self.typed_metadata = header.metadata
        self.metadata: dict[str, Value] = {key: entry.value for key, entry in header.metadata.items()}
        self.tensors = header.tensors
        self.unread = header.unread
        self.trailing = header.trailing
        self._map: mmap.mmap | NDArray[np.uint8] | None = data

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one tensor: (nbytes,) uint8, a read-only view of the memory map. BadFileError if there is no such tensor."""
        info = self.tensors.get(name)
        if info is None:
            raise BadFileError(self.path, f"tensor {name}", "is missing")
        return self.file_bytes()[info.offset : info.offset + info.nbytes]  # the table was checked: nothing is cut off

    def descriptor(self, info: TensorInfo) -> int | None:
        """A new descriptor to read rows of a tensor from, at the offsets of `file_bytes`, without mapping them. The caller closes it.

        None where the tensor is in a later file of a split model, in which it has another offset, or all is in memory.
        """
        mapped = isinstance(self._map, mmap.mmap)
        return os.dup(self._handle) if mapped and self.place_of(info.offset).start == 0 else None

    def place_of(self, offset: int) -> Place:
        """The file that holds the byte `offset` of `file_bytes`, and where it begins there."""
        return next(place for place in reversed(self.files) if place.start <= offset)

    def file_bytes(self) -> NDArray[np.uint8]:
        """The whole file as one read-only (size,) uint8 array: kernels find tensors in it by `TensorInfo.offset`.

        Of a split model: its files one after the other, with zeros up to the next page between them.
        """
        import numpy as np

        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        return np.frombuffer(self._map, np.uint8) if isinstance(self._map, mmap.mmap) else self._map

    def forget(self, name: str) -> None:
        """Takes a tensor's pages out of this process's memory, where the system can; they are read again from the file when touched."""
        if not isinstance(self._map, mmap.mmap) or not hasattr(self._map, "madvise"):  # Windows has none
            return
        info = self.tensors[name]
        first = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, size)

    def close(self) -> None:
        """Gives up the memory map. Arrays over it stay valid: the map goes when the last of them does."""
        if isinstance(self._map, mmap.mmap):
            with contextlib.suppress(BufferError):  # arrays still use it
                self._map.close()
        self._map = None
        self._close_handle()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str], *, unread: bool = False, mapped: bool = True) -> GGUFFile:
    """Opens and validates a GGUF file, versions 2 and 3, little-endian. `unread`: also one that can only be looked at (see parse.py).

    mapped: False reads it into memory at once; nothing that happens to the file afterwards matters.

    A part of a split model stands for the model: the parts beside it are opened too.

    BadFileError: cannot be opened, is not a regular file, is damaged; a part is missing or of another model. UnsupportedError: a tensor
    type that is not read, a big-endian machine.
    """
    path = Path(path)
    if sys.byteorder == "big":  # numbers are taken from the map as they lie there
        raise UnsupportedError(f"{path}: this machine is big-endian; only little-endian ones can read GGUF files here")
    first = _open_part(path, unread)
    parts = [first]
    try:
        parts = all_parts(first, lambda beside: _open_part(beside, unread))
        header, files = join(parts)
        if len(parts) == 1 and mapped:
            return GGUFFile(path, first.data, first.handle, header, files)
        together = map_together(parts, files) if mapped else read_together(parts, files)
    except BaseException:
        for part in parts:
            part.close()
        raise
    for part in parts[1:]:
        part.close()
    parts[0].data.close()
    return GGUFFile(path, together, parts[0].handle, header, files)


def _open_part(path: Path, unread: bool) -> OpenPart:
    handle = _open_file(path)
    try:
        data = _map_file(path, handle)
        try:
            return OpenPart(path, handle, data, parse(data, path, unread=unread))
        except BaseException:
            data.close()
            raise
    except BaseException:
        os.close(handle)
        raise


def _open_file(path: Path) -> int:
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer, for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if path.is_dir():
            raise BadFileError(path, "file", "is a folder, expected a GGUF file") from None
        raise unreadable(path, error) from None


def _map_file(path: Path, handle: int) -> mmap.mmap:
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
            raise BadFileError(path, "file", f"is {kind}, expected a GGUF file")
        if status.st_size == 0:
            raise BadFileError(path, "file", "is empty")
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadFileError(path, "file", f"cannot be mapped: {error.strerror}") from None
