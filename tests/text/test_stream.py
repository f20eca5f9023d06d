"""Streaming: pieces are whole characters, their concatenation is the decoded text, and nothing in them drives a terminal."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.stream import IncrementalDecoder, terminal_safe
from bitnet_cli.text.tokenizer import Tokenizer

K = "tokenizer.ggml."


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, **options)
    return [*(decoder.push(i) for i in ids), decoder.finish()]


@pytest.fixture(scope="module")
def single_bytes(libraries: dict[str, Library]) -> Tokenizer:
    """A token a byte: token b stands for byte b."""
    from bitnet_cli.text.byte_bpe import BYTE_OF

    tokens = sorted(BYTE_OF, key=BYTE_OF.__getitem__)
    return tokenizer_from_metadata({K + "model": "gpt2", K + "pre": "gpt-2", K + "tokens": tokens, K + "merges": []}, "m.gguf")


def test_emoji_over_four_tokens(single_bytes: Tokenizer) -> None:
    ids = single_bytes.encode("a😀é")
    assert ids == list("a😀é".encode())
    assert stream(single_bytes, ids) == ["a", "", "", "", "😀", "", "é", ""]


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (b"\xf0\x9f\x98", ["", "", "", "\ufffd"]),  # cut off: known at the end only
        (b"\xf0\x9fx", ["", "", "\ufffdx", ""]),  # cannot become valid any more
        (b"\xffx", ["\ufffd", "x", ""]),
        (b"\xc2\xc3\xa9", ["", "\ufffd", "é", ""]),
        (b"\xed\xa0\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),  # a surrogate: Python says so at its last byte
        (b"\xc0\xaf", ["\ufffd", "\ufffd", ""]),  # overlong /
        (b"", [""]),
    ],
)
def test_invalid_bytes(data: bytes, pieces: list[str], single_bytes: Tokenizer) -> None:
    assert stream(single_bytes, list(data)) == pieces


@given(data=st.one_of(st.binary(), st.lists(st.one_of(st.binary(max_size=3), st.text(max_size=3).map(str.encode))).map(b"".join)))
def test_any_bytes(data: bytes, single_bytes: Tokenizer) -> None:
    text = data.decode("utf-8", "replace")
    assert "".join(stream(single_bytes, list(data))) == text
    assert single_bytes.decode(data) == text


@pytest.fixture(params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    values: dict[str, Any] = request.getfixturevalue(request.param)
    return tokenizer_from_metadata(values, "m.gguf")


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("at_start", [True, False])
def test_any_ids(skip_special: bool, at_start: bool, tokenizer: Tokenizer) -> None:
    @given(ids=st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def check(ids: list[int]) -> None:
        options = {"skip_special": skip_special, "at_start": at_start}
        text = tokenizer.decode(ids, **options)
        assert "".join(stream(tokenizer, ids, **options)) == text
        shown = [i for i in ids if not (skip_special and i in tokenizer.special_ids)]
        whole = b"".join(map(tokenizer.token_bytes, shown)).decode("utf-8", "replace")
        assert text == whole or (at_start and text in (whole[1:], whole.replace(" ", "", 1)))

    check()


def test_leading_space_of_sentencepiece(spm: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    the, bos = spm[K + "tokens"].index("▁the"), spm[K + "bos_token_id"]
    assert stream(tokenizer, [bos, the, the]) == ["", "the", " the", ""]
    assert stream(tokenizer, [the, the], at_start=False) == [" the", " the", ""]


EVIL = "a\x1b]0;title\x07b\x1b[31mred\x9b2Jc\x00\x08\x7f\r\x1bPq\x1b\\\n\tend\u0085é\xa0[red]😀"


def test_terminal_safe() -> None:
    assert terminal_safe(EVIL) == "a]0;titleb[31mred2JcPq\\\n\tendé\xa0[red]😀"


@given(text=st.text(st.characters(max_codepoint=0x2FF)), cut=st.integers(0, 40))
def test_terminal_safe_on_pieces(text: str, cut: int) -> None:
    for whole in (text, EVIL):
        safe = terminal_safe(whole[:cut]) + terminal_safe(whole[cut:])
        assert safe == terminal_safe(whole)
        assert [c for c in safe if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160] == []


def test_terminal_safe_on_a_stream(single_bytes: Tokenizer) -> None:
    """C1 characters are two bytes in UTF-8, and come as two tokens."""
    pieces = stream(single_bytes, list("x\x9b2J\x1b[0m".encode()))
    assert "".join(map(terminal_safe, pieces)) == "x2J[0m"
