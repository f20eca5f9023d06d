"""A model in several GGUF files, `NAME-00001-of-00003.gguf`: the parts found, compared with each other, and mapped as one.

Every part is a file of its own, parsed as strictly as one that is whole: its tensors lie in it, offsets count from its data. The first part
has all metadata, the others three keys: `split.no` (from 0), `split.count`, `split.tensors.count` (of all parts together).

The parts lie one after the other in one range of addresses, each from the beginning of a page, so that kernels find every tensor in one
array of bytes, and nothing is copied. Where the system has no such mapping (Windows, 32 bits) the parts are read into memory, which then
holds the whole model.

Source: llama.cpp, tools/gguf-split/gguf-split.cpp and src/llama-model-loader.cpp.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnet_cli.errors import BadFileError, BitnetError
from bitnet_cli.gguf_file.metadata import INTEGERS, Typed
from bitnet_cli.gguf_file.parse import MAX_ENTRIES, Header, TensorInfo, UnreadTensor, pad
from bitnet_cli.gguf_file.split_names import MAX_PARTS, PartName, part_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAPS_TOGETHER = sys.platform != "win32" and sys.maxsize > 2**32
MAP_FIXED = 0x10  # Linux and macOS alike; Python's mmap does not name it
NO, COUNT, TENSORS = KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass
class OpenPart:
    """One file, open, mapped and parsed."""

    path: Path
    handle: int
    data: mmap.mmap
    header: Header

    def close(self) -> None:
        """Gives up the map and the descriptor."""
        self.data.close()
        os.close(self.handle)


class Place(NamedTuple):
    """Where a file lies in the bytes of the model."""

    path: Path
    start: int
    size: int


def number_and_count(metadata: dict[str, Typed], path: Path) -> tuple[int, int]:
    """Which part of how many a file is, from 1; (1, 1) for a whole one, which may say 0 or 1 parts."""
    if COUNT not in metadata:
        return 1, 1
    count, number = metadata[COUNT], metadata.get(NO)
    if count.type in INTEGERS and isinstance(count.value, int):
        if 0 <= count.value <= 1:
            return 1, 1
        if number is not None and number.type in INTEGERS and isinstance(number.value, int) and 0 <= number.value < count.value:
            return number.value + 1, count.value
    raise BadFileError(path, f"{NO} and {COUNT}", "expected a part's number and the number of parts")


def all_parts(first: OpenPart, open_part: Callable[[Path], OpenPart]) -> list[OpenPart]:
    """`first` and the parts beside it, in order. `first` may be any of them; those that are opened here are closed if one is refused.

    BadFileError: a part is missing, is another one than its name says, or is of another model.
    """
    number, count = number_and_count(first.header.metadata, first.path)
    if count == 1:
        return [first]
    path, name = _named(first.path, number, count)
    parts: list[OpenPart] = []
    try:
        for other in range(1, count + 1):
            parts.append(first if other == number else _open_beside(path, name, other, open_part))
        _compare(parts)
    except BaseException:
        for part in parts:
            if part is not first:
                part.close()
        raise
    return parts


def _named(path: Path, number: int, count: int) -> tuple[Path, PartName]:
    """The path whose name is that of this part, beside which the others lie: the given one, or what a link of another name leads to."""
    field = f"{NO} and {COUNT}"
    if count > MAX_PARTS:
        raise BadFileError(path, field, f"this is part {number} of {count}, at most {MAX_PARTS} are read")
    for candidate in (path, path.resolve()):
        name = part_name(candidate.name)
        if name is not None and (name.number, name.parts) == (number, count):
            return candidate, name
    raise BadFileError(path, field, f"this is part {number} of {count}, but the file is not called NAME-{number:05d}-of-{count:05d}.gguf")


def _open_beside(path: Path, name: PartName, number: int, open_part: Callable[[Path], OpenPart]) -> OpenPart:
    """Part `number` of the model that `path` is a part of."""
    beside = path.with_name(name.of(number))
    if not os.path.lexists(beside):
        raise BadFileError(beside, "file", f"is missing: part {number} of {name.parts} of the model that {path.name} is a part of")
    part = open_part(beside)
    try:
        found = number_and_count(part.header.metadata, beside)
        if found != (number, name.parts):
            said = "is no part of a split model" if found[1] == 1 else f"this is part {found[0]} of {found[1]}"
            raise BadFileError(beside, f"{NO} and {COUNT}", f"{said}, expected part {number} of {name.parts} after its name")
    except BaseException:
        part.close()
        raise
    return part


def _compare(parts: Sequence[OpenPart]) -> None:
    """BadFileError where a part is of another model than the first one: other keys, a tensor that is in two, other numbers of tensors."""
    first = parts[0]
    total, where = _tensor_count(first), dict.fromkeys(_names(first), first.path)
    for part in parts[1:]:
        for key, value in part.header.metadata.items():
            if key in (NO, "general.alignment"):  # offsets are aligned within a part
                continue
            if key not in first.header.metadata or first.header.metadata[key] != value:
                raise BadFileError(part.path, key, f"is not as in {first.path.name}: a part of another model")
        for name in _names(part):
            if name in where:
                raise BadFileError(part.path, f"tensor {name}", f"is in {where[name].name} too")
            where[name] = part.path
    if len(where) != total or total > MAX_ENTRIES:
        raise BadFileError(first.path, TENSORS, f"is {total}, but the {len(parts)} parts have {len(where)} tensors")


def _names(part: OpenPart) -> list[str]:
    return [*part.header.tensors, *part.header.unread]


def _tensor_count(part: OpenPart) -> int:
    entry = part.header.metadata.get(TENSORS)
    if entry is None or entry.type not in INTEGERS or not isinstance(entry.value, int) or entry.value < 0:
        raise BadFileError(part.path, TENSORS, "expected the number of tensors in all parts")
    return entry.value


def join(parts: Sequence[OpenPart]) -> tuple[Header, list[Place]]:
    """One header for all parts, with offsets into the bytes of `map_together`, and where each part begins there. One part: its own."""
    places, start = [], 0
    for part in parts:
        places.append(Place(part.path, start, len(part.data)))
        start += pad(len(part.data), mmap.ALLOCATIONGRANULARITY)
    first = parts[0].header
    if len(parts) == 1:
        return first, places
    tensors: dict[str, TensorInfo] = {}
    unread: dict[str, UnreadTensor] = {}
    for part, place in zip(parts, places, strict=True):
        tensors |= {name: replace(info, offset=place.start + info.offset) for name, info in part.header.tensors.items()}
        unread |= {name: replace(info, offset=place.start + info.offset) for name, info in part.header.unread.items()}
    metadata = {key: value for key, value in first.metadata.items() if key not in KEYS}  # what is copied from here is whole
    trailing = sum(part.header.trailing for part in parts)
    return Header(first.version, first.alignment, metadata, tensors, unread, trailing), places


def map_together(parts: Sequence[OpenPart], places: Sequence[Place]) -> mmap.mmap | NDArray[np.uint8]:
    """The parts' bytes, each at its place, read-only: one range of addresses into which they are mapped, or a copy in memory."""
    if not MAPS_TOGETHER:
        return read_together(parts, places)
    total = pad(places[-1].start + places[-1].size, mmap.ALLOCATIONGRANULARITY)
    # Reserved, and not counted as memory: nobody may write to it. It is given up, parts and all, with the object.
    range_ = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    address = _address(range_)
    system_mmap: Any = ctypes.CDLL(None, use_errno=True).mmap
    system_mmap.restype = ctypes.c_void_p
    system_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
    for part, place in zip(parts, places, strict=True):
        assert 0 <= place.start <= total - place.size and len(part.data) == place.size  # nothing outside the range is replaced
        flags = mmap.MAP_SHARED | MAP_FIXED
        if system_mmap(address + place.start, place.size, mmap.PROT_READ, flags, part.handle, 0) != address + place.start:
            reason = os.strerror(ctypes.get_errno())
            range_.close()
            raise BadFileError(part.path, "file", f"cannot be mapped: {reason}")
    return range_


def _address(data: mmap.mmap) -> int:
    import numpy as np

    return int(np.frombuffer(data, np.uint8).ctypes.data)  # ctypes alone gives addresses of writable memory only


def read_together(parts: Sequence[OpenPart], places: Sequence[Place]) -> NDArray[np.uint8]:
    """The parts' bytes, each at its place, read-only, in memory. BadFileError: a part cannot be read to its end; BitnetError: no memory."""
    import numpy as np

    from bitnet_cli.machine.memory import available_bytes

    total = pad(places[-1].start + places[-1].size, mmap.ALLOCATIONGRANULARITY)
    free = available_bytes()
    if free is not None and total > free:
        have = f"{total / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
        raise BitnetError(f"{parts[0].path}: needs {have}; a file that is mapped needs none of its own")
    # No memory map, not even of nobody's file: a map's pages are given back, to come again from the file. It begins at a page like one.
    room = np.zeros(total + mmap.PAGESIZE, np.uint8)
    copy = room[-room.ctypes.data % mmap.PAGESIZE :][:total]
    for part, place in zip(parts, places, strict=True):
        try:
            with os.fdopen(os.dup(part.handle), "rb", buffering=0) as file:
                file.seek(0)
                at = place.start
                while at < place.start + place.size and (count := file.readinto(copy[at : place.start + place.size].data)):
                    at += count
        except OSError as error:
            raise BadFileError(part.path, "file", f"cannot be read: {error.strerror}") from None
        if at < place.start + place.size:
            raise BadFileError(part.path, "file", "became shorter while it was read", at - place.start)
    copy.flags.writeable = False
    return copy
