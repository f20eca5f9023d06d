"""IQ2_BN with and without scales of rows: one number, told apart by the sizes of all tensors together."""

from pathlib import Path

import numpy as np
import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType

from ..hostile.forge import forge, tensor

IQ1_BN, IQ2_BN = 134, 135


def written(path: Path, rows: list[tuple[int, int, int, int]], extra: int = 0) -> Path:
    """rows: (cols, rows, type, bytes) of tensors a, b, ... one after the other, each padded to 32."""
    table, at = [], 0
    for i, (cols, count, kind, size) in enumerate(rows):
        table.append(tensor(chr(97 + i), [cols, count], kind, at))
        at += -(-size // 32) * 32
    path.write_bytes(forge([], table, bytes(at + extra)))
    return path


def kinds(path: Path) -> list[str]:
    with open_gguf(path) as file:
        return [info.type.name for info in file.tensors.values()]


@pytest.mark.parametrize("extra", [0, 4096])  # bytes after the last tensor
def test_with_and_without_scales(extra: int, tmp_path: Path) -> None:
    scaled = written(tmp_path / "scaled.gguf", [(128, 16, IQ2_BN, 16 * 36), (64, 8, IQ2_BN, 8 * 20), (8, 1, 0, 32)], extra)
    assert kinds(scaled) == ["IQ2_BN", "IQ2_BN", "F32"]
    older = written(tmp_path / "older.gguf", [(128, 16, IQ2_BN, 16 * 32), (64, 8, IQ2_BN, 8 * 16), (8, 1, 0, 32)], extra)
    assert kinds(older) == ["IQ2_BN_UNSCALED", "IQ2_BN_UNSCALED", "F32"]


def test_a_file_that_fits_both_is_todays(tmp_path: Path) -> None:
    """Four rows of 64 are 64 bytes without scales and 80 with them: both end before 96."""
    path = tmp_path / "both.gguf"
    path.write_bytes(forge([], [tensor("a", [320, 4], IQ2_BN, 0), tensor("b", [8], 0, 352)], bytes(384)))
    assert kinds(path) == ["IQ2_BN", "F32"]


def test_one_tensor_decides_for_all(tmp_path: Path) -> None:
    """Rows of 320: 20 bytes of scales and 4 of them vanish in the padding of the first; the second has room for none."""
    path = tmp_path / "both.gguf"
    path.write_bytes(forge([], [tensor("a", [320, 1], IQ2_BN, 0), tensor("b", [128, 64], IQ2_BN, 96)], bytes(96 + 64 * 32)))
    assert kinds(path) == ["IQ2_BN_UNSCALED", "IQ2_BN_UNSCALED"]


def test_neither(tmp_path: Path) -> None:
    path = written(tmp_path / "mixed.gguf", [(128, 64, IQ2_BN, 64 * 36), (128, 64, IQ2_BN, 64 * 32)])
    with pytest.raises(BadFileError, match="tensor b: ends at byte"):
        open_gguf(path)
    path = written(tmp_path / "short.gguf", [(128, 64, IQ2_BN, 64 * 31)])
    with pytest.raises(BadFileError, match="tensor a: ends at byte"):
        open_gguf(path)


def test_iq1_bn_without_scales(tmp_path: Path) -> None:
    path = written(tmp_path / "older.gguf", [(128, 64, IQ1_BN, 64 * 26), (8, 1, 0, 32)])
    with pytest.raises(UnsupportedError, match=r"IQ1_BN of an ik_llama\.cpp before October 2024"):
        open_gguf(path)
    assert kinds(written(tmp_path / "new.gguf", [(128, 64, IQ1_BN, 64 * 28), (8, 1, 0, 32)])) == ["IQ1_BN", "F32"]


def test_sizes_are_exact_ints(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(forge([], [tensor("a", [2**62, 2**33], IQ2_BN, 0)], bytes(96)))
    with pytest.raises(BadFileError, match="tensor a: ends at byte"):
        open_gguf(path)
    assert np.prod([2**62, 2**33], dtype=np.uint64) == 0  # what must not be believed
    assert TensorType.IQ2_BN_UNSCALED > 2**32  # no file can say it
