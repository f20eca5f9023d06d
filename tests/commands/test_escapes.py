"""Names, paths, keys, templates and texts of strangers: none of them drives the terminal, wherever it is printed."""

import ast
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_cli.cli import main
from bitnet_cli.commands.printing import Output
from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED
from bitnet_cli.errors import printable

# Colour, window title (OSC), a carriage return, an override and an isolate of the text's direction, CSI as one character of C1, DEL.
EVIL = "\x1b[31m\x1b]0;t\x07\r\u202e\u2066\x9b1m\x7f"
POSIX = pytest.mark.skipif(os.name != "posix", reason="such names of files are for POSIX")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """shown(*arguments): all that the command prints, which is printable."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["bitnet", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        output = "".join(capsys.readouterr())
        assert output and {c for c in output if not c.isprintable()} <= {"\n"}, output
        return output

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model under an evil name, with an evil name in it."""
    data = EMBEDDED[DEFAULT_MODEL].path.read_bytes()
    key = b"general.name"
    at = data.index(key) + len(key) + 4
    size = int.from_bytes(data[at : at + 8], "little")
    evil = (EVIL.encode() * size)[:size].decode("utf-8", "ignore").encode().ljust(size)
    path = tmp_path / f"m{EVIL}.gguf"
    path.write_bytes(data[: at + 8] + evil + data[at + 8 + size :])
    return path


@POSIX
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "{model}", "-p", "a", "-n", "1", "--verbose", "-t", "1"),
        ("run", "{model}", "-p", "a", "-n", "1", "--json", "-t", "1"),
        ("inspect", "{model}"),
        ("inspect", "{model}", "--json"),
        ("bench", "-m", "{model}", "-p", "8", "-n", "1", "-r", "1", "-t", "1"),
        ("quantize", "{model}", "{model}", "tq2_0"),
        ("embed", "-m", "{model}", "text"),
        ("perplexity", "-m", "{model}", "-f", "{evil}"),
    ],
)
def test_of_a_model(shown: Callable[..., str], model: Path, arguments: tuple[str, ...]) -> None:
    shown(*(argument.format(model=model, evil=model.with_name(EVIL)) for argument in arguments))


@POSIX
@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,),
        ("run", f"--{EVIL}"),
        ("run", "-n", EVIL),
        ("run", "--cache-type", EVIL),
        ("run", EVIL, "-p", "a"),
        ("run", "-f", EVIL),
        ("run", "-p", "a", "--regex", f"{EVIL}("),
        ("run", "-p", "a", "--json-schema", EVIL),
        ("run", "-p", "a", "--json-schema", f'{{"type": "{EVIL}"}}'),
        ("run", "-p", "a", "--stop", ""),
        ("inspect", EVIL),
        ("convert", EVIL),
        ("convert", "a/b", "--revision", EVIL),
        ("convert", "a/b", "--sha256", EVIL),
        ("convert", "a/b", "--token", EVIL),
        ("convert", ".", "-o", f"{EVIL}/x"),
        ("quantize", EVIL, EVIL, "tq2_0"),
        ("bench", "-m", EVIL),
        ("bench", "compare", EVIL, EVIL),
        ("bench", "--shape", EVIL),
        ("perplexity", "-f", EVIL),
        ("embed", "-m", EVIL, "a"),
    ],
)
def test_of_the_command_line(
    shown: Callable[..., str], arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shown(*arguments)


@POSIX
@pytest.mark.parametrize("where", ["architectures", "model_type", "hidden_act", "quantization_config"])
def test_of_a_checkpoint(shown: Callable[..., str], folders: dict[str, Path], tmp_path: Path, where: str) -> None:
    folder = tmp_path / f"f{EVIL}"
    shutil.copytree(folders["C"], folder)
    config = json.loads((folder / "config.json").read_text())
    config[where] = [EVIL] if where == "architectures" else {"quant_method": EVIL} if where == "quantization_config" else EVIL
    (folder / "config.json").write_text(json.dumps(config))
    shown("convert", folder, "-o", tmp_path / "x.gguf")
    shown("inspect", folder)


def test_model_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output = Output()
    output.echo(f"a{EVIL}\n\t")
    output.write(f"b{EVIL}\u200f")  # the mark of right-to-left text stays
    assert capsys.readouterr().out == "a[31m]0;t1m\n\tb[31m]0;t1m\u200f"


def test_what_is_printable() -> None:
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
        0xFEFF,
        0xE0041,
        0xDC80,
    ):
        assert "\\" in printable(chr(code)) and printable(chr(code)).isprintable()
    assert printable(printable(EVIL)) == printable(EVIL)
    assert printable("a\n\x1b", "\n") == "a\n\\x1b"


# Where something is written to a terminal: what commands say, errors, and model text.
WRITERS = {
    "bitnet_cli/cli.py": {"_fail"},
    "bitnet_cli/commands/reporting.py": {"put", "say"},
    "bitnet_cli/commands/printing.py": {"write"},
    "bitnet_cli/commands/chat/terminal.py": {"push", "finish"},
    "bitnet_cli/commands/chat/markdown.py": {"_write"},
    "bitnet_cli/commands/chat/reader.py": {"read"},  # a constant
    "bitnet_cli/commands/chat/talk.py": {"answer", "converse", "restore"},  # an empty line; what `terminal_safe` gives
    "bitnet_cli/text/chat/jinja_child.py": {"main"},  # to a pipe
}


def test_few_functions_write(python_files: dict[Path, ast.Module]) -> None:
    found: dict[str, set[str]] = {}
    for path, tree in python_files.items():
        if path.parts[0] not in ("bitnet_cli", "kernels"):
            continue
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            if calls & {"print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "os.write"}:
                found.setdefault(path.as_posix(), set()).add(function.name)
    assert found == WRITERS
