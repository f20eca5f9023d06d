"""Metadata and tensors -> GGUF file, version 3, one tensor in memory at a time.

In: metadata (plain values, or `Typed` ones from a file that is being copied) and a list of tensors, each with a function that makes its
bytes. Out: a complete file, or none (see part_file.py). Header, metadata and tensor table come from the `gguf` package's GGUFWriter.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli.gguf_file.metadata import TYPECODES, Typed, Value, ValueType, with_type
from bitnet_cli.gguf_file.parse import ALIGNMENT, MAX_DIMS, MAX_NAME, pad
from bitnet_cli.gguf_file.part_file import check_space, check_target, explain_write_errors, part_file, refuse_same_file
from bitnet_cli.gguf_file.types import TensorType, nbytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OutputTensor", "gguf_size", "refuse_same_file", "write_gguf"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: shape in NumPy order; `produce` is called once, in the order of the list, when the tensor's turn comes.

    It returns any array whose bytes, in C order, are the tensor's bytes in the file: exactly nbytes(type, shape) of them.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    produce: Callable[[], NDArray[Any]]


def write_gguf(
    path: str | os.PathLike[str],
    architecture: str,
    metadata: Mapping[str, Value | Typed | Sequence[int] | Sequence[float]],
    tensors: Sequence[OutputTensor],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the file and returns its size in bytes.

    `architecture` becomes general.architecture, whatever `metadata` says; `general.alignment` in `metadata` is obeyed. `progress` is
    called after each tensor with its name, the tensor bytes written so far, and those of the whole file.

    UsageError: the target exists (without `force`), or its folder does not. BitnetError: the disk is full or cannot be written.
    ValueError: what the caller asks for is not a GGUF file (a name twice, a shape without whole blocks, wrong bytes from `produce`).
    """
    target = Path(path)
    typed = typed_metadata(architecture, metadata)
    alignment = _alignment(typed)
    _check_tensors(tensors)
    sizes = [nbytes(t.type, t.shape) for t in tensors]
    needed = gguf_size(architecture, metadata, tensors)
    check_target(target, force)
    check_space(target, needed)
    with part_file(target, needed) as part:
        writer = _new_writer(part, architecture)
        try:
            with explain_write_errors(target, needed):
                _write_header(writer, typed, tensors, sizes, alignment)
            written = 0
            for tensor, size in zip(tensors, sizes, strict=True):
                data = _bytes_of(tensor, size)  # outside explain_write_errors: an OSError in here is the input's
                with explain_write_errors(target, needed):
                    writer.fout[0].write(data)
                    writer.write_padding(writer.fout[0], size)
                del data  # before the next one is made
                written += size
                if progress is not None:
                    progress(tensor.name, written, sum(sizes))
        except BaseException:
            with contextlib.suppress(OSError):
                writer.close()
            raise
        with explain_write_errors(target, needed):
            writer.close()  # writes what is still buffered, so it too can meet a full disk
        if part.stat().st_size != needed:
            raise ValueError(f"{target}: {part.stat().st_size} bytes were written where {needed} were planned")
    return needed


def gguf_size(
    architecture: str, metadata: Mapping[str, Value | Typed | Sequence[int] | Sequence[float]], tensors: Sequence[OutputTensor]
) -> int:
    """Bytes of the file that `write_gguf` would write; nothing is written, no tensor is made."""
    typed = typed_metadata(architecture, metadata)
    alignment = _alignment(typed)
    return _header_size(typed, tensors, alignment) + sum(pad(nbytes(t.type, t.shape), alignment) for t in tensors)


def typed_metadata(architecture: str, metadata: Mapping[str, Value | Typed | Sequence[int] | Sequence[float]]) -> dict[str, Typed]:
    """All metadata with types; the architecture comes first, as llama.cpp writes it."""
    typed = {"general.architecture": Typed(architecture, ValueType.STRING)}
    return typed | {key: with_type(value) for key, value in metadata.items() if key != "general.architecture"}


def _alignment(typed: Mapping[str, Typed]) -> int:
    entry = typed.get("general.alignment", Typed(ALIGNMENT, ValueType.UINT32))
    value = entry.value
    if entry.type is not ValueType.UINT32 or not isinstance(value, int) or not 8 <= value <= 65536 or value & (value - 1):
        raise ValueError(f"general.alignment is {value!r}, expected a power of two from 8 to 65536 as UINT32")
    return value


def _check_tensors(tensors: Sequence[OutputTensor]) -> None:
    """ValueError for a table that our own reader would refuse."""
    seen: set[str] = set()
    for tensor in tensors:
        if not 0 < len(tensor.name.encode()) <= MAX_NAME or not tensor.name.isprintable():
            raise ValueError(f"tensor name {tensor.name!r} is not 1 to {MAX_NAME} bytes of printable text")
        if tensor.name in seen:
            raise ValueError(f"two tensors are called {tensor.name!r}")
        if len(tensor.shape) > MAX_DIMS:
            raise ValueError(f"tensor {tensor.name}: {len(tensor.shape)} dimensions, at most {MAX_DIMS} are allowed")
        seen.add(tensor.name)


def _header_size(typed: Mapping[str, Typed], tensors: Sequence[OutputTensor], alignment: int) -> int:
    """Bytes before the tensor data, or of a whole file without tensors: known before anything is written."""
    size = 24  # magic, version, two counts
    for key, entry in typed.items():
        size += 8 + len(_utf8(key)) + 4 + _value_size(entry)
    for tensor in tensors:
        size += 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8
    return pad(size, alignment) if tensors else size


def _value_size(entry: Typed) -> int:
    if isinstance(entry.value, str):
        return 8 + len(_utf8(entry.value))
    if entry.item_type is None:
        return struct.calcsize(TYPECODES[entry.type])
    if isinstance(entry.value, array):
        return 12 + len(entry.value) * struct.calcsize(TYPECODES[entry.item_type])
    assert isinstance(entry.value, list)
    return 12 + sum(8 + len(_utf8(text)) for text in entry.value)


def _utf8(text: str) -> bytes:
    """The bytes that the reader decoded `text` from; GGUFWriter on its own cannot encode the ones that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _new_writer(part: Path, architecture: str) -> Any:
    import gguf  # here, because it takes 0.28 s

    class Writer(gguf.GGUFWriter):
        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            """GGUFWriter refuses empty arrays, which llama.cpp allows, and bytes that are not UTF-8: a copied file may have both."""
            if isinstance(val, str):
                val = _utf8(val)
            if vtype == ValueType.ARRAY and not len(val) and sub_type is not None:
                return struct.pack("<IIQ", ValueType.ARRAY, sub_type, 0)
            packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
            return packed

    return Writer(part, architecture)


def _write_header(writer: Any, typed: Mapping[str, Typed], tensors: Sequence[OutputTensor], sizes: Sequence[int], alignment: int) -> None:
    """Everything before the first tensor's bytes.

    The tensors go into `writer.tensors` by hand: `add_tensor_info` looks the type up in the package's enum, which has neither I2_S nor
    Q2_0. Their bytes go straight to `writer.fout`: `write_tensor_data` uses ndarray.tofile, which loses the reason of a failed write.
    """
    from gguf import GGUFValueType
    from gguf.gguf_writer import TensorInfo

    writer.data_alignment = alignment
    for key, entry in typed.items():
        if key == "general.architecture":
            continue  # GGUFWriter has put it first
        value: Any = entry.value.tolist() if isinstance(entry.value, array) else entry.value
        item = None if entry.item_type is None else GGUFValueType(entry.item_type)
        writer.add_key_value(key, value, GGUFValueType(entry.type), item)
    for tensor, size in zip(tensors, sizes, strict=True):
        number: Any = int(tensor.type)
        writer.tensors[0][tensor.name] = TensorInfo(shape=tensor.shape, dtype=number, nbytes=size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if tensors:
        writer.write_padding(writer.fout[0], writer.fout[0].tell())


def _bytes_of(tensor: OutputTensor, size: int) -> NDArray[Any]:
    """The tensor's bytes, (size,) uint8, without a copy where its array is contiguous."""
    import numpy as np

    data = tensor.produce()
    if data.nbytes != size:
        raise ValueError(f"tensor {tensor.name}: {data.nbytes} bytes were made, {tensor.type.name} {tensor.shape} has {size}")
    if data.dtype.byteorder == ">":
        raise ValueError(f"tensor {tensor.name}: big-endian numbers")
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
