"""Byte-level BPE, id for id against the library with the models' own settings, and what is handled outside the library."""

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer
from bitnet_cli.text.tokenizer import Tokenizer

K = "tokenizer.ggml."
WORDS = st.sampled_from(
    ["the", " dog", "don't", " THEY'LL", "  ", "\n", "\r\n", "1234", " 5", "½", "é", "e\u0301", "😀", "!?", "世界", "\0", "\t"]
)
TEXTS = st.one_of(st.text(), st.lists(WORDS).map("".join))


def metadata(library: Library, pre: str, **more: Any) -> dict[str, Any]:
    vocab: dict[str, int] = library.get_vocab(with_added_tokens=False)
    merges = json.loads(library.to_str())["model"]["merges"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    values: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": [" ".join(m) for m in merges], **more}
    return {K + name: value for name, value in values.items()}


@pytest.fixture(scope="module")
def pairs(libraries: dict[str, Library]) -> dict[str, tuple[Tokenizer, Library]]:
    """Ours and the library's, for each way of splitting words."""
    return {pre: (tokenizer_from_metadata(metadata(library, pre), "m.gguf"), library) for pre, library in libraries.items()}


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2", "smollm"])
@given(text=TEXTS)
@example(text="THEY'LL we'll 1234567 ½²\r\n  \n x\u3000 \u00a0y")
@example(text="e\u0301")
def test_ids_equal_the_library_s(pre: str, text: str, pairs: dict[str, tuple[Tokenizer, Library]]) -> None:
    ours, library = pairs[pre]
    ids = ours.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2", "smollm"])
def test_text_of_long_tokens(pre: str, pairs: dict[str, tuple[Tokenizer, Library]], training_text: str) -> None:
    """The text that the vocabulary was made for: a word cut in the wrong place shows in its ids."""
    ours, library = pairs[pre]
    assert ours.encode(training_text) == library.encode(training_text, add_special_tokens=False).ids


def test_patterns_differ(libraries: dict[str, Library]) -> None:
    """The comparison above means something: with one vocabulary, each way of splitting gives other ids."""
    text = "THEY'LL 12345678 e\u0301\r\n  end"
    found = {pre: tokenizer_from_metadata(metadata(libraries["gpt-2"], pre), "m.gguf").encode(text, bos=False) for pre in libraries}
    assert len(set(map(tuple, found.values()))) == len(found) == 4


def test_pre_names() -> None:
    llama3 = PRE_TOKENIZERS["llama-bpe"]
    assert llama3.ignore_merges
    assert all(PRE_TOKENIZERS[name] is llama3 for name in ("llama3", "llama-v3", "falcon3", "falcon_e"))
    assert pre_tokenizer({}, "m.gguf", 128_256) == (llama3, None)
    assert pre_tokenizer({K + "pre": "default"}, "m.gguf", 100) == (PRE_TOKENIZERS["default"], None)
    entry, note = pre_tokenizer({}, "m.gguf", 128_255)
    assert entry is PRE_TOKENIZERS["default"]
    assert note is not None and "tokenizer.ggml.pre is missing" in note
    with pytest.raises(
        UnsupportedError, match=r"m\.gguf: tokenizer\.ggml\.pre: 'tekken2' is not supported \(supported: llama-bpe, .*qwen2"
    ):
        pre_tokenizer({K + "pre": "tekken2"}, "m.gguf", 100)
    with pytest.raises(UnsupportedError, match="'gemma4' is not supported: it does not work on bytes"):
        pre_tokenizer({K + "pre": "gemma4"}, "m.gguf", 100)


def test_a_file_without_pre_is_noted(libraries: dict[str, Library]) -> None:
    values = metadata(libraries["gpt-2"], "gpt-2")
    assert tokenizer_from_metadata(values, "m.gguf").notes == []
    del values[K + "pre"]
    assert "pre is missing" in tokenizer_from_metadata(values, "m.gguf").notes[0]


def test_tokens_past_the_embedding(bpe: dict[str, Any], add_token: Any) -> None:
    """Unused and added ones are left out and noted; an ordinary one tells of a damaged file."""
    rows = len(bpe[K + "tokens"])
    expected = tokenizer_from_metadata(bpe, "m.gguf", rows)
    assert expected.notes == []
    for kind in (3, 4, 5):
        add_token(bpe, f"<more {kind}>", kind)
    bpe["bitnet.tokenizer.added.rstrip"] = [rows + 1]
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf", rows)
    assert tokenizer.notes == ["3 tokens of the tokenizer, from '<more 3>' on, have no row in the embedding: left out"]
    text = "the <more 3><more 4><more 5>"
    assert tokenizer.vocab_size == rows
    assert tokenizer.encode(text, special=True) == expected.encode(text, special=True)
    add_token(bpe, "ordinary", 1)
    with pytest.raises(BadFileError, match=rf"has {rows + 4} tokens, but the model has {rows}, and those past it are not unused"):
        tokenizer_from_metadata(bpe, "m.gguf", rows)
    bpe[K + "token_type"][-1] = 5
    with pytest.raises(BadFileError, match="eos_token_id"):
        tokenizer_from_metadata(bpe | {K + "eos_token_id": rows}, "m.gguf", rows)


def test_rows_past_the_tokens(bpe: dict[str, Any]) -> None:
    """They are tokens that nothing gives and that are never chosen."""
    count = len(bpe[K + "tokens"])
    bpe[K + "tokens"][5], taken = f"[PAD{count}]", bpe[K + "tokens"][5]
    bpe[K + "merges"] = [merge for merge in bpe[K + "merges"] if taken not in merge]
    for values in (bpe, {key: value for key, value in bpe.items() if key != K + "token_type"}):
        tokenizer = tokenizer_from_metadata(values, "m.gguf", count + 3)
        assert tokenizer.notes[-1] == f"3 rows of the embedding, from {count} on, have no token: they are never chosen"
        silent = tokenizer_from_metadata(values, "m.gguf").silent_ids | {count, count + 1, count + 2}
        assert (tokenizer.vocab_size, tokenizer.silent_ids) == (count + 3, silent)
        assert not {count, count + 1, count + 2} & {*tokenizer.encode(f"the [PAD{count + 1}]", special=True)}
        assert tokenizer.token_bytes(count) == f"[[PAD{count}]]".encode()
    with pytest.raises(BadFileError, match=rf"eos_token_id: is {count}, expected"):
        tokenizer_from_metadata(bpe | {K + "eos_token_id": count}, "m.gguf", count + 3)


def test_tokens_without_a_name(bpe: dict[str, Any], spm: dict[str, Any], add_token: Any) -> None:
    """Holes in the numbering: any number of tokens may have the empty text, of any type."""
    for values in (bpe, spm):
        first, text = len(values[K + "tokens"]), "the dog it's 1984"
        expected = tokenizer_from_metadata(values, "m.gguf").encode(text, special=True)
        for kind in (5, 5, 3, 1):
            add_token(values, "", kind)
        tokenizer = tokenizer_from_metadata(values, "m.gguf")
        assert [tokenizer.token_bytes(i) for i in range(first, first + 4)] == [b""] * 4
        assert tokenizer.encode(text, special=True) == expected


def test_a_padding_token_that_is_not_there(bpe: dict[str, Any]) -> None:
    """Nothing is padded here, and llama.cpp only warns of it."""
    for number in (len(bpe[K + "tokens"]), -1, 2**32 - 1):
        bpe[K + "padding_token_id"] = number
        assert tokenizer_from_metadata(bpe, "m.gguf").notes == []


def test_ignore_merges(libraries: dict[str, Library]) -> None:
    """A word in the vocabulary that no merge makes: Llama 3's kind takes it whole, GPT-2's in pieces."""
    for pre, whole in (("llama-bpe", True), ("gpt-2", False)):
        values = metadata(libraries["gpt-2"], pre)
        values[K + "tokens"].append("Ġzyzzyva")
        tokenizer = tokenizer_from_metadata(values, "m.gguf")
        assert (tokenizer.encode(" zyzzyva") == [len(values[K + "tokens"]) - 1]) is whole
        assert tokenizer.decode([len(values[K + "tokens"]) - 1]) == " zyzzyva"


def test_every_token_has_its_bytes(bpe: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    singles = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert {bytes([b]) for b in range(256)} <= set(singles)
    last = [b"<|begin_of_text|>", b"<|end_of_text|>", b"<|eot_id|>", b"<image>", b"[PAD0]", b"\xff\xfe"]
    assert singles[-6:] == last
    assert tokenizer.token_text(tokenizer.vocab_size - 1) == "\\xff\\xfe"
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(IndexError, match=f"token id {wrong} is not in the vocabulary"):
            tokenizer.token_bytes(wrong)


def test_normal_token_outside_the_byte_alphabet(bpe: dict[str, Any], add_token: Any) -> None:
    """It stands for its own text, and no text reaches it."""
    new = add_token(bpe, "日本 x", 1)
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    assert tokenizer.token_bytes(new) == "日本 x".encode()
    assert new not in tokenizer.encode("日本 x")


def test_user_defined_tokens_match_in_plain_text(bpe: dict[str, Any], add_token: Any) -> None:
    image, longer = bpe[K + "tokens"].index("<image>"), add_token(bpe, "<image>>", 4)
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    plain = tokenizer.encode("a b", bos=False)
    assert tokenizer.encode("a b<image>a b<image>>", bos=False) == [*plain, image, *plain, longer]
    assert tokenizer.decode([image, *plain]) == "<image>a b"


def test_unused_and_invalid_tokens_are_unreachable(bpe: dict[str, Any], add_token: Any) -> None:
    unused = add_token(bpe, "Unused", 5)
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    pad = bpe[K + "tokens"].index("[PAD0]")
    assert pad not in tokenizer.encode("[PAD0]", special=True)
    assert tokenizer.decode(tokenizer.encode("[PAD0]")) == "[PAD0]"
    assert unused not in tokenizer.encode("Unused", special=True)
    assert tokenizer.decode([unused]) == "Unused"


def test_merges_that_make_a_control_token_are_left_out(bpe: dict[str, Any], libraries: dict[str, Library]) -> None:
    """Else plain text could make it: here the token ` the` is declared a control token."""
    the = bpe[K + "tokens"].index("Ġthe")
    assert the in tokenizer_from_metadata(bpe, "m.gguf").encode("and the dog")
    bpe[K + "token_type"][the] = 3
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    ids = tokenizer.encode("and the dog", bos=False)
    assert the not in ids
    assert tokenizer.decode(ids) == "and the dog"
    assert tokenizer.encode("Ġthe", special=True, bos=False) == [the]
