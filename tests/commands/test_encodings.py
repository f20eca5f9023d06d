"""Text files of other systems: the same prompt from each, wherever a text is read, or a refusal that says where it is no text."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.commands.chat.reader import PipeReader
from bitnet_cli.commands.embed import read_texts
from bitnet_cli.commands.prompts import read_prompt
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.text.chat.choice import _template_file

from ..command import Done
from ..model.builder import random_model, write_model
from ..model.chat_models import chat_model

TEXT = "And the naïve king\nsaid"
FILES = {
    "plain": TEXT.encode() + b"\n",
    "mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "windows": TEXT.replace("\n", "\r\n").encode() + b"\r\n",
    "notepad": ("\ufeff" + TEXT.replace("\n", "\r\n")).encode("utf-16-le"),
    "big-endian": ("\ufeff" + TEXT).encode("utf-16-be"),
    "utf-32": ("\ufeff" + TEXT).encode("utf-32-le"),
}
LATIN = TEXT.encode("latin-1")
PLACE = TEXT.index("ï")


class Pipe:
    """stdin with these bytes."""

    def __init__(self, data: bytes):
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("name", FILES)
def test_one_text_from_each(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes(FILES[name])
    assert read_prompt(None, path) == TEXT
    assert read_texts([], path) == TEXT.split("\n")
    if name in ("plain", "mark", "windows"):
        assert _template_file(str(path)).removesuffix("\n") == TEXT
    else:  # transformers reads templates as UTF-8, and so does this
        with pytest.raises(BadFileError, match=r"chat template: is not UTF-8.*byte 0\)" if name != "utf-32" else "chat template"):
            _template_file(str(path))
    monkeypatch.setattr(sys, "stdin", Pipe(FILES[name]))
    assert read_prompt("-", None) == TEXT
    monkeypatch.setattr(sys, "stdin", Pipe(FILES[name]))
    assert read_texts([], None) == TEXT.split("\n")
    monkeypatch.setattr(sys, "stdin", Pipe(FILES[name]))
    reader = PipeReader()
    assert [reader.read() for _ in range(3)] == [*TEXT.split("\n"), None]


def test_what_is_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes(LATIN)

    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", Pipe(LATIN))

    pipe()
    readers: list[Callable[[str | None], Any]] = [
        lambda encoding: read_prompt(None, path, encoding),
        lambda encoding: "\n".join(read_texts([], path, encoding)),
        lambda encoding: (pipe(), read_prompt(None, None, encoding))[1],
        lambda encoding: (pipe(), "\n".join(read_texts([], None, encoding)))[1],
        lambda encoding: (pipe(), reader := PipeReader(encoding), f"{reader.read()}\n{reader.read()}")[-1],
    ]
    for read in readers:
        with pytest.raises(BadFileError, match=rf"(text|stdin): text: is not UTF-8: .* ef; --encoding NAME .*byte {PLACE}\)") as found:
            read(None)
        assert found.value.offset == PLACE
        assert read("latin-1") == read("cp1252") == TEXT
        with pytest.raises(UsageError, match="no encoding of text is known"):
            read("latin-one")
    with pytest.raises(BadFileError, match="chat template: is not UTF-8"):
        _template_file(str(path))
    with pytest.raises(UsageError, match="no encoding of text"):  # also where nothing is read
        read_prompt("a", None, "latin-one")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("encodings") / "model.gguf", random_model(seed=7, tied=False))


def test_commands(model: Path, tmp_path: Path, bitnet: Callable[..., Any], refused: Callable[..., None]) -> None:
    """run, perplexity and embed, each with a file of Windows's notepad and with one of Latin-1."""
    for name, data in {**FILES, "latin": LATIN}.items():
        (tmp_path / name).write_bytes(data)
    env = {**os.environ, "BITNET_ISA": "naive"}
    commands: dict[str, list[str]] = {
        "run": ["-n", "4", "--temp", "0", "--json", "-q", "-m", str(model)],
        "perplexity": ["--json", "-q", "-m", str(model)],
        "embed": ["--pooling", "mean", "-q", "-m", str(model)],
    }
    for command, arguments in commands.items():
        found = []
        for name, more in (("plain", []), ("notepad", []), ("latin", ["--encoding", "latin-1"])):
            done = bitnet(command, *arguments, "-f", tmp_path / name, *more, env=env)
            assert done.returncode == 0, done.stderr
            values = json.loads("[" + ",".join(done.stdout.splitlines()) + "]")
            found.append([{k: v for k, v in one.items() if k in ("ids", "nats")} if isinstance(one, dict) else one for one in values])
        assert found[0] and found[0] == found[1] == found[2], command
        refused(bitnet(command, *arguments, "-f", tmp_path / "latin", env=env), 3, "latin: text: is not UTF-8", f"byte {PLACE}")
        refused(bitnet(command, *arguments, "-f", tmp_path / "latin", "--encoding", "x", env=env), 2, "--encoding 'x'")


def test_a_chat_from_a_pipe(bitnet: Callable[..., Done], tmp_path: Path) -> None:
    path = chat_model(tmp_path / "chatty.gguf")
    env = {**os.environ, "BITNET_ISA": "naive"}

    def talk(data: bytes, *more: str) -> Done:
        return bitnet("run", path, "-cnv", "--temp", "0", "-n", "3", "-t", "1", "-q", *more, stdin=data, text=False, env=env)

    plain = talk(FILES["plain"])
    assert plain.returncode == 0 and plain.stdout
    assert talk(FILES["notepad"]).stdout == talk(LATIN, "--encoding", "latin-1").stdout == plain.stdout
    wrong = talk(b"first\n" + LATIN)
    assert wrong.returncode == 3 and f"byte {6 + PLACE}".encode() in wrong.stderr and b"Traceback" not in wrong.stderr
