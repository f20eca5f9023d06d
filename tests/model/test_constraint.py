"""Text of a given form: which tokens are allowed, that the model's proportions stay, and that what comes out has the form."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from bitnet_kernels import isa
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model import head, lookup
from bitnet_cli.model.completion import Generation, Request, complete
from bitnet_cli.model.constraint import Constraint, json_grammar, regex_grammar
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

from ..text.conftest import bpe, libraries, spm, spm_library  # noqa: F401  # fixtures
from .builder import Sizes, random_model, write_model
from .held import held, prefill

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["béta", 'a "b"', 7, None, True]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-zé]{1,4}$"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "object": OBJECT,
    "list of objects": {"type": "array", "items": OBJECT, "maxItems": 2},
    "one of several": {"anyOf": [{"type": "boolean"}, {"const": {"x": [1, "\n"]}}, {"type": "number", "minimum": -1, "maximum": 1}]},
    "date": {"type": "string", "format": "date"},
    "recursive": {
        "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
        "$ref": "#/$defs/tree",
    },
}
WORDS = ["alpha", "alps", "be", "bé😀", "", 'a"']


@pytest.fixture(scope="module")
def opened() -> Iterator[OpenModel]:
    model = open_model(EMBEDDED_MODEL, Options(threads=1, context=512))
    yield model
    model.scheduler.close()


@pytest.fixture(scope="module")
def searching() -> Iterator[OpenModel]:
    """The same model; its head is searched for the largest logits, as are those of larger models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "SMALLEST_HEAD", 0)
        model = open_model(EMBEDDED_MODEL, Options(threads=1, context=512))
    yield model
    model.scheduler.close()


@pytest.fixture(scope="module")
def random_bytes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenModel]:
    """A random model whose tokens are single bytes: nothing it prefers is JSON."""
    path = write_model(tmp_path_factory.mktemp("constraint") / "m.gguf", random_model(Sizes(context=256), seed=7, tied=False))
    model = open_model(path, Options(threads=1))
    yield model
    model.scheduler.close()


@pytest.fixture(params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Small vocabularies of both kinds, with control, user-defined and unused tokens, and one that is not UTF-8."""
    return tokenizer_from_metadata(request.getfixturevalue(request.param), "m.gguf")


def spelt(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Tokens of these bytes, wherever a character ends."""
    known = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size)) if i not in tokenizer.special_ids}
    ids = []
    while data:
        size = next(size for size in range(len(data), 0, -1) if data[:size] in known)
        ids.append(known[data[:size]])
        data = data[size:]
    return ids


def allowed_by(texts: list[bytes], before: bytes, tokenizer: Tokenizer) -> set[int]:
    """Of a form that is a few texts, by trying every token. An end token stands for the end of the text."""
    begun = [text for text in texts if text.startswith(before)]
    following = {text[len(before) : end] for text in begun for end in range(len(before) + 1, len(text) + 1)}
    found = {token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) in following} - tokenizer.special_ids
    return found | (set(tokenizer.eos_ids) if before in texts else set())


@pytest.mark.parametrize("form", ["json", "regex"])
def test_exactly_the_tokens_that_begin_a_text_of_the_form(tokenizer: Tokenizer, form: str) -> None:
    """After every byte of every text, for every token."""
    if form == "json":
        grammar, texts = json_grammar({"enum": WORDS}), [json.dumps(word, ensure_ascii=False).encode() for word in WORDS]
    else:
        grammar, texts = regex_grammar("é?(ab|ca){1,2}( 12)?\n?"), []
        parts = ([f"{a}{b}", f"{a}{b} 12"] for a in ("", "é") for b in ("ab", "ca", "abab", "abca", "caab", "caca"))
        texts = [(text + end).encode() for some in parts for text in some for end in ("", "\n")]
    ends = set(tokenizer.eos_ids)
    for text in texts:
        for cut in range(len(text) + 1):
            constraint = Constraint(tokenizer, grammar, ends)
            for token in spelt(tokenizer, text[:cut]):
                assert constraint.allowed[token]
                constraint.accept(token)
            expected = allowed_by(texts, text[:cut], tokenizer)
            assert set(np.flatnonzero(constraint.allowed).tolist()) == expected
            assert constraint.done == (expected == ends)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))  # the library writes no DEL
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES, compact=st.booleans())
@settings(max_examples=60, deadline=None)
def test_all_json_is_allowed(opened: OpenModel, value: Any, compact: bool) -> None:
    """As programs write it, with a space after commas and colons or without. Characters that need no escape are written as they are."""
    tokenizer, separators = opened.tokenizer, (",", ":") if compact else None
    constraint = Constraint(tokenizer, json_grammar("{}"), tokenizer.eos_ids)
    for token in tokenizer.encode(json.dumps(value, ensure_ascii=False, separators=separators), bos=False):
        assert constraint.allowed[token]
        constraint.accept(token)
    assert constraint.done or set(tokenizer.eos_ids) <= set(np.flatnonzero(constraint.allowed).tolist())


def text_of(opened: OpenModel, grammar: str, sampling: Sampling, **wanted: Any) -> tuple[str, Generation]:
    """A text from nothing, at most as long as the context."""
    opened.engine.pages.forget()
    prompt = opened.tokenizer.encode("The answer:")
    completion = complete(opened, prompt, sampling, Request(grammar=grammar, **{"limit": -1, **wanted}))
    return "".join(completion), completion


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("source", ["opened", "random_bytes"])
def test_what_is_generated_fits_the_schema(source: str, name: str, request: pytest.FixtureRequest) -> None:
    """At temperatures from 0 to 2, of a model that prefers words and of one that prefers nothing."""
    model, schema = request.getfixturevalue(source), SCHEMAS[name]
    grammar, whole = json_grammar(schema), 0
    for seed, temperature in enumerate((0.0, 0.7, 1.0, 2.0, 2.0, 2.0)):
        text, completion = text_of(model, grammar, Sampling(temperature, seed % 2 * 40, 1.0, 0.0, seed=seed))
        again = Constraint(model.tokenizer, grammar, model.tokenizer.eos_ids)
        for token in completion.ids:
            assert again.allowed[token]
            again.accept(token)
        assert model.tokenizer.decode(completion.ids, at_start=False) == text
        if completion.finish == "stop":
            whole += 1
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        else:
            assert len(held(model.engine)) == model.engine.context
    assert whole >= 2  # numbers may have any number of digits


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(seed=3), Sampling(1.5, 20, 0.9, 0.02, 1.2, seed=4)], ids=str)
@pytest.mark.parametrize("draft", [0, 6])
def test_the_largest_logits_give_the_tokens_of_all(
    searching: OpenModel, sampling: Sampling, draft: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are mostly enough."""
    monkeypatch.setattr(lookup, "GAIN", 0.0)
    grammar, all_logits, whole = json_grammar({"type": "array", "items": OBJECT, "minItems": 3}), Engine.all_logits, 0

    def counted(engine: Engine, row: int, place: int) -> Any:
        nonlocal whole
        whole += 1
        return all_logits(engine, row, place)

    monkeypatch.setattr(Engine, "all_logits", counted)
    text, completion = text_of(searching, grammar, sampling, limit=150, draft=draft)
    if isa.chosen() != isa.NAIVE:
        assert 0 < whole < len(completion.ids)
        assert not np.isfinite(prefill(searching.engine, [5], 40)[0]).all()
    monkeypatch.setattr(Sampler, "top", 0)
    assert text_of(searching, grammar, sampling, limit=150, draft=draft)[0] == text


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.3, seed=2), Sampling(0.9, mirostat=2, seed=3, repeat_penalty=1.2)], ids=str)
def test_drafts_change_no_token(opened: OpenModel, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "GAIN", 0.0)
    item = {"type": "object", "properties": {"name": {"enum": ["a king", "a queen"]}, "land": {"const": "the land"}}}
    schema = {"type": "array", "items": item | {"required": ["name", "land"], "additionalProperties": False}, "minItems": 6, "maxItems": 9}
    grammar = json_grammar(schema)
    (expected, without), (text, drafted) = (text_of(opened, grammar, sampling, draft=draft) for draft in (0, 8))
    assert (text, drafted.ids, drafted.timings.finish) == (expected, without.ids, "stop")
    assert drafted.timings.drafted_tokens > drafted.timings.accepted_tokens > 10
    jsonschema.validate(json.loads(text), schema)


def test_a_seed_gives_the_same_text_and_logprobs_are_of_the_model(opened: OpenModel) -> None:
    grammar = json_grammar({"type": "string", "maxLength": 20})
    (first, plain), (second, told) = (text_of(opened, grammar, Sampling(seed=5), logprobs=count) for count in (None, 2))
    assert (first, plain.ids) == (second, told.ids)
    assert told.logprobs[0].id == told.ids[0] != told.logprobs[0].top[0][0]  # it would rather not begin with a quote
    assert told.logprobs[0].logprob < told.logprobs[0].top[1][1]


def test_where_a_text_ends(opened: OpenModel) -> None:
    """At the limit, unless it is whole by then; at a stop string; never before it has the form, whatever the model would do."""
    grammar, greedy = json_grammar({"const": "abcdef"}), Sampling(0.0)
    whole, completion = text_of(opened, grammar, greedy)
    assert (whole, completion.finish, completion.stopped_by) == ('"abcdef"', "stop", None)
    count = len(completion.ids)
    assert text_of(opened, grammar, greedy, limit=count)[1].timings.finish == "stop"
    assert text_of(opened, grammar, greedy, limit=count - 1)[1].timings.finish == "length"
    assert text_of(opened, grammar, greedy, ignore_eos=True)[0] == whole
    text, stopped = text_of(opened, grammar, greedy, stop=["d"])
    assert (text, stopped.timings.finish, stopped.stopped_by) == ('"abc', "stop", "d")
    end = completion.ids[1]
    text, other = text_of(opened, grammar, greedy, ends=[end])
    assert (text, end in other.ids) == (whole, False)
    digits, endless = text_of(opened, regex_grammar("[0-9]*"), greedy, ignore_eos=True, limit=30)
    assert (digits.isdigit(), endless.timings.finish) == (True, "length")
    assert text_of(opened, regex_grammar(""), greedy)[0] == ""


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"),
        ("NaN", "not JSON"),
        ("5", "must be an object or boolean"),
        ([], "must be an object or boolean"),
        ("false", "schema is false"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "'a' is unsatisfiable"),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "format": "nonsense"}, "Unknown format"),
        ({"$ref": "http://example.com/schema"}, "not present"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "greater than maximum"),
        ({"a": {1, 2}}, "not JSON serializable"),
        ({"a": float("nan")}, "not JSON"),
        ({"x-guidance": 5}, "invalid type"),
        *(({"minLength": ["x" * n, "é😀" * 30]}, "minLength") for n in range(3)),  # llguidance 1.9.1 panics on some of them
        ("[" * 100_000, "not JSON"),
        ('{"items":' * 400 + "{}" + "}" * 400, "recursion limit"),
        ('{"a":"' + "x" * (5 << 20) + '"}', "larger than 4 MiB"),
        ({"enum": [f"{i}x" for i in range(100_000)]}, "too big"),
        ({"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": k}}} for k in range(3)]} for i in range(30)]}, "too large"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_schemas_that_cannot_be(schema: Any, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="the JSON schema") as refused:
        json_grammar(schema)
    message = str(refused.value)
    assert words in message
    assert "\n" not in message and len(message) < 300
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "unclosed"), ("(?=a)", "look-around"), ("a" * (5 << 20), "4 MiB")], ids=["(", "(?=", "a"]
)
def test_expressions_that_cannot_be(pattern: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        regex_grammar(pattern)


def test_a_form_that_the_tokens_cannot_spell(opened: OpenModel) -> None:
    """Found before anything is computed."""
    with pytest.raises(UsageError, match="no token of this model"):
        text_of(opened, regex_grammar("a+"), Sampling(0.0), ends=[i for i in range(4096) if opened.tokenizer.token_bytes(i)[:1] == b"a"])
    with pytest.raises(UsageError, match="no text has it"):
        text_of(opened, json_grammar({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), Sampling(0.0))


def test_a_form_that_takes_too_long_to_follow(opened: OpenModel) -> None:
    """As many states as there are texts of 30 letters."""
    constraint = Constraint(opened.tokenizer, regex_grammar(".*[ab].{28}e|.*[bc].{29}d|.*[ac].{31}c"))
    letters = [opened.tokenizer.encode(letter, bos=False)[0] for letter in "abcdef"]
    random = np.random.default_rng(1)
    with pytest.raises(BitnetError, match="cannot be followed"):
        for token in random.choice(letters, 3000).tolist():
            constraint.accept(token)
