"""Type 42 with groups of 128 weights, as PrismML's converter wrote it until July 2026: told from Q2_0 by the sizes of all tensors."""

from pathlib import Path

import pytest

from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType

from ..hostile import forge

COLS = 128


def file(path: Path, rows: tuple[int, ...], bytes_a_row: int) -> Path:
    """Tensors of so many rows of COLS weights, one after the other."""
    offset, tensors = 0, []
    for i, count in enumerate(rows):
        tensors.append(forge.tensor(f"t{i}", [COLS, count], 42, offset))
        offset += -(-count * bytes_a_row // 32) * 32
    path.write_bytes(forge.forge([], tensors, bytes(offset)))
    return path


def test_it_is_pq2_0(tmp_path: Path) -> None:
    with open_gguf(file(tmp_path / "m.gguf", (64, 1, 96), 34)) as opened:
        assert [(t.type, t.nbytes) for t in opened.tensors.values()] == [(TensorType.PQ2_0, n * 34) for n in (64, 1, 96)]


def test_the_official_type_and_what_fits_both_stay_official(tmp_path: Path) -> None:
    for rows, size in (((64, 1, 96), 36), ((1,), 34)):  # 34 bytes and 36 both take 64 of the file
        with open_gguf(file(tmp_path / "m.gguf", rows, size)) as opened:
            assert [(t.type, t.nbytes) for t in opened.tensors.values()] == [(TensorType.Q2_0, n * 36) for n in rows]


def test_a_size_of_neither_is_damage(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="hole"):
        open_gguf(file(tmp_path / "m.gguf", (64, 1, 96), 38))
