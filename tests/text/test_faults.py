"""Damaged and forged tokenizer metadata: each fault is one line that names the file, the key and the reason."""

import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

K = "tokenizer.ggml."
Change = Callable[[dict[str, Any]], object]


def setting(name: str, value: object) -> Change:
    return lambda m: m.__setitem__(K + name, value)


def without(name: str) -> Change:
    return lambda m: m.pop(K + name)


def item(name: str, index: int, value: object) -> Change:
    return lambda m: m[K + name].__setitem__(index, value)


def more(name: str, value: object) -> Change:
    return lambda m: m[K + name].append(value)


BOTH: list[tuple[Change, str, str]] = [
    (without("model"), "model", "is missing or not a string"),
    (setting("model", 7), "model", "is missing or not a string"),
    (without("tokens"), "tokens", "is missing"),
    (setting("tokens", []), "tokens", "is empty"),
    (setting("tokens", "abc"), "tokens", "is not an array of strings"),
    (item("tokens", 4, b"x"), "tokens", "is not an array of strings"),
    (lambda m: m[K + "tokens"].__setitem__(300, m[K + "tokens"][20]), "tokens[20]", "is there again as token 300"),
    (more("token_type", 1), "token_type", "one a token"),
    (setting("token_type", "1"), "token_type", "is not an array of numbers"),
    (item("token_type", 5, 7), "token_type[5]", "is 7, expected a type from 0 to 6"),
    (item("token_type", 5, -1), "token_type[5]", "is -1, expected a type from 0 to 6"),
    (setting("bos_token_id", 4_000_000), "bos_token_id", "is 4000000, expected an id from 0 to"),
    (setting("eos_token_id", -1), "eos_token_id", "is -1, expected an id from 0 to"),
    (setting("eot_token_id", 2**32 - 1), "eot_token_id", "is 4294967295, expected an id"),
    (setting("unknown_token_id", 1.0), "unknown_token_id", "is 1.0, expected an id"),
    (setting("padding_token_id", True), "padding_token_id", "is True, expected an id"),
    (setting("bos_token_id", "x" * 9999), "bos_token_id", "expected an id"),
    (setting("add_bos_token", 1), "add_bos_token", "is 1, expected a boolean"),
    (setting("add_eos_token", "yes"), "add_eos_token", "is 'yes', expected a boolean"),
    (setting("add_space_prefix", 0), "add_space_prefix", "is 0, expected a boolean"),
    (lambda m: (m.pop(K + "eos_token_id"), setting("add_eos_token", True)(m)), "add_eos_token", "has no eos token"),
    (setting("scores", [1.0]), "scores", "has 1 items, expected"),
]
BPE: list[tuple[Change, str, str]] = [
    (without("merges"), "merges", "is missing"),
    (setting("merges", [1, 2]), "merges", "is not an array of strings"),
    (item("merges", 3, "Ġ zyx"), "merges[3]", "'Ġ zyx' needs 'zyx', which is not a token"),
    (item("merges", 3, "zyx Ġ"), "merges[3]", "'zyx Ġ' needs 'zyx', which is not a token"),
    (item("merges", 3, "Ġ Ċ"), "merges[3]", "'Ġ Ċ' needs 'ĠĊ', which is not a token"),
    (item("merges", 3, "Ġt"), "merges[3]", "'Ġt' is not two tokens"),
    (item("merges", 3, ""), "merges[3]", "'' is not two tokens"),
    (lambda m: (more("tokens", "")(m), more("token_type", 1)(m), item("merges", 3, "Ġ ")(m)), "merges[3]", "'Ġ ' is not two tokens"),
    (item("merges", 3, "a b c"), "merges[3]", "'a b c' needs 'b c', which is not a token"),
    (item("merges", 3, "\udcff \udcfe"), "merges[3]", "is not a token"),
    (setting("pre", 3), "pre", "is not a string"),
]
SPM: list[tuple[Change, str, str]] = [
    (without("scores"), "scores", "is missing"),
    (without("token_type"), "token_type", "is missing"),
    (more("scores", 0.0), "scores", "one a token"),
    (item("scores", 9, float("nan")), "scores[9]", "is nan, expected a finite number"),
    (item("scores", 9, float("-inf")), "scores[9]", "is -inf, expected a finite number"),
    (item("scores", 9, 1e300), "scores[9]", "is 1e+300, expected a finite number"),
    (lambda m: item("tokens", m[K + "tokens"].index("<0x41>"), "<0x4>")(m), "tokens[", "expected <0x00> to <0xFF>"),
    (lambda m: item("tokens", m[K + "tokens"].index("<0x4A>"), "<0x4b>")(m), "token_type", "has 255 different byte tokens"),
    (lambda m: item("token_type", m[K + "tokens"].index("<0x41>"), 1)(m), "token_type", "has 255 different byte tokens"),
    (
        lambda m: (
            without("unknown_token_id")(m),
            setting("token_type", [1 if kind in (2, 6) else kind for kind in m[K + "token_type"]])(m),
        ),
        "unknown_token_id",
        "is missing",
    ),
    (setting("merges", "x"), "merges", "is not an array of strings"),
    (setting("merges", ["▁ zyx"]), "merges[0]", "'▁ zyx' needs 'zyx', which is not a token"),
    (lambda m: setting("unknown_token_id", m[K + "tokens"].index("<0x41>"))(m), "tokens", "sentencepiece refuses the vocabulary"),
]


def check(metadata: dict[str, Any], change: Change, field: str, reason: str) -> None:
    tokenizer_from_metadata(metadata, "dir/m.gguf")  # sound before the change
    change(metadata)
    with pytest.raises(BadFileError) as caught:
        tokenizer_from_metadata(metadata, "dir/m.gguf")
    message = str(caught.value)
    assert message.startswith(f"dir/m.gguf: {K}{field}")
    assert reason in message
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize(("change", "field", "reason"), [*BOTH, *BPE])
def test_byte_bpe(change: Change, field: str, reason: str, bpe: dict[str, Any]) -> None:
    check(bpe, change, field, reason)


@pytest.mark.parametrize(("change", "field", "reason"), [*BOTH, *SPM])
def test_sentencepiece(change: Change, field: str, reason: str, spm: dict[str, Any]) -> None:
    check(spm, change, field, reason)


def test_true_add_bos_without_bos(bpe: dict[str, Any]) -> None:
    bos = bpe.pop(K + "bos_token_id")
    bpe[K + "tokens"][bos] = "<other>"
    tokenizer_from_metadata(bpe, "m.gguf")
    bpe[K + "add_bos_token"] = True
    with pytest.raises(BadFileError, match=r"add_bos_token: is true, and the file has no bos token"):
        tokenizer_from_metadata(bpe, "m.gguf")


@pytest.mark.parametrize("name", ["bert", "t5", "rwkv", "no_vocab", "\x1b]0;x\a"])
def test_other_models(name: str, bpe: dict[str, Any]) -> None:
    bpe[K + "model"] = name
    with pytest.raises(
        UnsupportedError, match=r"m\.gguf: tokenizer\.ggml\.model: '.*' is not supported, only gpt2 and llama are"
    ) as caught:
        tokenizer_from_metadata(bpe, "m.gguf")
    assert str(caught.value).isprintable()


def test_odd_vocabularies_that_are_allowed(bpe: dict[str, Any], add_token: Any) -> None:
    """Arrays in place of lists, an empty token, undefined types, tokens that no merge makes; a file without types."""
    empty = add_token(bpe, "", 1)
    unreachable = add_token(bpe, "Ġzyx", 0)
    plain = tokenizer_from_metadata(bpe, "m.gguf").encode("the dog")
    bpe[K + "token_type"] = array("i", bpe[K + "token_type"])
    bpe[K + "scores"] = array("f", [0.0] * len(bpe[K + "tokens"]))
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    assert tokenizer.encode("the dog") == plain
    assert (tokenizer.token_bytes(empty), tokenizer.token_bytes(unreachable)) == (b"", b" zyx")
    del bpe[K + "token_type"]
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    assert tokenizer.special_ids == {bpe[K + "bos_token_id"], bpe[K + "eos_token_id"]}
    assert tokenizer.encode("the dog") == plain


STEPS, NORMALIZER, IGNORE_MERGES = (f"bitnet.tokenizer.{name}" for name in ("pre_tokenizer", "normalizer", "ignore_merges"))
LETTERS = '{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}'


def with_split(expression: str) -> str:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    return json.dumps({"type": "Sequence", "pretokenizers": [split, json.loads(LETTERS)]})


@pytest.mark.parametrize("kind", ["bpe", "spm"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (STEPS, 7),
        (STEPS, "{"),
        (STEPS, "[" * 100_000),
        (STEPS, "7"),
        (STEPS, '{"type": ["x"]}'),
        (STEPS, '{"type": "Sequence", "pretokenizers": {}}'),
        (STEPS, '{"type": "Metaspace", "replacement": "▁", "prepend_scheme": []}'),
        (STEPS, with_split("(")),
        (NORMALIZER, "{"),
        (NORMALIZER, '{"type": "Lowercase"}'),
        (NORMALIZER, '{"type": "Replace", "pattern": {"Regex": "x"}, "content": "y"}'),
        ("bitnet.tokenizer.added.lstrip", [1, -1]),
        ("bitnet.tokenizer.added.rstrip", "1"),
        ("bitnet.tokenizer.added.normalized", [10**6]),
        ("bitnet.tokenizer.added.single_word", [1.0]),
    ],
)
def test_our_own_keys(kind: str, key: str, value: object, request: pytest.FixtureRequest) -> None:
    metadata = request.getfixturevalue(kind) | {key: value}
    metadata |= {K + "pre": "tokenizer.json", STEPS: metadata.get(STEPS, LETTERS)} if kind == "bpe" else {}
    with pytest.raises((BadFileError, UnsupportedError)) as caught:
        tokenizer_from_metadata(metadata, "dir/m.gguf")
    message = str(caught.value)
    assert message.startswith("dir/m.gguf: ") and len(message) < 400 and "\n" not in message


def test_other_faults_of_our_own_keys(bpe: dict[str, Any]) -> None:
    with pytest.raises(BadFileError, match="ignore_merges"):
        tokenizer_from_metadata(bpe | {IGNORE_MERGES: 1}, "m.gguf")
    with pytest.raises(BadFileError, match=f"{STEPS}: is missing"):
        tokenizer_from_metadata(bpe | {K + "pre": "tokenizer.json"}, "m.gguf")


def test_an_expression_that_gives_up(bpe: dict[str, Any]) -> None:
    """Oniguruma stops after ten million steps; the library then panics, which is not an Exception."""
    bpe |= {K + "pre": "tokenizer.json", STEPS: with_split("(a+)+$")}
    tokenizer = tokenizer_from_metadata(bpe, "m.gguf")
    assert tokenizer.decode(tokenizer.encode("aaa b")) == "aaa b"
    with pytest.raises(UnsupportedError, match=r"m\.gguf: an expression .* gives up on this text of 41 characters"):
        tokenizer.encode("a" * 40 + "b")
