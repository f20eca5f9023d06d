"""Names of the files of a split model, `NAME-00001-of-00003.gguf`, numbered from 1. Only the standard library is imported.

Source: llama.cpp, src/llama.cpp (llama_split_path).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MAX_PARTS = 1000  # each is open while the model is being opened; 1,024 files are what a process may usually have
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL | re.ASCII)


class PartName(NamedTuple):
    """number: of this part, 1 to parts; suffix: `.gguf` as it is spelt."""

    name: str
    number: int
    parts: int
    suffix: str

    def of(self, number: int) -> str:
        """The file name of another part of the same model."""
        return f"{self.name}-{number:05d}-of-{self.parts:05d}{self.suffix}"

    @property
    def all(self) -> tuple[str, ...]:
        """File names of all parts."""
        return tuple(self.of(number) for number in range(1, self.parts + 1))


def part_name(file_name: str) -> PartName | None:
    """What a file's name says; None where it is not that of a part, of MAX_PARTS at most."""
    match = _PART.fullmatch(file_name)
    if match is None:
        return None
    name, number, count = match[1], int(match[2]), int(match[3])
    return PartName(name, number, count, match[4]) if 1 <= number <= count <= MAX_PARTS else None


def parts_beside(path: Path) -> list[Path]:
    """All parts of the model that `path` names one part of, there or not; the path itself where it is whole."""
    part = part_name(path.name)
    return [path] if part is None else [path.with_name(name) for name in part.all]


def first_of_each(paths: Iterable[Path]) -> list[Path]:
    """One path a model, in order: of a split one the first part that is among `paths`."""
    models: dict[object, Path] = {}
    for path in sorted(paths):
        part = part_name(path.name)
        models.setdefault(path if part is None else (path.parent, part.name, part.parts), path)
    return list(models.values())


def model_name(path: Path) -> str:
    """The file's name without its ending, and without a part's number."""
    part = part_name(path.name)
    return path.stem if part is None else part.name
