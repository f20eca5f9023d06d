"""Values and files that once ended in a traceback, or never: each is one line with the right exit code."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.cli import main
from bitnet_cli.commands.chat import files
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError
from bitnet_cli.model.opening import Options, open_model
from bitnet_cli.model.prompt_cache import MAGIC
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.templates import Message

POSIX = pytest.mark.skipif(os.name != "posix", reason="FIFOs, and bytes in arguments, as on POSIX")
HUGE = str(10**20)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(code, *arguments): the error of `bitnet`, on stderr alone; Typer draws a frame around its own."""

    def run(code: int, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["bitnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        output = capsys.readouterr()
        assert (left.value.code, output.out) == (code, ""), output.err
        assert output.err.count("\n") == 1 or "Error" in output.err
        return output.err

    return run


OPTIONS = (
    "-n",
    "-c",
    "-t",
    "--top-k",
    "--seed",
    "--repeat-last-n",
    "--mirostat",
    "--temp",
    "--top-p",
    "--min-p",
    "--repeat-penalty",
    "--draft",
)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", "1e400", "nan", "", "²"])
def test_numbers_out_of_any_range(option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused, or, where a number may be as large as one likes, taken."""
    monkeypatch.setattr(sys, "argv", ["bitnet", "run", "tiny", "-p", "a", "-n", "1", "-q", "-t", "1", "--stop", "a", option, value])
    monkeypatch.setattr("bitnet_cli.commands.run.open_model", lambda *_: (_ for _ in ()).throw(BadFileError("x", "y", "taken")))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_a_window_that_no_memory_holds(refused: Callable[..., str]) -> None:
    assert "--repeat-last-n" in refused(2, "run", "tiny", "-p", "a", "-q", "--repeat-last-n", HUGE)


@POSIX
def test_an_expression_that_is_no_text(refused: Callable[..., str]) -> None:
    """A byte that is no UTF-8, as Python hands it over."""
    assert "not UTF-8" in refused(2, "run", "tiny", "-p", "a", "--regex", "a\udcff")
    assert "JSON schema" in refused(2, "run", "tiny", "-p", "a", "--json-schema", '{"const": "\udcff"}')


@pytest.mark.parametrize("line", [b"[" * 60_000, b'{"a":' * 10_000, b'{"tokens": ' + b"9" * 5000 + b"}", b"\xff", b'{"tokens": true}'])
def test_prompt_caches_whose_header_is_none(refused: Callable[..., str], tmp_path: Path, line: bytes) -> None:
    (tmp_path / "cache").write_bytes(MAGIC + line + b"\n" + bytes(100))
    refused(3, "run", "tiny", "-p", "a", "-q", "-t", "1", "--prompt-cache", tmp_path / "cache")


@POSIX
def test_a_fifo_is_not_waited_for(refused: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    message = refused(3, "run", "tiny", "-p", "a", "-q", "-t", "1", "--prompt-cache", tmp_path / "pipe.json")
    assert "not a regular file" in message
    with pytest.raises(BadFileError, match="not a regular file"):
        files.load(tmp_path / "pipe.json", None)  # type: ignore[arg-type]


def test_half_characters_in_saved_chats(tmp_path: Path) -> None:
    """JSON may name half of a surrogate pair, and the command line may hold a byte that is no UTF-8; no file in UTF-8 can."""
    opened = open_model(EMBEDDED_MODEL, Options(context=64, threads=1))
    try:
        tokenizer = opened.tokenizer
    finally:
        opened.scheduler.close()
    known: dict[str, Any] = {"model": "a\udcff", "template": "t\ud800", "sampling": Sampling(logit_bias=((3, 1.5),)), "first": 0}
    files.save(tmp_path / "a.json", tokenizer, messages=[Message("user", "b\udcff")], **known)
    saved = files.load(tmp_path / "a.json", tokenizer)
    assert saved.sampling == known["sampling"]
    assert (saved.model, saved.template, saved.messages) == ("a\ufffd", "t\ufffd", [Message("user", "b\ufffd")])
    value = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    value["messages"] = [{"role": "user", "content": "c\ud800"}, {"role": "assistant", "content": "\udfff", "ids": [1]}]
    (tmp_path / "b.json").write_text(json.dumps(value), encoding="utf-8")
    saved = files.load(tmp_path / "b.json", tokenizer)
    assert [message.content for message in saved.messages] == ["c\ufffd", "\ufffd"]
    files.save(tmp_path / "c.json", tokenizer, messages=saved.messages, **known)
