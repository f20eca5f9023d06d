"""SentencePiece BPE, id for id against the library's own processor of the same vocabulary."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.vocabulary import read_vocabulary

K = "tokenizer.ggml."
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(["the", " dog", "  ", "   ", "\n", "1", "é", "😀", "世", "\0", "<image>"])).map("".join)
)
# The fixture is a fresh dictionary that these tests only read.
READ_ONLY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@READ_ONLY
@given(text=TEXTS)
@example(text="   <image>   the dog    <image>")
@example(text="<s></s><unk><0x41>")
def test_ids_equal_the_library_s(text: str, spm: dict[str, Any], spm_library: Any) -> None:
    """Between user-defined tokens, each of which begins the text anew, as in llama.cpp."""
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    expected: list[int] = []
    spaces = spm[K + "tokens"].index("   ")
    for stretch in re.split("(<image>|   )", text):
        if stretch in ("<image>", "   "):
            expected.append(spm[K + "tokens"].index(stretch))
            continue
        expected += spm_library.encode(stretch)
        assume(spaces not in spm_library.encode(stretch))  # to the library, the space before the stretch may be one of the three
    ids = tokenizer.encode(text, bos=False)
    assert ids == expected
    if not {spm[K + "tokens"].index(name) for name in ("<image>", "   ")} & {*ids}:
        assert tokenizer.decode(ids) == text.replace("▁", " ")  # the library reads both as a space


@READ_ONLY
@given(text=TEXTS)
def test_without_the_space_prefix(text: str, spm: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(spm | {K + "add_space_prefix": False}, "m.gguf")
    ids = tokenizer.encode(text, bos=False)
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text.replace("▁", " ")


def test_space_prefix_comes_and_goes_once(spm: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    the = spm[K + "tokens"].index("▁the")
    assert tokenizer.encode("the") == [tokenizer.bos_id, the]
    assert tokenizer.decode([the, the]) == "the the"
    assert tokenizer.decode([tokenizer.bos_id, the], skip_special=False) == "<s>the"
    assert tokenizer.decode([the, the], at_start=False) == " the the"
    assert tokenizer.decode(tokenizer.encode("  the")) == "  the"


def test_every_token_has_its_bytes(spm: dict[str, Any], add_token: Any) -> None:
    odd, empty = add_token(spm, "\udcff\udcfe", 1), add_token(spm, "", 1)
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    by_text = {text: tokenizer.token_bytes(i) for i, text in enumerate(spm[K + "tokens"])}
    assert all(by_text[f"<0x{b:02X}>"] == bytes([b]) for b in range(256))
    assert by_text["▁the"] == b" the"
    assert by_text["<image>"] == b"<image>"
    assert by_text["   "] == b"   "
    assert by_text["<unk>"] == b"<unk>"
    assert (tokenizer.token_bytes(odd), tokenizer.token_bytes(empty)) == (b"\xff\xfe", b"")


def test_unused_and_added_tokens(spm: dict[str, Any], add_token: Any) -> None:
    unused, line = add_token(spm, "▁qqq", 5), add_token(spm, "</line>", 4)
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    assert unused not in tokenizer.encode(" qqq")
    assert tokenizer.encode("the</line>", bos=False) == [spm[K + "tokens"].index("▁the"), line]


def test_undefined_type_is_normal(spm: dict[str, Any]) -> None:
    expected = tokenizer_from_metadata(spm, "m.gguf").encode("the dog")
    spm[K + "token_type"] = [0 if kind == 1 else kind for kind in spm[K + "token_type"]]
    assert tokenizer_from_metadata(spm, "m.gguf").encode("the dog") == expected
    assert 0 not in read_vocabulary(spm, "m.gguf").types


def test_two_unknown_tokens(spm: dict[str, Any], add_token: Any) -> None:
    """The library takes one; the other is treated as a control token."""
    add_token(spm, "<unk2>", 2)
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    assert tokenizer.decode(tokenizer.encode("<unk2>")) == "<unk2>"
    del spm[K + "unknown_token_id"]
    assert tokenizer_from_metadata(spm, "m.gguf").encode("the dog") == tokenizer.encode("the dog")


def test_vocabulary_without_byte_tokens(spm: dict[str, Any]) -> None:
    """What it cannot express is the unknown token."""
    keep = [i for i, kind in enumerate(spm[K + "token_type"]) if kind != 6]
    small = spm | {K + name: [spm[K + name][i] for i in keep] for name in ("tokens", "scores", "token_type")}
    tokenizer = tokenizer_from_metadata(small, "m.gguf")
    ids = tokenizer.encode("the ☃", bos=False)
    assert small[K + "unknown_token_id"] in ids
    assert tokenizer.decode(ids) == "the "


@pytest.mark.parametrize("declared", [True, False, None])
def test_bos_is_the_default(declared: bool | None, spm: dict[str, Any]) -> None:
    spm[K + "add_bos_token"] = declared
    if declared is None:
        del spm[K + "add_bos_token"]
    tokenizer = tokenizer_from_metadata(spm, "m.gguf")
    assert (tokenizer.encode("the")[0] == tokenizer.bos_id) is (declared is not False)
