"""Builds GGUF files by hand, field by field, so that any field can be a lie. Nothing here is checked: that is the point.

forge(entries=[entry("general.architecture", STRING, string("llama"))], tensors=[tensor("a", [4], 0, 0)], data=bytes(16))
"""

import struct
from collections.abc import Sequence

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
FORMATS = {UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "B"}
FORMATS |= {UINT64: "Q", INT64: "q", FLOAT64: "d"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value % 2**64)


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: int, value: float) -> bytes:
    return struct.pack("<" + FORMATS[kind], value)


def array(item: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    return u32(item) + u64(len(items) if count is None else count) + b"".join(items)


def entry(key: str | bytes, kind: int, value: bytes, length: int | None = None) -> bytes:
    return string(key, length) + u32(kind) + value


def tensor(name: str | bytes, ne: Sequence[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    dims = b"".join(u64(n) for n in ne)
    return string(name) + u32(len(ne) if n_dims is None else n_dims) + dims + u32(kind) + u64(offset)


def forge(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_entries: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; without tensors it ends after the metadata, as a file that holds only a vocabulary does."""
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(entries) if n_entries is None else n_entries)
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data if tensors else head


def small_model() -> bytes:
    """A valid file of three tensors and a value of every type. It ends with the last tensor's last byte: no shorter file is valid."""
    scalars = [entry(f"one.of.type.{kind}", kind, scalar(kind, 1)) for kind in FORMATS]
    arrays = [entry(f"two.of.type.{kind}", ARRAY, array(kind, [scalar(kind, 0), scalar(kind, 1)])) for kind in FORMATS]
    texts = [
        entry("general.architecture", STRING, string("llama")),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, [string("a"), string(b"\xff\xfe"), string("")])),
        entry("empty", ARRAY, array(STRING, [])),
    ]
    tensors = [tensor("token_embd.weight", [4, 2], 0, 0), tensor("blk.0.attn_q.weight", [128, 1], 36, 32), tensor("norm", [16], 1, 96)]
    return forge(texts + scalars + arrays, tensors, bytes(range(128)))
