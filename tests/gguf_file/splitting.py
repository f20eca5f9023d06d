"""A GGUF file cut into parts as llama-gguf-split cuts it: all metadata in the first, three keys in the others; any of it can be a lie."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

from ..hostile.forge import INT32, UINT16, entry, forge, scalar, tensor


def part(folder: Path, name: str, number: int, count: int) -> Path:
    return folder / f"{name}-{number:05d}-of-{count:05d}.gguf"


def split_keys(number: int, count: int, total: int) -> dict[str, bytes]:
    return {
        "split.no": entry("split.no", UINT16, scalar(UINT16, number - 1)),
        "split.count": entry("split.count", UINT16, scalar(UINT16, count)),
        "split.tensors.count": entry("split.tensors.count", INT32, scalar(INT32, total)),
    }


Tensors = Mapping[str, tuple[Sequence[int], int, bytes]]


def forged_part(number: int, count: int, total: int, tensors: Tensors, keys: Mapping[str, bytes | None] | None = None) -> bytes:
    """tensors: name -> ne, type number, bytes. keys: entries in place of, or beside, the three; None leaves one out."""
    entries = [value for value in (split_keys(number, count, total) | dict(keys or {})).values() if value is not None]
    rows, data = [], b""
    for name, (ne, kind, raw) in tensors.items():
        rows.append(tensor(name, ne, kind, len(data)))
        data += raw + bytes(-len(raw) % 32)
    return forge(entries, rows, data)


def split(
    source: Path,
    folder: Path,
    cuts: Sequence[int],
    name: str = "model",
    keys: Mapping[int, Mapping[str, bytes | None]] | None = None,
    total: int | None = None,
) -> list[Path]:
    """The paths of len(cuts) + 1 parts. cuts: numbers of tensors before each part but the first; keys: of a part's number."""
    with open_gguf(source) as file:
        names = list(file.tensors)
        borders = [0, *cuts, len(names)]
        count, total = len(borders) - 1, len(names) if total is None else total
        contents: list[dict[str, Any]] = []
        for first, last in pairwise(borders):
            chosen = [file.tensors[name] for name in names[first:last]]
            contents.append({info.name: (info, file.raw(info.name).tobytes()) for info in chosen})
        paths = [part(folder, name, number, count) for number in range(1, count + 1)]
        outputs = [OutputTensor(n, i.type, i.shape, lambda raw=raw: _array(raw)) for n, (i, raw) in contents[0].items()]  # type: ignore[misc]
        own = {"split.no": Typed(0, ValueType.UINT16), "split.count": Typed(count, ValueType.UINT16)}
        own |= {"split.tensors.count": Typed(total, ValueType.INT32)}
        write_gguf(paths[0], str(file.metadata["general.architecture"]), file.typed_metadata | own, outputs, force=True)
        for number, path in enumerate(paths[1:], 2):
            table = {n: ([*reversed(i.shape)], int(i.type) % 2**32, raw) for n, (i, raw) in contents[number - 1].items()}
            path.write_bytes(forged_part(number, count, total, table, (keys or {}).get(number)))
    return paths


def _array(raw: bytes) -> Any:
    import numpy as np

    return np.frombuffer(raw, np.uint8)
