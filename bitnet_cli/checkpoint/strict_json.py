"""JSON files from strangers -> Python values, or a BadFileError that names the file.

Python's own reader keeps the last of two equal keys, accepts NaN, and leaves with RecursionError on deep nesting; all three are refused
here. Only regular files are opened: a FIFO would block and /dev/random never ends.
"""

import codecs
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from bitnet_cli.errors import BadFileError, BitnetError

MEGABYTE = 1 << 20
POINTER = 64  # bytes by which a Git LFS pointer is known


def require_regular_file(path: Path) -> int:
    """Size in bytes of a regular file; symbolic links are followed. Raises BadFileError where there is none."""
    try:
        status = path.stat()
    except OSError as error:  # absent, unreadable folder, loop of links
        raise BadFileError(path, "file", str(error.strerror)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(path, "file", "not a regular file")
    return status.st_size


def refuse_pointer(path: Path, start: bytes) -> None:
    """BadFileError where a file begins as what Git leaves in the place of a large one that was not fetched (git-lfs, docs/spec.md)."""
    if start.startswith((b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")):
        raise BadFileError(path, "file", "a Git LFS pointer, not the file itself; fetch that with `git lfs pull` in its folder")


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. BadFileError for anything else, a FIFO without a writer among it; OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadFileError(path, "file", "not a regular file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file, at most `limit` bytes."""
    size = require_regular_file(path)
    if size > limit:
        raise BadFileError(path, "size", f"{size} bytes; at most {limit} are expected")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BitnetError(f"{path}: {error.strerror}") from None
    refuse_pointer(path, data[:POINTER])
    return data


def parse_object(text: bytes, path: str | os.PathLike[str], field: str) -> dict[str, Any]:
    """A JSON object from UTF-8 bytes, as a dict without duplicate keys at any level."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadFileError(path, field, f"duplicate key {twice!r}")
        return result

    def no_constants(literal: str) -> NoReturn:
        raise BadFileError(path, field, f"{literal} is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constants)
    except UnicodeDecodeError as error:
        raise BadFileError(path, field, "not UTF-8", error.start) from None
    except RecursionError:
        raise BadFileError(path, field, "nested too deep") from None
    except json.JSONDecodeError as error:
        raise BadFileError(path, field, f"not JSON: {error.msg}", error.pos) from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadFileError(path, field, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadFileError(path, field, "expected a JSON object")
    return value


def read_object(path: Path, limit: int = 16 * MEGABYTE) -> dict[str, Any]:
    """The JSON object that is a whole file; a UTF-8 byte order mark, as editors on Windows leave it, is no part of it."""
    return parse_object(read_bytes(path, limit).removeprefix(codecs.BOM_UTF8), path, "JSON")
