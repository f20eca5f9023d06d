"""Templates in Jinja that come from files: what they may see, do and cost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bitnet_kernels import child

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.chat import jinja
from bitnet_cli.text.chat.jinja import CHILD, JinjaTemplate
from bitnet_cli.text.chat.templates import Message

HELLO = [Message("user", "Hello <|im_end|>")]


def pieces(source: str, messages: list[Message] = HELLO) -> list[object]:
    return list(JinjaTemplate("t", source, "t.jinja", "<s>", "</s>").pieces(messages))


def test_whatever_a_template_does_to_a_message() -> None:
    """Cut, repeated, reversed, in capitals, searched: its characters stay a message's."""
    source = "{% set c = messages[0].content %}{{ c[6:] }}|{{ c | upper }}|{{ c | reverse }}|{{ 'im_end' in c }}"
    assert pieces(source) == [
        ("<|im_end|>", False), ("|", True), ("Hello <|im_end|>", False), ("|", True), (">|dne_mi|< olleH", False), ("|False", True),
    ]  # fmt: skip
    lines = [Message("user", " a\n b \n")]
    assert pieces("[{{ messages[0].content | trim }}][{{ messages[0].content }}]", lines) == [
        ("[", True), ("a\n b", False), ("][ ", True), ("a\n b", False), (" \n]", True),
    ]  # fmt: skip


def test_what_a_template_may_use() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ {'a': '<é'} | tojson }}{{ add_generation_prompt }}{{ eos_token }}"
    )
    assert pieces(source, [*HELLO, *HELLO]) == [('<s>user4{"a": "<é"}True</s>', True)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must\x1b[31m alternate') }}", "refuses these messages: roles must"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% for i in range(99999) %}{{ 'y' * 1000 }}{% endfor %}", "too much text"),
        ("{{ 'x' * 1000000000 }}", "256 MB"),
        ("{% set x = namespace(v='ab') %}{% for i in range(60) %}{% set x.v = x.v + x.v %}{% endfor %}", "256 MB"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than a second"),
        ("{{ range(10000000) }}", "OverflowError"),
    ],
)
def test_bad_templates(source: str, reason: str) -> None:
    if os.name != "posix" and ("MB" in reason or "second" in reason):
        pytest.skip("limits of POSIX")
    with pytest.raises(BadFileError, match="chat template: ") as error:
        pieces(source)
    assert reason in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("answer", [b"", b"[]", b"nonsense", b"{}", b'{"text": 1}', b'{"te'])
def test_a_child_that_is_not_itself(answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes out of the sandbox is checked as if somebody had got out of it."""
    fake = tmp_path / "child.py"
    fake.write_text(f"import sys; sys.stdin.read(); sys.stdout.buffer.write({answer!r})")
    monkeypatch.setattr(jinja, "CHILD", fake)
    with pytest.raises(BadFileError, match="chat template"):
        pieces("x")


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    fake = tmp_path / "child.py"
    fake.write_text("import json, os, sys; sys.stdin.read(); print(json.dumps({'text': os.environ.get('HF_TOKEN', 'none')}))")
    monkeypatch.setattr(jinja, "CHILD", fake)
    assert pieces("x") == [("none", True)]


def test_jinja_is_imported_in_the_child_only() -> None:
    code = "import sys; import bitnet_cli.text.chat.choice; print('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    job = {"template": "a", "messages": [], "bos_token": "", "eos_token": "", "add_generation_prompt": True, "limit": 9}
    with child.start(CHILD.stem, "main", ("jinja2", "markupsafe"), folder=str(CHILD.parent)) as process:
        output, _ = process.communicate(json.dumps(job).encode())
    assert json.loads(output) == {"text": "a"}


def test_where_no_child_can_be_started_a_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a frozen program `sys.executable` is that program, which would start once more with Python's options for its own."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(UnsupportedError, match=r"t\.jinja: chat template: is rendered in a process of its own"):
        pieces("x")
