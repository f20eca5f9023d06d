"""`bitnet run --json-schema` and `--regex`: where the schema comes from, what is printed, what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Bitnet = Callable[..., Any]
PROMPT = ("-p", "And the king said", "--temp", "0", "-t", "1", "-q")
SCHEMA = {"type": "object", "properties": {"said": {"enum": ["Behold", "Go"]}, "n": {"const": [1, 2]}}, "required": ["said", "n"]}
CLOSED = json.dumps(SCHEMA | {"additionalProperties": False})


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "a schema.json"
    path.write_text(CLOSED, encoding="utf-8-sig")
    return path


def test_where_the_schema_comes_from(bitnet: Bitnet, schema: Path) -> None:
    """Its text, a file, stdin; all names of the option. More than 128 tokens would be allowed."""
    given = bitnet("run", *PROMPT, "--json-schema", CLOSED)
    answer = json.loads(given.stdout)
    assert (answer["n"], answer["said"] in ("Behold", "Go"), given.stderr) == ([1, 2], True, "")
    assert bitnet("run", *PROMPT, "--format", schema).stdout == given.stdout
    piped = bitnet("run", *PROMPT, "-j", "-", stdin=CLOSED, check=True)
    assert piped.stdout == given.stdout


def test_json_about_json(bitnet: Bitnet, schema: Path) -> None:
    """--json is about what is printed: the text in it has the form."""
    facts = json.loads(bitnet("run", *PROMPT, "--schema", schema, "--json", "--logprobs", "1").stdout)
    assert (json.loads(facts["text"])["n"], facts["stop_type"]) == ([1, 2], "eos")
    assert len(facts["logprobs"]) == len(facts["ids"])


def test_any_object_cut_off(bitnet: Bitnet) -> None:
    done = bitnet("run", *PROMPT[:-1], "--json-schema", "json", "-n", "5")
    assert (done.returncode, done.stdout[0]) == (1, "{")
    assert "cut off before it had the form" in done.stderr
    facts = json.loads(bitnet("run", *PROMPT, "-j", "json", "-n", "5", "--json").stdout)
    assert (facts["text"] + "\n", facts["stop_type"]) == (done.stdout, "limit")


def test_a_regular_expression(bitnet: Bitnet) -> None:
    done = bitnet("run", *PROMPT, "--regex", "(Go|Come), [a-z]{3,5}\\.")
    assert re.fullmatch(r"(Go|Come), [a-z]{3,5}\.\n", done.stdout)


def test_the_prompt_cache_changes_nothing(bitnet: Bitnet, schema: Path, tmp_path: Path) -> None:
    texts = {bitnet("run", *PROMPT, "-j", schema, "--prompt-cache", tmp_path / "cache").stdout for _ in range(2)}
    assert texts == {bitnet("run", *PROMPT, "-j", schema).stdout}


def test_a_chat_from_a_pipe(bitnet: Bitnet, schema: Path) -> None:
    """Every answer is one."""
    command = ["run", "tiny", "-cnv", "-q", "--temp", "0", "-t", "1", "-j", schema]
    done = bitnet(*command, stdin="Who?\nAnd who?\n", check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["n"] for answer in answers] == [[1, 2], [1, 2]]
    told = bitnet(*command, "--json", stdin="Who?\n", check=True)
    assert json.loads(json.loads(told.stdout)["content"]) == answers[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-j", "no such file"), ("no such file", "No such file")),
        (("-j", "."), (".", "directory")),
        (("-j", '{"type": "object"'), ("JSON schema is not JSON",)),
        (("-j", '{"type": "objekt"}'), ("JSON schema", "Invalid type: objekt")),
        (("-j", "{}", "--regex", "a"), ("one of them",)),
        (("-j", "-", "-cnv"), ("stdin", "-cnv")),
        (("--regex", "[a"), ("regular expression", "unclosed")),
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_what_cannot_be_asked(bitnet: Bitnet, refused: Callable[..., None], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """Before a model is opened: this one is not there."""
    refused(bitnet("run", "-m", "missing.gguf", "-p", "a", *arguments), 2, *words)


def test_a_schema_and_a_prompt_from_stdin(bitnet: Bitnet, refused: Callable[..., None]) -> None:
    refused(bitnet("run", "-j", "-"), 2, "stdin", "-p or -f")


def test_a_file_that_is_no_text(bitnet: Bitnet, refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_bytes(b"\xff\xfe{}")
    refused(bitnet("run", "-p", "a", "-j", tmp_path / "schema.json"), 2, "schema.json", "UTF-8")
