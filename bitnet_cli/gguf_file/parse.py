"""Bytes of a GGUF file -> metadata and tensor table. Nothing in the file is believed before it is compared with the file's size.

In: the memory map of a whole file. Out: `Header`. Every count and size is a Python int, so none wraps around; counts are compared with
the bytes that are left, and with a fixed cap, before the loop that uses them. The parser is a loop, with no recursion to exhaust.

Layout (GGUF specification, versions 2 and 3, little-endian):

    magic "GGUF" | version u32 | tensor count u64 | metadata count u64
    metadata:  key string | value type u32 | value              (string: length u64, bytes; array: item type u32, count u64, items)
    tensors:   name string | dimensions u32 | ne u64 each, row length first | type u32 | offset u64 from the start of the data
    padding to the alignment | data: the tensors in the order of the table, each padded to the alignment
"""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import NoReturn, TypeAlias

from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file.dialects import SCALED, in_groups_of_128, tl2_tensors, without_row_scales
from bitnet_cli.gguf_file.metadata import TYPECODES, Typed, ValueType
from bitnet_cli.gguf_file.types import TL2, UNREAD, TensorType, nbytes, not_read, tensor_type

# Caps, each several times what a published model needs (Gemma 3: 262,144 tokens, 514,906 merges, 15 MB in all).
MAX_HEADER = 64 << 20  # bytes of metadata and tensor table: bounds the memory that a file can make us take
MAX_STRING = 16 << 20  # bytes; the longest are chat templates
MAX_KEY = 65535  # bytes; the specification's own limit
MAX_STRINGS = 1 << 21  # strings in all arrays together
MAX_ENTRIES = 1 << 16  # metadata entries, and tensors
MAX_NAME = 63  # bytes of a tensor's name; ggml keeps 64 with a NUL
MAX_DIMS = 4
MIN_ENTRY = 8 + 1 + 4 + 1  # bytes of the smallest metadata entry: a key of one letter and a UINT8
MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # and of the smallest tensor description

ALIGNMENT = 32  # where the file does not say
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in TYPECODES.items()}
_LOOKALIKES = {
    b"FUGG": "a big-endian GGUF file; only little-endian ones are read",
    b"vers": "a Git LFS pointer, not the model itself; fetch the model with `git lfs pull`",
    b"PK\x03\x04": "a zip or PyTorch file, not GGUF",
    b"<!DO": "a web page, not GGUF",
    b"<htm": "a web page, not GGUF",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape in NumPy order (last = row length, GGUF's ne[0]); `offset` in bytes from the start of the file.

    Of a split model: in the bytes of its files together, GGUFFile.file_bytes.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor of a type that is known and not read. `nbytes`: up to the next tensor, padding included, whatever the type needs."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


Table: TypeAlias = "dict[str, TensorInfo | UnreadTensor]"


@dataclass(frozen=True)
class Header:
    version: int
    alignment: int
    metadata: dict[str, Typed]
    tensors: dict[str, TensorInfo]
    unread: dict[str, UnreadTensor]  # empty unless parsed with `unread`
    trailing: int  # bytes after the last tensor and its padding


def parse(data: mmap, path: Path, *, unread: bool = False) -> Header:
    """The header of the file in `data`. BadFileError where it is damaged, UnsupportedError where it is sound but not for us.

    `unread`: for a look at the file only. Tensors of types that are not read are then no errors.

    A part of a split model is a file like any other here; split.py joins them.
    """
    parser = _Parser(data, path)
    version, n_tensors, n_entries = parser.preamble()
    metadata: dict[str, Typed] = {}
    for i in range(n_entries):
        key = parser.key(f"metadata entry {i}", metadata)
        metadata[key] = parser.value(key)
    alignment = parser.alignment(metadata)
    parser.count_fits(n_tensors, MIN_TENSOR, "tensor count")
    table: Table = {}
    for i in range(n_tensors):
        info = parser.tensor(i, table)
        table[info.name] = info
    end = len(data) - pad(parser.pos, alignment)
    table |= without_row_scales(path, table, end, alignment)
    table |= {name: UnreadTensor(name, TL2, table[name].shape, table[name].offset, 0) for name in tl2_tensors(table, end, alignment)}
    placed, trailing = _placed(parser, table, alignment)
    tensors = {name: info for name, info in placed.items() if isinstance(info, TensorInfo)}
    others = {name: info for name, info in placed.items() if isinstance(info, UnreadTensor)}
    if not unread:
        require_read(path, others)
    return Header(version, alignment, metadata, tensors, others, trailing)


def _placed(parser: _Parser, table: Table, alignment: int) -> tuple[Table, int]:
    """As `_Parser.place`. A file whose tensors follow each other only if its Q2_0 is PQ2_0 has that (dialects.py)."""
    try:
        return parser.place(table, alignment)
    except BadFileError:
        old = in_groups_of_128(table)
        with contextlib.suppress(BadFileError):
            if old:
                return parser.place({**table, **old}, alignment)
        raise


def require_read(path: Path, others: Mapping[str, UnreadTensor]) -> None:
    """UnsupportedError where there is a tensor of a type that is not read."""
    for info in others.values():
        raise not_read(path, f"tensor {info.name}", info.type)


def pad(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


class _Parser:
    """A position in the file, and the reads that move it."""

    def __init__(self, data: mmap, path: Path):
        self.data, self.path, self.pos = data, path, 0
        self.size = len(data)
        self.limit = min(self.size, MAX_HEADER)
        self.strings_left = MAX_STRINGS
        self.rows: list[int] = []  # where each tensor's row of the table begins

    def fail(self, field: str, reason: str, offset: int | None = None) -> NoReturn:
        raise BadFileError(self.path, field, reason, self.pos if offset is None else offset)

    def take(self, count: int, field: str) -> int:
        """Position of the next `count` bytes, now consumed; refuses unless they are there."""
        start = self.pos
        if count > self.size - start:
            self.fail(field, f"needs {count} bytes, the file has {self.size - start} left")
        if count > self.limit - start:
            self.fail(field, f"metadata and tensor table would be longer than {MAX_HEADER} bytes")
        self.pos = start + count
        return start

    def u32(self, field: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, field))[0])

    def u64(self, field: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, field))[0])

    def string_bytes(self, field: str, most: int) -> bytes:
        length = self.u64(f"{field} length")
        if length > most:
            self.fail(f"{field} length", f"is {length}, at most {most} bytes are allowed", self.pos - 8)
        start = self.take(length, field)
        return self.data[start : self.pos]

    def identifier(self, field: str, most: int) -> str:
        """A key or a tensor's name: not empty, valid UTF-8, nothing that could drive a terminal."""
        start = self.pos
        raw = self.string_bytes(field, most)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.fail(field, "is not valid UTF-8", start)
        if not text:
            self.fail(field, "is empty", start)
        if not text.isprintable():
            self.fail(field, f"'{text[:80]}' has control characters", start)
        return text

    def count_fits(self, count: int, record: int, field: str) -> None:
        """Refuses a count of records, `record` bytes or more each, that the rest of the file cannot hold."""
        if count * record > self.size - self.pos:
            self.fail(field, f"is {count}, but the file has only {self.size - self.pos} bytes left")
        if count > MAX_ENTRIES:
            self.fail(field, f"is {count}, at most {MAX_ENTRIES} are allowed")

    def preamble(self) -> tuple[int, int, int]:
        """(version, tensor count, metadata count)."""
        magic = self.data[:4]
        if magic != b"GGUF":
            self.fail("magic", _LOOKALIKES.get(magic, f"not a GGUF file: it begins with {magic!r}"))
        self.pos = 4
        version = self.u32("version")
        if version and version & 0xFFFF == 0:
            self.fail("version", f"{version} is a byte-swapped number: a big-endian GGUF file; only little-endian ones are read", 4)
        if version not in (2, 3):
            self.fail("version", f"is {version}, expected 2 or 3", 4)
        n_tensors, n_entries = self.u64("tensor count"), self.u64("metadata count")
        self.count_fits(n_tensors, MIN_TENSOR, "tensor count")
        self.count_fits(n_entries, MIN_ENTRY, "metadata count")
        return version, n_tensors, n_entries

    def key(self, field: str, seen: dict[str, Typed]) -> str:
        start = self.pos
        key = self.identifier(f"{field} key", MAX_KEY)
        if key in seen:
            self.fail(key, "is there twice", start)
        return key

    def value_type(self, field: str) -> ValueType:
        number = self.u32(f"{field} type")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(field, f"unknown value type {number}", self.pos - 4)

    def value(self, key: str) -> Typed:
        kind = self.value_type(key)
        if kind is ValueType.STRING:
            return Typed(self.string_bytes(key, MAX_STRING).decode("utf-8", "surrogateescape"), kind)
        if kind is ValueType.ARRAY:
            return self.array(key)
        scalar = _SCALARS[kind]
        (number,) = scalar.unpack_from(self.data, self.take(scalar.size, key))
        if kind is ValueType.BOOL:
            if number > 1:
                self.fail(key, f"boolean is {number}, expected 0 or 1", self.pos - 1)
            number = bool(number)
        return Typed(number, kind)

    def array(self, key: str) -> Typed:
        item = self.value_type(f"{key} item")
        count = self.u64(f"{key} count")
        if item is ValueType.ARRAY:
            self.fail(key, "is an array of arrays, which no model uses")
        if item is ValueType.STRING:
            return Typed(self.strings(key, count), ValueType.ARRAY, item)
        values = array(TYPECODES[item])
        start = self.take(count * values.itemsize, key)
        values.frombytes(self.data[start : self.pos])
        if item is ValueType.BOOL and count and max(values) > 1:
            self.fail(key, "has a boolean that is neither 0 nor 1", start)
        return Typed(values, ValueType.ARRAY, item)

    def strings(self, key: str, count: int) -> list[str]:
        """`count` strings. One flat loop rather than calls of `string_bytes`: a vocabulary and its merges are 400,000 of them."""
        if count * 8 > self.size - self.pos:
            self.fail(key, f"has {count} strings, but the file has only {self.size - self.pos} bytes left")
        if count > self.strings_left:
            self.fail(key, f"has {count} strings, at most {MAX_STRINGS} are allowed in all arrays together")
        self.strings_left -= count
        data, pos, limit, unpack = self.data, self.pos, self.limit, _U64.unpack_from
        out: list[str] = []
        for _ in range(count):
            start = pos + 8
            if start > limit:
                break
            end = start + unpack(data, pos)[0]
            if end > limit or end - start > MAX_STRING:
                break
            out.append(data[start:end].decode("utf-8", "surrogateescape"))
            pos = end
        self.pos = pos
        if len(out) < count:  # the slow path names what is wrong with this one
            self.string_bytes(f"{key}[{len(out)}]", MAX_STRING)
        return out

    def alignment(self, metadata: dict[str, Typed]) -> int:
        entry = metadata.get("general.alignment", Typed(ALIGNMENT, ValueType.UINT32))
        value = entry.value
        if entry.type is not ValueType.UINT32 or not isinstance(value, int):
            raise BadFileError(self.path, "general.alignment", f"is {entry.type.name}, expected UINT32")
        if not 8 <= value <= 65536 or value & (value - 1):
            raise BadFileError(self.path, "general.alignment", f"is {value}, expected a power of two from 8 to 65536")
        return value

    def tensor(self, index: int, seen: Table) -> TensorInfo | UnreadTensor:
        """The next row of the tensor table, with its offset still relative to the start of the data."""
        start = self.pos
        self.rows.append(start)
        name = self.identifier(f"tensor {index} name", MAX_NAME)
        field = f"tensor {name}"
        if name in seen:
            self.fail(field, "is there twice", start)
        n_dims = self.u32(f"{field} dimensions")
        if not 1 <= n_dims <= MAX_DIMS:
            self.fail(f"{field} dimensions", f"{n_dims}, expected 1 to {MAX_DIMS}", self.pos - 4)
        at = self.pos
        ne = [self.u64(f"{field} ne[{i}]") for i in range(n_dims)]
        for i, n in enumerate(ne):
            if not 1 <= n < 1 << 63:
                self.fail(f"{field} ne[{i}]", f"is {n}, expected 1 to 2^63 - 1", at + 8 * i)
        number, shape = self.u32(f"{field} type"), tuple(reversed(ne))
        if number in UNREAD:
            return UnreadTensor(name, UNREAD[number], shape, self.u64(f"{field} offset"), 0)
        kind = tensor_type(number, self.path, field, self.pos - 4)
        try:
            size = nbytes(kind, shape)
        except ValueError as error:
            self.fail(f"{field} shape", str(error), at)
        # PQ2_0 under its number takes less, rows without their scales and TL2 too.
        if size > self.size and kind not in (TensorType.Q2_0, TensorType.MXFP4, *SCALED):
            self.fail(f"{field} shape", f"{shape} of {kind.name} needs {size} bytes, the file has {self.size}", at)
        return TensorInfo(name, kind, shape, self.u64(f"{field} offset"), size)

    def place(self, table: Table, alignment: int) -> tuple[Table, int]:
        """The table with absolute offsets, and the number of bytes after the data.

        Like llama.cpp, accepts only tensors that follow each other in the order of the table: no overlaps, so no two tensors share
        bytes, and no holes, where a second file could hide. A tensor of unknown size ends where the next one begins.
        """
        begin, expected, last = pad(self.pos, alignment), 0, len(table) - 1
        offsets = [info.offset for info in table.values()]
        placed: Table = {}
        for i, (row, (name, info)) in enumerate(zip(self.rows, table.items(), strict=True)):
            field = f"tensor {name} offset"
            if info.offset % alignment:
                self.fail(field, f"is {info.offset}, not a multiple of the alignment {alignment}", row)
            if info.offset != expected:
                fault = "overlaps the tensor before it" if info.offset < expected else "leaves a hole after the tensor before it"
                self.fail(field, f"is {info.offset}, expected {expected}: it {fault}", row)
            start = begin + info.offset
            size = info.nbytes
            if isinstance(info, UnreadTensor):
                size = (self.size - begin if i == last else offsets[i + 1]) - info.offset
                if size <= 0:
                    self.fail(field, f"is {info.offset}, which leaves no bytes for it", row)
            if start + size > self.size:
                self.fail(f"tensor {name}", f"ends at byte {start + size}, the file at {self.size}", row)
            placed[name] = replace(info, offset=start, nbytes=size)
            expected = pad(info.offset + size, alignment)
        return placed, max(0, self.size - (begin + expected))
