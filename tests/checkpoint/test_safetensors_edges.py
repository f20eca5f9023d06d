"""Limits of the safetensors reader to the byte: what just fits is read, one more is refused where it is wrong."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.checkpoint import safetensors
from bitnet_cli.checkpoint.safetensors import read_table
from bitnet_cli.errors import BadFileError

from .test_safetensors import entry, forge


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def refused(path: Path, words: str) -> None:
    with pytest.raises(BadFileError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: {words}"), caught.value


def test_the_shortest_file(path: Path) -> None:
    assert read_table(forge(path, "{}")) == {}
    forge(path, "{")
    refused(path, "size: 9 bytes, too short for a safetensors file")


def test_lengths_of_the_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"a": entry("U8", (1,), (0, 1))}
    size = forge(path, header, b"x").stat().st_size - 9
    monkeypatch.setattr(safetensors, "MAX_HEADER", size)
    assert list(read_table(path)) == ["a"]
    monkeypatch.setattr(safetensors, "MAX_HEADER", size - 1)
    refused(path, f"header length: {size}, expected 2 to {size - 1}; is this a safetensors file? (byte 0)")
    monkeypatch.setattr(safetensors, "MAX_HEADER", 1 << 60)
    forge(path, header, b"", length=size + 1)
    refused(path, f"header length: {size + 1}, but the file has {size + 8} bytes (byte 0)")
    forge(path, header, b"x", length=size + (1 << 56))
    refused(path, f"header length: {size + (1 << 56)}, but the file has {size + 9} bytes (byte 0)")
    forge(path, " {}", b"")
    refused(path, "header: does not start with '{' (byte 8)")


@pytest.mark.parametrize(("dtype", "count", "size"), [("F4", 2, 1), ("F6_E2M3", 4, 3), ("F6_E3M2", 4, 3), ("BOOL", 3, 3), ("C64", 1, 8)])
def test_bits_of_a_dtype(path: Path, dtype: str, count: int, size: int) -> None:
    assert read_table(forge(path, {"a": entry(dtype, (count,), (0, size))}, bytes(size)))["a"].nbytes == size
    for wrong in (size - 1, size + 1):
        forge(path, {"a": entry(dtype, (count,), (0, wrong))}, bytes(wrong))
        refused(path, f"a: {dtype} [{count}] needs {size} bytes, but data_offsets span {wrong}")


def test_names_and_dtypes_in_messages(path: Path) -> None:
    long = "n" * 1024
    assert list(read_table(forge(path, {long: entry()}, bytes(8)))) == [long]
    forge(path, {long + "n": entry()}, bytes(8))
    refused(path, f"tensor name '{'n' * 80}': empty, too long or not printable")
    forge(path, {"a": entry("?" * 60)}, bytes(8))
    refused(path, f"a: unknown dtype '{'?' * 39}; ")


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ([1] * 8, True),
        ([1] * 9, False),
        ([2**63 - 1, 0], True),
        ([2**63, 0], False),
        ([2**64 - 1, 0], False),
        ([-1, 0], False),
        ([0, 0], True),
    ],
)
def test_shapes(path: Path, shape: list[int], fits: bool) -> None:
    size: Any = 0 if 0 in shape else 1
    forge(path, {"a": entry("U8", shape, (0, size))}, bytes(size))
    if fits:
        assert read_table(path)["a"].shape == tuple(shape)
    else:
        refused(path, "a: shape must be a list of at most 8 sizes")
