"""Text of files: marks, encodings, line ends, and bytes that are no text."""

import codecs
import io
import re

import pytest

from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.text.files import decode_text, decoded_lines

TEXT = "Naïve \U0001f600 ﬁle\nand a second line\n\n"
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
ENCODINGS = ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "cp1252", "gb18030", "shift_jis"]


def lines(data: bytes, encoding: str | None = None) -> list[str]:
    return list(decoded_lines(io.BytesIO(data).readline, "stdin", encoding))


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_tells_the_encoding_and_is_no_text(name: str, end: str) -> None:
    data = MARKED[name] + TEXT.replace("\n", end).encode(name)
    assert decode_text(data, "f") == TEXT
    assert lines(data) == TEXT.split("\n")[:-1]


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_encoding_that_is_named(name: str, end: str) -> None:
    text = TEXT.encode(name, "ignore").decode(name)
    data = text.replace("\n", end).encode(name)
    assert decode_text(data, "f", encoding=name) == text
    assert lines(data, name) == text.split("\n")[:-1]


def test_utf_8_needs_no_mark() -> None:
    assert decode_text(TEXT.encode(), "f") == TEXT
    assert decode_text(b"", "f") == "" and lines(b"") == []
    assert lines(b"a\nb") == ["a", "b"] == lines(b"a\r\nb\n")
    assert decode_text("a\ufeffb\r".encode(), "f") == "a\ufeffb\r"  # a mark in the middle is a character, \r alone no line end
    assert decode_text(b"\xef\xbb\xbfx", "f", encoding="utf-8") == "x"
    assert decode_text(b"a\0b\0\0c", "f") == "a\0b\0\0c"


@pytest.mark.parametrize(
    ("data", "place", "word"),
    [
        (b"And the k\xefng", 9, "is not UTF-8: invalid continuation byte, bytes ef"),
        (b"ok\nok\n\xff\xfe", 6, "invalid start byte"),
        (b"abc\xe2\x82", 3, "unexpected end of data"),
        (b"abc\xed\xa0\x80", 3, "bytes ed"),  # half of a surrogate pair
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0", 4, "is not UTF-16"),
        (codecs.BOM_UTF16_LE + b"a\0b", 4, "is not UTF-16: truncated data"),
        (codecs.BOM_UTF32_LE + b"\0\0\0\x7f", 4, "is not UTF-32"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(data: bytes, place: int, word: str) -> None:
    for read in (lambda: decode_text(data, "name.txt"), lambda: list(decoded_lines(io.BytesIO(data).readline, "name.txt"))):
        with pytest.raises(BadFileError, match=re.escape(word)) as found:
            read()
        assert found.value.offset == place
        assert str(found.value).startswith("name.txt: text: ") and "--encoding" in str(found.value)
    with pytest.raises(BadFileError, match="chat template") as found:
        decode_text(data, "name.txt", "chat template", hint=False)
    assert "--encoding" not in str(found.value)


def test_a_place_behind_many_lines() -> None:
    data = "ä\n".encode() * 5000 + b"\xc3\n"
    with pytest.raises(BadFileError) as found:
        lines(data)
    assert found.value.offset == 15000


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(name: str) -> None:
    for text in ("And the king\n" * 100, "ab"):
        for read in (lambda data: decode_text(data, "f"), lines):
            with pytest.raises(BadFileError, match=f"UTF-16 without a byte order mark, expected UTF-8; --encoding {name} reads it"):
                read(text.encode(name))


@pytest.mark.parametrize("name", ["nonsense", "rot13", "base64", "undefined", "", "utf-8\0"])
def test_no_such_encoding(name: str) -> None:
    for read in (lambda: decode_text(b"a", "f", encoding=name), lambda: lines(b"a", name)):
        with pytest.raises(UsageError, match="no encoding of text"):
            read()


def test_lines_come_one_at_a_time() -> None:
    """As a program that waits for an answer sends them."""
    given = [b"one\n", b"t\xc3", b"\xa4\n", b""]
    read: list[bytes] = []

    def readline() -> bytes:
        read.append(given[len(read)])
        return read[-1]

    found = decoded_lines(readline, "stdin")
    assert next(found) == "one" and len(read) == 1
    assert next(found) == "tä" and len(read) == 3
    assert list(found) == []
