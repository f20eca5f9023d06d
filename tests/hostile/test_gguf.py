"""Damaged and forged GGUF files, the header and the metadata; test_gguf_tensors.py has the tensor table. Each test names the forged field.

The fixtures `refuse` and `refused` assert for every file that it is refused in one line, in time and without taking memory.
"""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file import parse
from bitnet_cli.gguf_file.reader import open_gguf

from .forge import (
    ARRAY,
    BOOL,
    FLOAT32,
    FORMATS,
    INT32,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    array,
    entry,
    forge,
    scalar,
    small_model,
    string,
    u32,
    u64,
)

VALID = small_model()
MAX_U64 = 2**64 - 1
FLAG = entry("flag", BOOL, b"\1")

Refuse = Callable[..., BitnetError]  # conftest.py
Refused = Callable[[Path, type[BitnetError]], BitnetError]


def test_the_small_file_is_valid(tmp_path: Path) -> None:
    """Otherwise none of the tests below would say anything."""
    path = tmp_path / "valid.gguf"
    path.write_bytes(VALID)
    with open_gguf(path) as file:
        assert (len(file.metadata), len(file.tensors), file.trailing) == (25, 3, 0)


def parse_bytes(data: bytes) -> parse.Header:
    """Without a file on disk: ten times faster, for tests that try thousands of them."""
    with mmap.mmap(-1, len(data)) as memory:
        memory.write(data)
        return parse.parse(memory, Path("memory.gguf"))


@pytest.mark.parametrize("record", [None, 0])
def test_cut_at_every_byte(monkeypatch: pytest.MonkeyPatch, record: int | None) -> None:
    """With record 0 the early test of the two counts always passes, so that each cut is met where it is."""
    if record is not None:
        monkeypatch.setattr(parse, "MIN_ENTRY", record)
        monkeypatch.setattr(parse, "MIN_TENSOR", record)
    assert len(parse_bytes(VALID).tensors) == 3
    for length in range(1, len(VALID)):
        with pytest.raises(BadFileError):
            parse_bytes(VALID[:length])


@settings(max_examples=400)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.sampled_from(["replace", "insert", "delete"]), st.binary(max_size=9))),
)
def test_random_damage_gives_only_our_errors(edits: list[tuple[int, str, bytes]]) -> None:
    data = bytearray(VALID)
    for place, action, piece in edits:
        end = place if action == "insert" else place + len(piece)
        data[place:end] = b"" if action == "delete" else piece
    try:
        header = parse_bytes(bytes(data) or b"G")
    except (BadFileError, UnsupportedError):
        return
    for info in header.tensors.values():
        assert 0 < info.offset < info.offset + info.nbytes <= len(data)


def test_every_byte_set_to_every_extreme() -> None:
    refused = 0
    for i in range(len(VALID) - 128):  # the rest is tensor data, where every byte is allowed
        for byte in {0, 0x7F, 0x80, 0xFF} - {VALID[i]}:
            try:
                parse_bytes(VALID[:i] + bytes([byte]) + VALID[i + 1 :])
            except (BadFileError, UnsupportedError):
                refused += 1
    assert refused > 1000


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"GGUF", "version: needs 4 bytes, the file has 0 left (byte 4)", id="four bytes"),
        pytest.param(b"GG", "not a GGUF file", id="two bytes"),
        pytest.param(b"XXXX" + VALID[4:], "magic: not a GGUF file: it begins with b'XXXX' (byte 0)", id="magic"),
        pytest.param(b"\x1b[2J" + VALID[4:], "not a GGUF file", id="magic that drives a terminal"),
        pytest.param(b"FUGG" + VALID[4:], "big-endian", id="magic big-endian"),
        pytest.param(b"PK\x03\x04" + VALID[4:], "zip or PyTorch", id="magic zip"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer", id="magic LFS"),
        pytest.param(forge(version=0), "version: is 0, expected 2 or 3 (byte 4)", id="version 0"),
        pytest.param(forge(version=1), "version: is 1", id="version 1"),
        pytest.param(forge(version=4), "version: is 4", id="version 4"),
        pytest.param(forge(version=2**32 - 1), "version: is 4294967295", id="version -1"),
        pytest.param(forge(version=3 << 24), "big-endian", id="version byte-swapped"),
    ],
)
def test_first_bytes(refuse: Refuse, data: bytes, text: str) -> None:
    refuse(data, text)


@pytest.mark.parametrize("version", [2, 3])
def test_accepted_versions(tmp_path: Path, version: int) -> None:
    path = tmp_path / "version.gguf"
    path.write_bytes(forge([FLAG], version=version))
    with open_gguf(path) as file:
        assert (file.version, file.metadata) == (version, {"flag": True})


@pytest.mark.parametrize("count", [2**63, MAX_U64, 2**32, 3])
def test_counts_that_do_not_fit(refuse: Refuse, count: int) -> None:
    refuse(forge([FLAG], n_tensors=count), f"tensor count: is {count}, but the file has only 17 bytes left")
    refuse(forge([FLAG], n_entries=count), f"metadata count: is {count}, but")


def test_counts_above_the_cap_in_a_file_that_could_hold_them(refuse: Refuse) -> None:
    count = parse.MAX_ENTRIES + 1
    refuse(forge([FLAG], n_tensors=count), f"tensor count: is {count}, at most", size=1 << 30)
    refuse(forge([FLAG], n_entries=count), f"metadata count: is {count}, at most", size=1 << 30)


@pytest.mark.parametrize("length", [MAX_U64, 2**63, 2**31, 100])
def test_lengths_past_the_end(refuse: Refuse, length: int) -> None:
    refuse(forge([entry("key", BOOL, b"\1", length=length), FLAG]), "metadata entry 0 key")
    refuse(forge([entry("key", STRING, string("value", length)), FLAG]), "key")
    refuse(forge([entry("key", ARRAY, array(STRING, [string("a"), string("b", length)])), FLAG]), "key[1]")
    refuse(forge([], [string("name", length) + bytes(40)]), "tensor 0 name length: is" if length > 63 else "tensor 0 name")


def test_lengths_above_the_cap_in_a_file_that_could_hold_them(refuse: Refuse) -> None:
    key, text = parse.MAX_KEY + 1, parse.MAX_STRING + 1
    refuse(forge([entry("key", BOOL, b"\1", length=key)]), f"key length: is {key}, at most", size=1 << 30)
    refuse(forge([entry("key", STRING, string("value", text))]), f"key length: is {text}, at most", size=1 << 30)
    refuse(forge([entry("key", ARRAY, array(STRING, [string("", text)]))]), f"key[0] length: is {text}, at most", size=1 << 30)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b"a\0b", "control characters"),
        (b"\x1b]0;title\x07", "control characters"),
    ],
)
def test_keys(refuse: Refuse, key: bytes, text: str) -> None:
    refuse(forge([entry(key, BOOL, b"\1"), FLAG]), text)


def test_key_twice(refuse: Refuse) -> None:
    refuse(forge([FLAG, FLAG]), "flag: is there twice (byte 41)")


@pytest.mark.parametrize("kind", [13, 14, 255, 2**32 - 1])
def test_unknown_value_type(refuse: Refuse, kind: int) -> None:
    refuse(forge([entry("key", kind, bytes(64))]), f"key: unknown value type {kind}")
    refuse(forge([entry("key", ARRAY, array(kind, [bytes(64)]))]), f"key item: unknown value type {kind}")


@pytest.mark.parametrize("depth", [1, 10_000])
def test_arrays_of_arrays(refuse: Refuse, depth: int) -> None:
    nested = array(UINT8, [b"\0"])
    for _ in range(depth):
        nested = array(ARRAY, [nested])
    refuse(forge([entry("key", ARRAY, nested)]), "key: is an array of arrays")


@pytest.mark.parametrize("kind", [*FORMATS, STRING])
@pytest.mark.parametrize("count", [2**40, 2**61, MAX_U64])
def test_array_counts(refuse: Refuse, kind: int, count: int) -> None:
    text = f"key: has {count} strings" if kind == STRING else f"key: needs {count * len(scalar(kind, 0))} bytes"
    refuse(forge([entry("key", ARRAY, array(kind, [], count))]), text)
    refuse(forge([entry("key", ARRAY, array(kind, [], count))]), text, size=1 << 36)


def test_string_count_that_does_not_fit(refuse: Refuse) -> None:
    refuse(forge([entry("key", ARRAY, array(STRING, [string("a")], 2))]), "key: has 2 strings, but the file has only 9 bytes left")


def test_string_count_above_the_cap_is_shared_by_all_arrays(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "MAX_STRINGS", 100)
    empty = [string("")] * 51
    refuse(forge([entry("first", ARRAY, array(STRING, empty)), entry("second", ARRAY, array(STRING, empty))]), "second: has 51 strings")


def test_metadata_above_the_cap(refuse: Refuse) -> None:
    count = parse.MAX_HEADER // 8
    refuse(forge([entry("key", ARRAY, array(UINT64, [], count))]), "metadata and tensor table would be longer", size=1 << 28)


@pytest.mark.parametrize("value", [2, 0x80, 0xFF])
def test_booleans(refuse: Refuse, value: int) -> None:
    refuse(forge([entry("key", BOOL, bytes([value]))]), f"key: boolean is {value}, expected 0 or 1")
    refuse(forge([entry("key", ARRAY, array(BOOL, [b"\1", bytes([value])]))]), "key: has a boolean that is neither")


@pytest.mark.parametrize("value", [0, 1, 4, 13, 48, 2**17, 2**31])
def test_alignment(refuse: Refuse, value: int) -> None:
    refuse(forge([entry("general.alignment", UINT32, u32(value))]), f"general.alignment: is {value}, expected a power of two")


def test_alignment_type(refuse: Refuse) -> None:
    refuse(forge([entry("general.alignment", UINT64, u64(32))]), "general.alignment: is UINT64, expected UINT32")
    refuse(forge([entry("general.alignment", STRING, string("32"))]), "general.alignment: is STRING, expected UINT32")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (None, b"", "llama.block_count: is missing, expected an integer from 1 to 1024"),
        (STRING, string("30"), "llama.block_count: is STRING, expected an integer from 1 to 1024"),
        (FLOAT32, scalar(FLOAT32, 30), "llama.block_count: is FLOAT32, expected an integer"),
        (BOOL, b"\1", "llama.block_count: is BOOL, expected an integer"),
        (ARRAY, array(UINT32, [u32(30)]), "llama.block_count: is ARRAY of UINT32, expected an integer"),
        (UINT32, u32(0), "llama.block_count: is 0, expected an integer from 1 to 1024"),
        (UINT64, u64(2**64 - 1), "llama.block_count: is 18446744073709551615, expected"),
        (INT32, scalar(INT32, -1), "llama.block_count: is -1, expected"),
    ],
)
def test_required_number(tmp_path: Path, kind: int | None, value: bytes, text: str) -> None:
    path = tmp_path / "config.gguf"
    path.write_bytes(forge([FLAG] if kind is None else [FLAG, entry("llama.block_count", kind, value)]))
    with open_gguf(path) as file, pytest.raises(BadFileError) as caught:
        file.require_int("llama.block_count", 1, 1024)
    assert str(caught.value).startswith(f"{path}: {text}")


def split(count: Any, number: Any) -> bytes:
    return forge([entry("split.count", *count), entry("split.no", *number)])


def part(number: int) -> tuple[int, bytes]:
    return UINT16, scalar(UINT16, number)


def test_split_model(refuse: Refuse, tmp_path: Path) -> None:
    """tests/gguf_file/test_split.py has those that are sound, and parts that do not belong together."""
    refuse(split(part(3), part(1)), "this is part 2 of 3, but the file is not called NAME-00002-of-00003.gguf")
    refuse(split(part(3), part(3)), "split.no and split.count: expected")
    refuse(split(part(3), (STRING, string("first"))), "split.no and split.count: expected")
    refuse(split((ARRAY, array(UINT8, [b"\3"])), part(0)), "split.no and split.count: expected")
    refuse(split((UINT64, u64(MAX_U64)), part(0)), "at most 1000 are read")
    path = tmp_path / "whole.gguf"
    path.write_bytes(split(part(1), part(0)))
    open_gguf(path).close()


def test_a_missing_part_is_refused_in_time(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "m-00002-of-00900.gguf"
    path.write_bytes(split(part(900), part(1)))
    with pytest.raises(BadFileError, match=r"m-00001-of-00900\.gguf: file: is missing: part 1 of 900"):
        open_gguf(path)


def test_replaced_while_mapped(tmp_path: Path) -> None:
    """A rename over an open file leaves the map on the old one; shortening it in place would end the process, and nothing of ours does."""
    path, new = tmp_path / "model.gguf", tmp_path / "new.gguf"
    path.write_bytes(VALID)
    new.write_bytes(b"short")
    with open_gguf(path) as file:
        new.replace(path)
        assert file.raw("norm").tobytes() == VALID[-32:]


def test_folder(tmp_path: Path, refused: Refused) -> None:
    assert "file: is a folder" in str(refused(tmp_path, BadFileError))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe(tmp_path: Path, refused: Refused) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "file: is a named pipe" in str(refused(tmp_path / "pipe", BadFileError))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/null"])
def test_device(device: str, refused: Refused) -> None:
    if not Path(device).is_char_device():
        pytest.skip(f"this system has no {device}")
    assert "file: is a device" in str(refused(Path(device), BadFileError))


def test_links(tmp_path: Path, refused: Refused) -> None:
    loop, dangling, good = tmp_path / "loop", tmp_path / "dangling", tmp_path / "good"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    (tmp_path / "model.gguf").write_bytes(VALID)
    good.symlink_to("model.gguf")
    assert "symbolic links" in str(refused(loop, BadFileError))
    assert "No such file" in str(refused(dangling, BadFileError))
    open_gguf(good).close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_unreadable(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(VALID)
    path.chmod(0)
    assert "Permission denied" in str(refused(path, BadFileError))


def test_path_with_a_nul() -> None:
    with pytest.raises(BadFileError, match="null"):
        open_gguf("a\0b")
