"""Limits of the GGUF parser to the byte: what just fits is read, one more is refused. And a small model with every bit flipped."""

from pathlib import Path

import pytest

from bitnet_cli.errors import BadFileError, BitnetError
from bitnet_cli.gguf_file import parse as module
from bitnet_cli.gguf_file.parse import Header, parse

from .forge import ARRAY, STRING, UINT8, array, entry, forge, scalar, small_model, string, tensor

ONE = entry("general.architecture", STRING, string("llama"))


def read(data: bytes) -> Header:
    return parse(data, Path("f.gguf"))  # type: ignore[arg-type]  # bytes do what is asked of a map


def refused(data: bytes, words: str) -> None:
    with pytest.raises(BadFileError) as caught:
        read(data)
    assert words in str(caught.value), caught.value


def test_a_value_may_end_with_the_file() -> None:
    """The last byte of all that is read is the last of the file; without it the value is named."""
    data = forge([ONE, entry("last", STRING, string("abc"))])
    assert read(data).metadata["last"].value == "abc"
    refused(data[:-1], "last: needs 3 bytes, the file has 2 left")
    data = forge([ONE, entry("last", UINT8, scalar(UINT8, 7))])
    assert read(data).metadata["last"].value == 7
    refused(data[:-1], "last: needs 1 bytes, the file has 0 left")
    data = forge([ONE, entry("last", ARRAY, array(STRING, [string("a"), string("bc")]))])
    assert read(data).metadata["last"].value == ["a", "bc"]
    refused(data[:-1], "last[1]: needs 2 bytes, the file has 1 left")
    data = forge([ONE, entry("last", ARRAY, array(STRING, [string("a"), string("")]))])
    assert read(data).metadata["last"].value == ["a", ""]
    data = forge([ONE, entry("last", ARRAY, array(UINT8, [b"\1", b"\2"]))])
    assert list(read(data).metadata["last"].value) == [1, 2]  # type: ignore[arg-type]
    refused(data[:-1], "last: needs 2 bytes, the file has 1 left")


def test_a_string_in_an_array_that_ends_one_byte_too_late() -> None:
    data = forge([ONE, entry("last", ARRAY, array(STRING, [string("a"), string("bc", length=3)]))])
    refused(data, "last[1]: needs 3 bytes, the file has 2 left")
    assert read(data + b"d").metadata["last"].value == ["a", "bcd"]


@pytest.mark.parametrize(("cap", "most"), [("MAX_STRING", 5), ("MAX_KEY", 20), ("MAX_NAME", 6)])
def test_lengths_at_their_caps(cap: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture's key has 20 bytes and its name 5."""
    monkeypatch.setattr(module, cap, most)
    texts = {
        "MAX_STRING": lambda n: forge([ONE, entry("k", STRING, string("x" * n)), entry("l", ARRAY, array(STRING, [string("x" * n)]))]),
        "MAX_KEY": lambda n: forge([ONE, entry("x" * n, UINT8, b"\0")]),
        "MAX_NAME": lambda n: forge([ONE], [tensor("x" * n, [4], 0, 0)], bytes(16)),
    }
    for short in (most - 1, most):
        metadata = read(texts[cap](short)).metadata
        assert cap != "MAX_STRING" or (metadata["k"].value, metadata["l"].value) == ("x" * short, ["x" * short])
    refused(texts[cap](most + 1), f"is {most + 1}, at most {most} bytes are allowed")
    if cap == "MAX_STRING":
        refused(forge([ONE, entry("l", ARRAY, array(STRING, [string("x" * 6)]))]), "l[0] length: is 6, at most 5")


def test_counts_at_their_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    more = [entry(f"k{n}", UINT8, b"\0") for n in range(3)]
    tensors = [tensor(f"t{n}", [4], 0, 32 * n) for n in range(4)]
    assert len(read(forge([ONE, *more[:2]], tensors[:3], bytes(80))).tensors) == 3
    refused(forge([ONE, *more]), "metadata count: is 4, at most 3 are allowed")
    refused(forge([ONE], tensors, bytes(112)), "tensor count: is 4, at most 3 are allowed")


def test_strings_of_all_arrays_at_their_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRINGS", 3)
    two, one = (array(STRING, [string("")] * count) for count in (2, 1))
    read(forge([ONE, entry("a", ARRAY, two), entry("b", ARRAY, one)]))
    refused(forge([ONE, entry("a", ARRAY, two), entry("b", ARRAY, two)]), "b: has 2 strings, at most 3 are allowed")


def test_the_header_at_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file is longer than what may be read of it."""
    whole = forge([ONE, entry("last", STRING, string("abc"))], [tensor("t", [4], 0, 0)], bytes(16))
    head = len(whole) - 16
    for cap, fits in ((head, True), (len(forge([ONE, entry("last", STRING, string("abc"))])) + 33, True)):
        monkeypatch.setattr(module, "MAX_HEADER", cap)
        assert bool(read(whole).tensors) is fits
    monkeypatch.setattr(module, "MAX_HEADER", 24 + len(ONE) + 8 + 4 + 4 + 8 + 3 - 1)
    refused(whole, "metadata and tensor table would be longer than")


def test_counts_that_just_fit_the_bytes_that_are_left() -> None:
    """14 bytes are the smallest entry, 33 the smallest tensor."""
    read(forge([entry("k", UINT8, b"\0")]))
    refused(forge([entry("k", UINT8, b"\0")])[:-1], "metadata count: is 1, but the file has only 13 bytes left")
    data = forge([], [tensor("t", [4], 0, 0)], bytes(16))
    assert len(read(data).tensors) == 1
    refused(data[: 24 + 32], "tensor count: is 1, but the file has only 32 bytes left")


@pytest.mark.parametrize(("number", "fits"), [(0, False), (1, True), (4, True), (5, False)])
def test_numbers_of_dimensions(number: int, fits: bool) -> None:
    data = forge([ONE], [tensor("t", [1] * number, 0, 0)], bytes(64))
    if fits:
        assert read(data).tensors["t"].shape == (1,) * number
    else:
        refused(data, f"{number}, expected 1 to 4")


def test_every_bit_flipped() -> None:
    """One line that names a field, or a model: never another error."""
    whole = small_model()
    kept = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        try:
            read(bytes(data))
            kept += 1
        except BitnetError as error:
            assert str(error).startswith("f.gguf: ") and str(error).isprintable()
    assert 0 < kept < 8 * len(whole)


def test_cut_at_every_byte_and_longer() -> None:
    whole = small_model()
    for size in range(len(whole)):
        with pytest.raises(BitnetError):
            read(whole[:size])
    assert (read(whole).trailing, read(whole + b"x").trailing) == (0, 1)
