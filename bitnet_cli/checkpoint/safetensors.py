"""safetensors file -> table of tensors, each read when asked for, a few rows at a time. Little-endian.

    8 bytes   header length, uint64
    header    JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end)} counted from the end of the header
    data      the tensors, row-major, without holes or overlap, up to the last byte of the file

(https://huggingface.co/docs/safetensors, "Format"). The whole table is checked before a byte of data is read, in Python ints and against
the real file size.
"""

import math
import re
from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.stored import READ, OpenFile, StoredTensor
from bitnet_cli.checkpoint.strict_json import POINTER, parse_object, refuse_pointer, require_regular_file
from bitnet_cli.errors import BadFileError

MAX_HEADER = 100_000_000  # bytes; the format's own limit

# Bits of every dtype the format defines, to check spans; those in stored.READ can be read.
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8)
BITS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("I32", "U32", "F32"), 32)
BITS |= dict.fromkeys(("I64", "U64", "F64", "C64"), 64)


def read_table(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file, by name. Raises BadFileError where the header and the file disagree."""
    size = require_regular_file(path)
    if size < 10:
        raise BadFileError(path, "size", f"{size} bytes, too short for a safetensors file")
    file = OpenFile(path)
    refuse_pointer(path, file.read(0, min(size, POINTER)).tobytes())
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if not 2 <= length <= MAX_HEADER:
        raise BadFileError(path, "header length", f"{length}, expected 2 to {MAX_HEADER}; is this a safetensors file?", 0)
    if 8 + length > size:
        raise BadFileError(path, "header length", f"{length}, but the file has {size} bytes", 0)
    text = file.read(8, length).tobytes()
    if text[:1] != b"{":
        raise BadFileError(path, "header", "does not start with '{'", 8)
    header = parse_object(text, path, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFileError(path, "__metadata__", "expected an object of strings")
    table = {name: _entry(name, entry, file, 8 + length) for name, entry in header.items()}
    _check_spans(table, path, 8 + length, size)
    return table


def _entry(name: str, entry: Any, file: OpenFile, data: int) -> StoredTensor:
    """One row of the header, checked on its own. `data`: byte where the data starts."""
    path = file.path
    if not name or len(name) > 1024 or not name.isprintable():
        raise BadFileError(path, f"tensor name {name[:80]!r}", "empty, too long or not printable")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFileError(path, name, "expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        known = dtype if isinstance(dtype, str) and re.fullmatch(r"\w{1,20}", dtype) else repr(dtype)[:40]
        raise BadFileError(path, name, f"unknown dtype {known}; {', '.join(READ)} are read")
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_size(n) for n in shape):
        raise BadFileError(path, name, "shape must be a list of at most 8 sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets) or offsets[0] > offsets[1]:
        raise BadFileError(path, name, "data_offsets must be [begin, end]")
    # Python ints: NumPy's product of [2**33, 2**33] is 0.
    bits = math.prod(shape) * BITS[dtype]
    nbytes = offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise BadFileError(path, name, f"{dtype} {shape} needs {-(-bits // 8)} bytes, but data_offsets span {nbytes}")
    return StoredTensor(name, dtype, tuple(shape), data + offsets[0], nbytes, file)


def _check_spans(table: dict[str, StoredTensor], path: Path, start: int, size: int) -> None:
    """Every byte from `start` to the end of the file belongs to exactly one tensor."""
    end = start
    for tensor in sorted(table.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else f"leaves {tensor.offset - end} unused bytes before it"
            raise BadFileError(path, tensor.name, f"data_offsets: {problem}", tensor.offset)
        end += tensor.nbytes
    if end != size:
        raise BadFileError(path, "size", f"tensors end at byte {end}, but the file has {size} bytes", min(end, size))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
