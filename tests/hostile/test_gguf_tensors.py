"""Damaged and forged GGUF files, the tensor table: names, dimensions, types, offsets, and what lies after the last tensor."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_cli.errors import BitnetError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf

from .forge import forge, tensor

Refuse = Callable[..., BitnetError]  # conftest.py


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"", "tensor 0 name: is empty"),
        (b"x" * 64, "tensor 0 name length: is 64, at most 63"),
        (b"a\0b", r"tensor 0 name: 'a\x00b' has control characters"),
        (b"\x1b[31m", "has control characters"),
        (b"line\nbreak", "has control characters"),
        (b"\xc3\x28", "not valid UTF-8"),
    ],
)
def test_tensor_names(refuse: Refuse, name: bytes, text: str) -> None:
    refuse(forge([], [tensor(name, [4], 0, 0)], bytes(16)), text)


def test_longest_tensor_name_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "name.gguf"
    path.write_bytes(forge([], [tensor("x" * 63, [4], 0, 0)], bytes(16)))
    with open_gguf(path) as file:
        assert list(file.tensors) == ["x" * 63]


def test_tensor_twice(refuse: Refuse) -> None:
    refuse(forge([], [tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)], bytes(64)), "tensor a: is there twice")


@pytest.mark.parametrize("n_dims", [0, 5, 2**31, 2**32 - 1])
def test_dimension_count(refuse: Refuse, n_dims: int) -> None:
    refuse(forge([], [tensor("a", [8], 0, 0, n_dims=n_dims)], bytes(32)), f"tensor a dimensions: {n_dims}, expected 1 to 4")


@pytest.mark.parametrize(
    ("ne", "kind", "text"),
    [
        ([0], 0, "tensor a ne[0]: is 0, expected 1 to"),
        ([8, 0], 0, "tensor a ne[1]: is 0"),
        ([-1], 0, "tensor a ne[0]: is 18446744073709551615"),
        ([2**63], 0, "tensor a ne[0]: is 9223372036854775808"),
        ([2**32, 2**32], 0, f"needs {2**66} bytes"),
        ([2**62, 4], 0, f"needs {2**66} bytes"),  # 0 in 64 bits
        ([2**62 + 8, 4], 0, f"needs {2**66 + 128} bytes"),  # 128 in 64 bits
        ([2**33, 2**33, 2**33, 2**33], 0, f"needs {2**134} bytes"),
        ([2**61 + 8], 0, f"needs {2**63 + 32} bytes"),
        ([256 * 2**50], 35, f"needs {66 * 2**50} bytes"),
        ([2**63 - 4], 36, f"needs {2**61 + 31} bytes"),
        ([64], 0, "needs 256 bytes"),  # plausible, but longer than this file
        ([33], 8, "row length 33 is not a multiple of the 32 weights in a Q8_0 block"),
        ([128, 2], 35, "row length 128 is not a multiple of the 256 weights in a TQ2_0 block"),
        ([6, 2], 36, "row length 6 is not a multiple of the 4 weights in a I2_S block"),
        ([32], 42, "row length 32 is not a multiple of the 64 weights in a Q2_0 block"),
        ([8], 43, "tensor a: unknown tensor type 43"),
        ([8], 999, "unknown tensor type 999"),
        ([8], 2**32 - 1, "unknown tensor type 4294967295"),
    ],
)
def test_shapes_and_types(refuse: Refuse, ne: list[int], kind: int, text: str) -> None:
    refuse(forge([], [tensor("a", ne, kind, 0)], bytes(96)), text)


@pytest.mark.parametrize(("kind", "name"), [(9, "Q8_1"), (24, "I8"), (38, "TL1"), (31, "Q4_0_4_4")])
def test_known_types_that_are_not_read(refuse: Refuse, kind: int, name: str) -> None:
    caught = refuse(
        forge([], [tensor("a", [32], kind, 0)], bytes(96)), f"tensor a: type {name} ({kind}) is not supported", UnsupportedError
    )
    assert "supported: F32, F16, " in str(caught)
    assert caught.exit_code == 4


@pytest.mark.parametrize(
    ("offsets", "size", "text"),
    [
        ([0, 33], 96, "tensor b offset: is 33, not a multiple of the alignment 32"),
        ([0, 0], 96, "tensor b offset: is 0, expected 32: it overlaps"),
        ([0, 64], 128, "tensor b offset: is 64, expected 32: it leaves a hole"),
        ([32, 64], 128, "tensor a offset: is 32, expected 0: it leaves a hole"),
        ([32, 0], 128, "tensor a offset: is 32, expected 0"),
        ([0, 2**40], 96, "tensor b offset: is 1099511627776, expected 32"),
        ([0, 2**64 - 32], 96, "tensor b offset: is 18446744073709551584, expected 32"),
        ([0, 32], 63, "tensor b: ends at byte 160, the file at 159"),
        ([0, 32], 0, "tensor a: ends at byte 128, the file at 96"),
    ],
)
def test_offsets(refuse: Refuse, offsets: list[int], size: int, text: str) -> None:
    refuse(forge([], [tensor(name, [8], 0, at) for name, at in zip("ab", offsets, strict=True)], bytes(size)), text)


def test_offsets_are_checked_against_the_padded_size(refuse: Refuse) -> None:
    refuse(forge([], [tensor("a", [9], 0, 0), tensor("b", [8], 0, 32)], bytes(96)), "tensor b offset: is 32, expected 64: it overlaps")


@pytest.mark.parametrize(("extra", "trailing"), [(0, 0), (16, 0), (28, 0), (29, 1), (1000, 972)])
def test_bytes_after_the_last_tensor(tmp_path: Path, extra: int, trailing: int) -> None:
    """The last tensor is 36 bytes, so 28 of padding are its own."""
    path = tmp_path / "polyglot.gguf"
    path.write_bytes(forge([], [tensor("a", [9], 0, 0)], bytes(36 + extra)))
    with open_gguf(path) as file:
        assert file.trailing == trailing


TL2_SIZE = (512 - 256) * 6 // 3 * 5 // 8 + 256 * 6 // 2 * 4 // 8 + 32  # of six rows of 512: 736, where MXFP4 has 1,632


def test_tl2_is_known_by_its_size_and_refused_by_its_name(refuse: Refuse) -> None:
    """bitnet.cpp's older files have the number of MXFP4 for it."""
    tensors = [tensor("a", [512, 6], 39, 0), tensor("b", [512, 6], 39, TL2_SIZE), tensor("n", [8], 0, 2 * TL2_SIZE)]
    caught = refuse(forge([], tensors, bytes(2 * TL2_SIZE + 32)), "tensor a: type TL2 (39) is not supported", UnsupportedError)
    assert caught.exit_code == 4
    last = forge([], [tensor("n", [8], 0, 0), tensor("a", [512, 6], 39, 32)], bytes(32 + TL2_SIZE))
    refuse(last, "tensor a: type TL2 (39)", UnsupportedError)


def test_damaged_mxfp4_is_not_taken_for_tl2(refuse: Refuse) -> None:
    refuse(forge([], [tensor("a", [512, 6], 39, 0)], bytes(1600)), "tensor a: ends at byte")
    refuse(
        forge([], [tensor("a", [512, 6], 39, 0), tensor("n", [8], 0, 800)], bytes(2000)),
        "tensor n offset: is 800, expected 1632: it overlaps",
    )
    refuse(forge([], [tensor("a", [500, 6], 39, 0)], bytes(1600)), "row length 500 is not a multiple of the 32 weights in a MXFP4 block")
