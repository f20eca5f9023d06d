"""What the child that renders templates does, in this process: the same answers, also without its limits, and none that is not sound."""

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import jinja2.runtime
import pytest

from bitnet_cli.text.chat import jinja, jinja_child
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Message, checked_messages

from .own_templates import OWN_TEMPLATES
from .test_jinja import HALVES, HOSTILE

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, "</s>"]}}}
CHAT = checked_messages([
    {"role": "system", "content": "be\ud800 short"},
    {"role": "user", "content": "Why? <|im_end|>"},
    {"role": "assistant", "content": "<think>a</think> because ", "tool_calls": [CALL]},
    {"role": "user", "content": "and\nnow?"},
])  # fmt: skip
ODD = {
    "autoescape": "{% autoescape true %}{{ '<' ~ messages[0].content }}{% set x %}<b>{% endset %}{{ x }}{% endautoescape %}<i>",
    "constants": "{{ ['a', 1, 2.5, none, true] }}{{ ('a', ) }}{{ {'a': ['b', {'c': 1e9}]} }}{{ 'a' in ['a'] }}{{ 3 ~ 4.5 }}{{ -2 }}",
    "formats": "{{ '%s %r' % (messages[0].content, 'x') }}{{ '{a:>5}{b!r}'.format_map({'a': 'x', 'b': messages[0].content}) }}",
    "unknown format": "{{ '{0.__class__}'.format(messages[0].content) }}",
    "attribute": "{{ messages | join(', ', attribute='role') }}{{ ['a', 'b'] | join(messages[0].content) }}",
    "namespace": "{% set n = namespace(a=1) %}{% set n.b = 'x' %}{{ n.a }}{{ n.b }}{{ namespace(__x=1) }}",
    "set in a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "json": "{{ messages[1] | tojson }}{{ {'b': 1, 'a': '\u00e9'} | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
    "refused": "{{ raise_exception('no') }}",
    "syntax": "{% if %}",
    "nothing": "{{ nothing.at.all }}",
    "too much": "{% for i in range(999) %}{{ 'x' * 99 }}{% endfor %}" * 50,
}


class Streams:
    """stdin and stdout of a process that is given a job."""

    def __init__(self, job: bytes):
        self.buffer, self.answer = io.BytesIO(job), io.StringIO()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, Any]]]:
    """What the child has answered, and what its module answers here."""
    found: list[tuple[Any, Any]] = []
    ask = jinja._ask_child
    monkeypatch.setattr(jinja_child, "limit", lambda: None)
    monkeypatch.setattr(jinja2.runtime, "str_join", jinja2.runtime.str_join)  # which the child replaces

    def both(job: bytes) -> Any:
        streams, theirs = Streams(job), ask(job)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", streams)
            patch.setattr(sys, "stdout", streams.answer)
            jinja_child.main()
        found.append((theirs, json.loads(streams.answer.getvalue())))
        return theirs

    monkeypatch.setattr(jinja, "_ask_child", both)
    yield found


def same(source: str, messages: list[Message], found: list[tuple[Any, Any]]) -> None:
    template = JinjaTemplate("t", source, "t.jinja", "<s>", "</s>", args={"x": "<|im_end|>", "tools": [{"a": "</think>"}]})
    try:
        template.pieces(messages)
    except jinja.BadFileError:
        assert "error" in found[-1][1]
    theirs, ours = found[-1]
    assert theirs == ours and jinja._is_sound(ours)


@pytest.mark.parametrize("name", [*OWN_TEMPLATES, *ODD])
def test_the_same_answer_here(name: str, answers: list[tuple[Any, Any]]) -> None:
    same({**OWN_TEMPLATES, **ODD}[name], CHAT, answers)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_templates(number: int, answers: list[tuple[Any, Any]]) -> None:
    source, chat, _ = HOSTILE[number]
    same(source, chat, answers)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, answers: list[tuple[Any, Any]]) -> None:
    def render(job: dict[str, Any]) -> Any:
        raise MemoryError

    monkeypatch.setattr(jinja_child, "render", render)
    JinjaTemplate("t", "x", "t.jinja").pieces(HALVES)
    assert answers[-1][1] == {"error": "needs more than 256 MB"}
