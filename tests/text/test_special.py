"""Control tokens, begin and end of text, odd and huge input: the same rules for both kinds of tokenizer."""

import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

K = "tokenizer.ggml."


@pytest.fixture(params=["bpe", "spm"])
def values(request: pytest.FixtureRequest, add_token: Any) -> dict[str, Any]:
    """Metadata of either kind, with <|eot_id|> as a control token."""
    metadata: dict[str, Any] = request.getfixturevalue(request.param)
    if "<|eot_id|>" not in metadata[K + "tokens"]:
        add_token(metadata, "<|eot_id|>", 3)
    if request.param == "spm":  # what follows a user-defined token gets a space before it, which these tests would meet as one too many
        metadata[K + "token_type"][metadata[K + "tokens"].index("   ")] = 5
    return metadata


@pytest.fixture
def tokenizer(values: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_metadata(values, "m.gguf")


@pytest.fixture
def eot(values: dict[str, Any]) -> int:
    return int(values[K + "tokens"].index("<|eot_id|>"))


def test_control_tokens_in_plain_text_stay_text(tokenizer: Tokenizer, values: dict[str, Any]) -> None:
    for i in tokenizer.special_ids:
        text = f"a {values[K + 'tokens'][i]} b{values[K + 'tokens'][i]}"
        ids = tokenizer.encode(text, bos=False)
        assert not set(ids) & tokenizer.special_ids
        assert tokenizer.decode(ids) == text


def test_control_tokens_in_templates(tokenizer: Tokenizer, eot: int) -> None:
    ids = tokenizer.encode("a<|eot_id|>b", special=True, bos=False)
    assert ids == [*tokenizer.encode("a", bos=False), eot, *tokenizer.encode("b", bos=False)]
    assert tokenizer.decode([eot]) == ""
    assert tokenizer.decode([eot], skip_special=False) == "<|eot_id|>"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.lists(st.sampled_from(["<", "|", "eot_id", ">", "<|eot_id|>", " ", "x"])).map("".join))
def test_a_message_cannot_forge_a_control_token(message: str, tokenizer: Tokenizer, eot: int) -> None:
    """Not whole, and not together with the template around it."""
    ids = tokenizer.encode_parts([("<|eot", True), (message, False), ("_id|><|eot_id|>", True)], bos=False)
    assert [i for i in ids if i in tokenizer.special_ids] == [eot]
    assert ids[-1] == eot
    assert tokenizer.decode(ids) == f"<|eot{message}_id|>"


def test_the_unknown_token_by_its_name(spm: dict[str, Any]) -> None:
    """A template's, as in llama.cpp and in Hugging Face's library; what a user types stays text."""
    tokenizer, unknown = tokenizer_from_metadata(spm, "m.gguf"), spm[K + "unknown_token_id"]
    assert tokenizer.encode("<unk>", special=True, bos=False) == [unknown]
    a, b = (tokenizer.encode(text, bos=False) for text in ("the", " dog"))
    assert tokenizer.encode("the<unk> dog", special=True, bos=False) == [*a, unknown, *b]
    assert unknown not in tokenizer.encode("the<unk> dog")
    assert tokenizer.decode(tokenizer.encode("the<unk> dog")) == "the<unk> dog"


def test_parts_are_one_text(tokenizer: Tokenizer) -> None:
    """Words that cross parts are encoded as in the whole text."""
    assert tokenizer.encode_parts([("and ", True), ("t", False), ("he dog", False)]) == tokenizer.encode("and the dog")
    assert tokenizer.encode_parts([]) == tokenizer.encode("")


def test_bos_and_eos(values: dict[str, Any]) -> None:
    values[K + "add_bos_token"] = values[K + "add_eos_token"] = True
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    names = [values[K + "tokens"][i] for i in (values[K + "bos_token_id"], values[K + "eos_token_id"])]
    body = tokenizer.encode("the dog", bos=False)
    assert body[0] != bos
    assert tokenizer.encode("the dog") == tokenizer.encode("the dog", bos=True) == [bos, *body]
    assert tokenizer.encode("the dog", eos=None) == tokenizer.encode("the dog", eos=True) == [bos, *body, eos]
    assert tokenizer.encode("") == [bos]
    assert tokenizer.encode("", bos=False) == []
    # A template that writes them itself gets no second one; a user who does has written text.
    assert tokenizer.encode(f"{names[0]}the dog{names[1]}", special=True, bos=True, eos=True) == [bos, *body, eos]
    assert tokenizer.encode(names[0])[0] == bos
    assert len(tokenizer.encode(names[0])) > 2
    # A word that is the begin token in this vocabulary is still a word.
    word = tokenizer_from_metadata(values | {K + "bos_token_id": body[0]}, "m.gguf")
    assert word.encode("the dog") == [body[0], *body]
    values[K + "add_bos_token"] = values[K + "add_eos_token"] = False
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    assert tokenizer.encode("the dog", eos=None) == body


def test_end_tokens(values: dict[str, Any], eot: int, add_token: Any) -> None:
    eos = values[K + "eos_token_id"]
    assert tokenizer_from_metadata(values, "m.gguf").eos_ids == {eos, eot}
    add_token(values, "<|im_end|>", 1)  # a normal token of that name ends nothing
    assert tokenizer_from_metadata(values, "m.gguf").eos_ids == {eos, eot}
    turn = add_token(values, "<end_of_turn>", 3)
    named = add_token(values, "<stop>", 3)
    assert tokenizer_from_metadata(values | {K + "eot_token_id": named}, "m.gguf").eos_ids == {eos, eot, turn, named}


def test_file_without_begin_and_end(values: dict[str, Any], eot: int) -> None:
    """Known names are found; without any, there is none, and nothing is added."""
    bos, eos = values.pop(K + "bos_token_id"), values.pop(K + "eos_token_id")
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (bos, None, {eos, eot})
    for i in (bos, eos, eot):
        values[K + "tokens"][i] = f"<other {i}>"
    values.pop(K + "add_bos_token", None)
    tokenizer = tokenizer_from_metadata(values, "m.gguf")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (None, frozenset(), False)
    assert tokenizer.encode("the dog", bos=True, eos=True) == tokenizer.encode("the dog", bos=False)


def test_odd_text(tokenizer: Tokenizer) -> None:
    for text in ("\0", "a\0b", "\ufffd", "\u202e\u200d\ufe0f", "\U0010ffff", "\ufeffx"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in ("\ud83d", "a\ud800b", "\udcff", "\ude00\ud83d"):
        assert tokenizer.decode(tokenizer.encode(text)) == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


@pytest.mark.parametrize(
    "text", ["a" * 10**6, " " * 10**6, " " * 10**6 + "x", "\n" * 10**6, "aB<|>" * 200_000, "7" * 10**6, "😀" * 250_000]
)
def test_a_megabyte_without_word_borders(text: str, tokenizer: Tokenizer) -> None:
    """0.4 s of CPU time; a merge or a pattern that is quadratic would take hours."""
    start = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - start < 10
    assert text.startswith(tokenizer.decode(ids[:999]).rstrip("\ufffd"))
    assert len(ids) >= len(text) // 64


def test_libraries_are_imported_when_needed() -> None:
    code = (
        "import sys, bitnet_cli.text.tokenizer, bitnet_cli.text.stream, bitnet_cli.text.pre_tokenizers\n"
        "print(sorted({'tokenizers', 'sentencepiece', 'numpy'} & sys.modules.keys()))\n"
        "import bitnet_cli.text.byte_bpe\n"
        "print(sorted({'tokenizers', 'sentencepiece', 'numpy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['tokenizers']"]
