"""Each refusal of the GGUF parser names the byte at which the file is wrong, and limits hold to one."""

from pathlib import Path

import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file import parse as module
from bitnet_cli.gguf_file.parse import parse

from .forge import ARRAY, BOOL, STRING, UINT8, UINT32, array, entry, forge, string, tensor, u32

HEAD = 24  # magic, version, two counts
FLAG = entry("flag", BOOL, b"\1")  # 17 bytes
KEY = 8 + 3  # of "key", and its length
ROW = HEAD  # of the first tensor, without metadata
NAME = ROW + 8 + 1  # behind its name of one letter
TYPE = NAME + 4 + 8  # with one dimension


def place_of(data: bytes) -> tuple[str, int]:
    """What is said to be wrong, and where."""
    with pytest.raises(BadFileError) as caught:
        parse(data, Path("f"))  # type: ignore[arg-type]  # bytes do what is asked of a map
    assert caught.value.offset is not None
    return f"{caught.value.field}: {caught.value.reason}", caught.value.offset


CASES = {
    "magic": (b"XXXX" + bytes(20), "magic: not a GGUF file", 0),
    "big-endian": (forge(version=3 << 16), "version: 196608 is a byte-swapped number", 4),
    "version": (forge(version=4), "version: is 4", 4),
    "metadata count": (forge([FLAG], n_entries=9), "metadata count: is 9, but the file has only 17 bytes left", HEAD),
    "length of a key": (forge([FLAG, entry("key", UINT8, b"\1", length=1 << 16)]), "metadata entry 1 key length: is 65536", HEAD + 17),
    "key too long": (forge([FLAG, entry("key", UINT8, b"\1", length=99)]), "metadata entry 1 key: needs 99 bytes", HEAD + 17 + 8),
    "key that is no text": (forge([FLAG, entry(b"\xff\xfe", UINT8, b"\1")]), "metadata entry 1 key: is not valid UTF-8", HEAD + 17),
    "empty key": (forge([FLAG, entry("", UINT8, b"\1" * 9)]), "metadata entry 1 key: is empty", HEAD + 17),
    "key with controls": (forge([FLAG, entry("\x1b", UINT8, b"\1")]), "metadata entry 1 key: '", HEAD + 17),
    "key twice": (forge([FLAG, FLAG]), "flag: is there twice", HEAD + 17),
    "unknown type": (forge([entry("key", 13, b"\1")]), "key: unknown value type 13", HEAD + KEY),
    "unknown type of items": (forge([entry("key", ARRAY, array(13, [b"\1"]))]), "key item: unknown value type 13", HEAD + KEY + 4),
    "length of a string": (
        forge([entry("key", STRING, string("a", module.MAX_STRING + 1))]),
        f"key length: is {module.MAX_STRING + 1}",
        HEAD + KEY + 4,
    ),
    "string past the end": (forge([entry("key", STRING, string("a", 2))]), "key: needs 2 bytes, the file has 1 left", HEAD + KEY + 4 + 8),
    "boolean": (forge([entry("key", BOOL, b"\2")]), "key: boolean is 2", HEAD + KEY + 4),
    "array of arrays": (forge([entry("key", ARRAY, array(ARRAY, [bytes(12)]))]), "key: is an array of arrays", HEAD + KEY + 4 + 12),
    "array past the end": (forge([entry("key", ARRAY, array(UINT32, [], 2))]), "key: needs 8 bytes", HEAD + KEY + 4 + 12),
    "boolean in an array": (forge([entry("key", ARRAY, array(BOOL, [b"\1", b"\2"]))]), "key: has a boolean", HEAD + KEY + 4 + 12),
    "count of strings": (forge([entry("key", ARRAY, array(STRING, [], 2))]), "key: has 2 strings", HEAD + KEY + 4 + 12),
    "count of strings, by a byte": (
        forge([entry("key", ARRAY, array(STRING, [bytes(15)], 2))]),
        "key: has 2 strings, but the file has only 15 bytes left",
        HEAD + KEY + 4 + 12,
    ),
    "string in an array": (
        forge([entry("key", ARRAY, array(STRING, [string("ab"), string("c", 9)]))]),
        "key[1]: needs 9 bytes, the file has 1 left",
        HEAD + KEY + 4 + 12 + 10 + 8,
    ),
    "length of a string in an array": (
        forge([entry("key", ARRAY, array(STRING, [string("ab"), string("c", 1 << 40)]))]),
        f"key[1] length: is {1 << 40}",
        HEAD + KEY + 4 + 12 + 10,
    ),
    "tensor count": (forge([FLAG], n_tensors=2), "tensor count: is 2, but the file has only 17 bytes left", HEAD),
    "tensor twice": (forge([], [tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)], bytes(64)), "tensor a: is there twice", ROW + 33),
    "dimensions": (forge([], [tensor("a", [8], 0, 0, n_dims=5)], bytes(64)), "tensor a dimensions: 5", NAME),
    "first dimension": (forge([], [tensor("a", [0, 8], 0, 0)], bytes(64)), "tensor a ne[0]: is 0", NAME + 4),
    "third dimension": (forge([], [tensor("a", [1, 8, 0, 1], 0, 0)], bytes(64)), "tensor a ne[2]: is 0", NAME + 4 + 16),
    "type of a tensor": (forge([], [tensor("a", [8], 999, 0)], bytes(64)), "tensor a: unknown tensor type 999", TYPE),
    "blocks": (forge([], [tensor("a", [33], 8, 0)], bytes(64)), "tensor a shape: row length 33 is not", NAME + 4),
    "size": (forge([], [tensor("a", [1 << 40], 0, 0)], bytes(64)), "tensor a shape: (1099511627776,) of F32 needs", NAME + 4),
    "alignment": (forge([], [tensor("a", [8], 0, 0), tensor("b", [8], 0, 33)], bytes(96)), "tensor b offset: is 33, not", ROW + 33),
    "hole": (forge([], [tensor("a", [8], 0, 0), tensor("b", [8], 0, 64)], bytes(96)), "tensor b offset: is 64, expected 32", ROW + 33),
    "end": (forge([], [tensor("a", [8], 0, 0), tensor("b", [8], 0, 32)], bytes(63)), "tensor b: ends at byte", ROW + 33),
}


@pytest.mark.parametrize("name", CASES)
def test_the_byte_that_is_named(name: str) -> None:
    data, words, place = CASES[name]
    said, found = place_of(data)
    assert said.startswith(words) and found == place, (said, found)


def test_alignments() -> None:
    for value in (8, 16, 65536):
        data = forge([entry("general.alignment", UINT32, u32(value))], [tensor("a", [4], 0, 0)], bytes(16), alignment=value)
        assert parse(data, Path("f")).alignment == value  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "fits"), [(256, True), (255, False)])
def test_a_tensor_as_long_as_the_file(size: int, fits: bool) -> None:
    """Of its size alone, before its place is looked at: 64 numbers take 256 bytes."""
    row = tensor("a", [64], 0, 0)
    said, place = place_of(forge([], [row])[:HEAD] + row + bytes(size - HEAD - len(row)))
    assert (said, place) == (
        (f"tensor a: ends at byte {64 + 256}, the file at {size}", ROW)
        if fits
        else (f"tensor a shape: (64,) of F32 needs 256 bytes, the file has {size}", NAME + 4)
    )


def test_tensors_of_unknown_size(tmp_path: Path) -> None:
    """They end where the next begins; one byte is enough, none is not."""
    for size, fits in ((1, True), (0, False)):
        data = forge([], [tensor("a", [8], 0, 0), tensor("b", [32], 9, 32)], bytes(32 + size))
        if fits:
            whole = data
            unread = parse(data, tmp_path, unread=True).unread["b"]  # type: ignore[arg-type]
            assert (unread.offset, unread.nbytes) == (128, 1)
        else:
            with pytest.raises(BadFileError) as caught:
                parse(data, tmp_path, unread=True)  # type: ignore[arg-type]
            assert str(caught.value).endswith(f"tensor b offset: is 32, which leaves no bytes for it (byte {ROW + 33})")
    with pytest.raises(UnsupportedError, match=r"Q8_1 \(9\) is not supported"):
        parse(whole, tmp_path)  # type: ignore[arg-type]
    between = forge([], [tensor("a", [32], 9, 0), tensor("b", [8], 0, 64)], bytes(96))
    assert parse(between, tmp_path, unread=True).unread["a"].nbytes == 64  # type: ignore[arg-type]


def test_smallest_dimensions_and_largest() -> None:
    assert parse(forge([], [tensor("a", [1], 0, 0)], bytes(4)), Path("f")).tensors["a"].shape == (1,)  # type: ignore[arg-type]
    said, _ = place_of(forge([], [tensor("a", [2**63 - 1], 0, 0)], bytes(4)))
    assert "needs" in said
    said, _ = place_of(forge([], [tensor("a", [2**63], 0, 0)], bytes(4)))
    assert "expected 1 to 2^63 - 1" in said


def test_the_caps_are_what_they_are() -> None:
    """Far above what models need, and far below what a machine has."""
    caps = [module.MAX_HEADER, module.MAX_STRING, module.MAX_KEY, module.MAX_STRINGS, module.MAX_ENTRIES, module.MAX_NAME, module.MAX_DIMS]
    assert caps == [64 << 20, 16 << 20, 65535, 1 << 21, 1 << 16, 63, 4]
    assert (len(entry("k", UINT8, b"\0")), len(tensor("t", [1], 0, 0))) == (module.MIN_ENTRY, module.MIN_TENSOR)
