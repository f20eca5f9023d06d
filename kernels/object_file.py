"""Which functions an object file asks for from outside: what another process would find out by linking it. The standard library only.

Only ELF of 64 bits in little-endian order is understood, which Linux has (System V ABI, "Object Files": file header, section headers,
symbol table). In: bytes of one object file. Out: names.
"""

import ctypes
import struct
from collections.abc import Iterator

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_SYMBOLS = 2  # SHT_SYMTAB
_UNDEFINED = 0  # SHN_UNDEF


def _sections(code: bytes) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, number of the linked section) of each section."""
    (start,) = struct.unpack_from("<Q", code, 0x28)
    size, count = struct.unpack_from("<HH", code, 0x3A)
    found = []
    for at in range(start, start + size * count, size):
        (kind,) = struct.unpack_from("<I", code, at + 4)
        offset, length, link = struct.unpack_from("<QQI", code, at + 0x18)
        found.append((kind, offset, length, link))
    return found


def wanted(code: bytes) -> set[str]:
    """Names of the undefined symbols. ValueError: no such file, or damaged."""
    if not code.startswith(_MAGIC):
        raise ValueError("not ELF of 64 bits")
    try:
        sections = _sections(code)
        tables = [section for section in sections if section[0] == _SYMBOLS]
        return {name for _, at, size, link in tables for name in _undefined(code[at : at + size], code[sections[link][1] :])}
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("damaged") from error


def _undefined(table: bytes, names: bytes) -> Iterator[str]:
    for name, _info, _other, section, _value, _size in struct.iter_unpack("<IBBHQQ", table):
        if section == _UNDEFINED and name:
            yield names[name : names.index(b"\0", name)].decode()


def found(name: str) -> bool:
    """Whether this process, and so any like it, has a function of this name: of the C library, or of Python."""
    try:
        return hasattr(ctypes.CDLL(None), name)
    except (OSError, TypeError):  # TypeError: Windows
        return False
