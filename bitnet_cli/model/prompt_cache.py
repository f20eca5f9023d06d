"""The KV cache of a prompt in a file, so that the next process need not compute it again.

    line 1   magic and version
    line 2   JSON: the model's fingerprint, type of the cache, what computed it, number of tokens, shapes and types of the arrays
    then     token ids, int32; the arrays of the cache (Engine.page_parts), row by row; all little-endian
    last     SHA-256 of everything before, 32 bytes

It says what the prompt was, so it is its owner's alone (0600). A file is written completely or not at all, and read only if all of it is as
expected: the same model, cache type, instruction set and version of this program. What is read gives the same tokens as computing it, to
the bit.
"""

import hashlib
import json
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from bitnet_kernels import isa
from numpy.typing import NDArray

from bitnet_cli import __version__
from bitnet_cli.checkpoint.strict_json import open_regular
from bitnet_cli.errors import BadFileError, BitnetError, UsageError
from bitnet_cli.gguf_file.part_file import explain_write_errors, part_file
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.sequence import Sequence

MAGIC = b"bitnet prompt cache 1\n"
LONGEST_HEADER = 1 << 16
SAMPLES, SAMPLE = 1024, 4096  # pieces of the tensors' data that the fingerprint reads, and their bytes


def fingerprint(opened: OpenModel) -> str:
    """SHA-256 of a model file's size, of everything before the tensors, and of 1,024 pieces of 4 KiB of the tensors, evenly spaced.

    All of a file of gigabytes would take longer to read than a short prompt to compute. Of every file of a split model.
    """
    digest = hashlib.sha256()
    for number, path in enumerate(opened.files):
        size = path.stat().st_size
        begin = min(opened.data_start, size) if number == 0 else SAMPLE
        digest.update(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(begin))
            step = max((size - begin) // SAMPLES, SAMPLE)
            for at in range(begin, size, step):
                file.seek(at)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _rows(parts: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Views of one KV head of one layer each."""
    for part in parts:
        for layer in part:
            yield from layer


def _header(opened: OpenModel, count: int, parts: list[NDArray[Any]]) -> dict[str, Any]:
    shapes = [[part.dtype.str, list(part.shape)] for part in parts]
    known = {"model": fingerprint(opened), "cache_type": opened.engine.cache_type, "scheme": opened.engine.scheme}
    return known | {"by": [__version__, isa.chosen()], "tokens": count, "arrays": shapes}


def save(opened: OpenModel, tokens: Ids[int], path: Path) -> None:
    """Write a text that is computed. BitnetError where it is not any more, or the file cannot be written."""
    (page,), count = opened.engine.pages.find(tokens)
    if count < len(tokens):
        raise BitnetError(f"{path}: the prompt is not in the KV cache any more")
    parts = opened.engine.page_parts(page.number, count)
    header = json.dumps(_header(opened, count, parts)).encode() + b"\n"
    ids = np.array(tokens, "<i4")
    size = len(MAGIC) + len(header) + ids.nbytes + sum(part.nbytes for part in parts) + 32
    with part_file(path, size, mode=0o600) as part, explain_write_errors(path, size), part.open("wb") as file:
        digest = hashlib.sha256()
        for data in (MAGIC, header, ids.tobytes()):
            digest.update(data)
            file.write(data)
        for row in _rows(parts):
            data = np.ascontiguousarray(row).tobytes()
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def load(opened: OpenModel, path: Path) -> int:
    """Put a text from a file where texts that begin with it find it; returns how many tokens it has.

    BadFileError: the file is damaged. UsageError: it was made with another model, cache type or version, or does not fit the context.
    """
    engine = opened.engine
    sequence = Sequence(engine)
    try:
        with open_regular(path) as file:
            digest = hashlib.sha256()
            header = _read_header(file, path, digest)
            ids = _read_ids(file, path, digest, header, engine.config.vocab)
            if len(ids) > engine.context:
                raise UsageError(f"{path}: holds {len(ids)} tokens, the context has {engine.context}; use a larger -c")
            sequence.reserve(len(ids))
            parts = engine.page_parts(int(sequence.table[0]), len(ids))
            _compare(header, _header(opened, len(ids), parts), path)
            for row in _rows(parts):
                data = _read(file, path, row.nbytes, "the cache")
                digest.update(data)
                row[:] = np.frombuffer(data, row.dtype).reshape(row.shape)
            if _read(file, path, 32, "the checksum") != digest.digest() or file.read(1):
                raise BadFileError(path, "checksum", "does not fit what the file holds")
        sequence.computed(ids)
    except OSError as error:
        raise BadFileError(path, "file", error.strerror or str(error)) from None
    finally:
        sequence.release()
    return len(ids)


def _read(file: BinaryIO, path: Path, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BadFileError(path, what, "is cut off")
    return data


def _read_header(file: BinaryIO, path: Path, digest: Any) -> dict[str, Any]:
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise BadFileError(path, "first line", "is not that of a prompt cache of this version; delete the file or name another")
    line = file.readline(LONGEST_HEADER)
    digest.update(magic + line)
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or type(header.get("tokens")) is not int:
        raise BadFileError(path, "header", "is not one line of JSON with the number of tokens")
    return header


def _read_ids(file: BinaryIO, path: Path, digest: Any, header: dict[str, Any], vocab: int) -> list[int]:
    size = path.stat().st_size
    if not 1 <= header["tokens"] <= size // 4:
        raise BadFileError(path, "tokens", f"is {header['tokens']}, more than a file of {size} bytes can hold, or none")
    data = _read(file, path, 4 * header["tokens"], "the token ids")
    digest.update(data)
    ids = np.frombuffer(data, "<i4")
    if ids.min() < 0 or ids.max() >= vocab:
        raise BadFileError(path, "the token ids", f"are not those of a vocabulary of {vocab} tokens")
    return [int(token) for token in ids]


def _compare(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    reasons = {
        "model": "another model",
        "cache_type": f"--cache-type {found.get('cache_type')}",
        "scheme": "other --activations",
        "by": "another version of bitnet or another instruction set",
        "arrays": "a cache of another shape",
    }
    for key, reason in reasons.items():
        if found.get(key) != expected[key]:
            raise UsageError(f"{path}: was made with {reason}; delete it or name another file")
