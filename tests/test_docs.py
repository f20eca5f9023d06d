"""What the documentation shows is run: Python examples, and every command line that needs no network. docs/cli.md is not stale."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL

from .command import bitnet

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Not run, and why.
ELSEWHERE = {
    r"microsoft/|OWNER/NAME|owner/name": "needs the hub",
    r"pip install|git clone|scripts/|\.ci/|pre-commit": "sets up, trains or tests",
    r"bitnet embed ": "needs an embedding model",
    r"bitnet serve": "does not end by itself",
    r"-cnv": "talks with a person",
    r"--shape (2B|[3-9]|[1-9]\d|1)": "takes minutes",
    r"bench report|bench compare": "needs results of earlier runs",
}


def blocks(path: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(path.read_text(encoding="utf-8")) if name == language]


def command_lines() -> list[str]:
    """Lines of the shell blocks that call `bitnet`, without their comments; each once."""
    lines = [
        line for name in ("README.md", "docs/cli.md", "docs/json.md") for block in blocks(ROOT / name, "sh") for line in block.splitlines()
    ]
    commands = [re.sub(r"\s+# .*", "", line) for line in lines]
    return [line for line in dict.fromkeys(commands) if re.search(r"\bbitnet ", line)]


def reason_not_to_run(line: str) -> str | None:
    return next((reason for pattern, reason in ELSEWHERE.items() if re.search(pattern, line)), None)


def loaded(name: str) -> ModuleType:
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("make_cli_docs")


def test_the_log_has_contents_and_what_code_cites_of_it() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- (\d{4}-\d\d-\d\d) \[(.+)\]\(#([a-z0-9-]+)\)$", text, re.M)
    there = re.findall(r'^<a id="([a-z0-9-]+)"></a>\n\n## (\d{4}-\d\d-\d\d) (.+)$', text, re.M)
    assert [(day, title, name) for name, day, title in there] == listed
    assert len(there) == len(re.findall(r"^## ", text, re.M)) == len({name for name, _, _ in there})
    sources = [path for folder in ("bitnet_cli", "kernels", "scripts", "tests", "docs") for path in (ROOT / folder).rglob("*.[pm][yd]")]
    cited = {name for path in sources for name in re.findall(r"docs/log\.md#([a-z0-9-]+)", path.read_text(encoding="utf-8"))}
    assert len(cited) > 10
    assert cited - {name for name, _, _ in there} - {"name"} == set()


def test_the_page_of_faults_names_tests_that_are_there() -> None:
    script = loaded("make_faults_docs")
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == script.page(), "stale: run python scripts/make_faults_docs.py"
    with pytest.raises(ValueError, match="no test"):
        script.location("hostile/gguf::no_such_test")


def test_the_page_of_commands_is_made_from_the_options(script: ModuleType) -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == script.page(), "stale: run python scripts/make_cli_docs.py"


def test_every_option_is_on_the_page() -> None:
    """Of those that `bitnet run --help` shows."""
    shown = subprocess.run([sys.executable, "-m", "bitnet_cli", "run", "--help"], capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z][a-z-]+[a-z]", shown)) - {"--help"}
    assert len(options) > 30
    assert {option for option in options if option not in page and not shown.count(option + "…")} == set()


def test_python_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """All of docs/python.md as one program."""
    names: dict[str, object] = {}
    for block in blocks(ROOT / "docs" / "python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "temperature is -1" in out
    assert "tokens/s" in out
    chat = re.search(r"(\d+) tokens were in the cache, (\d+) were computed", out)
    assert chat is not None and int(chat[1]) > int(chat[2]) > 5
    counts = [(int(a), int(b)) for a, b in re.findall(r"(\d+) tokens, (\d+) of them known", out)]
    assert [known for _, known in counts][1:] == [every for every, _ in counts][:-1]


@pytest.mark.parametrize("page", ["README.md", "docs/chat.md", "docs/json.md"])
def test_other_examples(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / page, "python")
    exec(compile(block, page, "exec"), {})
    assert len(capsys.readouterr().out) > 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the command lines name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "models").mkdir()
    for name in ("model.gguf", "models/model.gguf"):
        shutil.copy(EMBEDDED_MODEL, folder / name)
    (folder / "facts.json").write_text('{"type": "array", "items": {"enum": ["old", "wise"]}, "maxItems": 3}')
    for name in ("text.txt", "README.md"):
        (folder / name).write_text("And God said, Let there be light: and there was light. " * 12, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hf_folder(place: Path, models: ModuleType) -> Path:
    """path/to/hf-folder and path/to/folder: a checkpoint."""
    for name in ("hf-folder", "folder"):
        models.write_folder(place / "path" / "to" / name, models.FLAVOURS[0])
    return place


@pytest.mark.skipif(os.name != "posix", reason="command lines for a POSIX shell")
@pytest.mark.parametrize("line", [line for line in command_lines() if reason_not_to_run(line) is None])
def test_command_lines(line: str, hf_folder: Path) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    force = " --force" if re.search(r"bitnet (convert|quantize)", line) and "--dry-run" not in line else ""
    done = subprocess.run(line + force, shell=True, cwd=hf_folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # a pipe gets no control sequences


def test_the_page_for_newcomers() -> None:
    """Every command of ours in docs/coming-from.md is one, with options that it has."""
    from typer.main import get_command

    from bitnet_cli.cli import app

    group: Any = get_command(app)
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    found = re.findall(r"`(?:[^`|]*\| )?bitnet ([a-z]+)([^`]*)`", text)
    assert len(found) > 15
    for name, rest in found:
        command = group.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= known, (name, rest)


@pytest.mark.parametrize("seed", range(3))
def test_the_json_line_of_the_readme(seed: int) -> None:
    """What it prints is JSON, whatever is drawn."""
    line = next(line for line in command_lines() if "--json-schema" in line)
    done = bitnet(*shlex.split(line)[1:], "--seed", str(seed), "-q")
    assert done.returncode == 0 and isinstance(json.loads(done.stdout)["name"], str)


def test_most_command_lines_are_run() -> None:
    lines = command_lines()
    assert len(lines) >= 12
    assert sum(reason_not_to_run(line) is None for line in lines) >= len(lines) / 2
