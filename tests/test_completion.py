"""Shell completion: what Tab offers, by the protocol, and in real shells where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_cli.commands.bench.shapes import SHAPES
from bitnet_cli.options import bench, completion

from .screen import Screen, needs_tmux
from .test_imports import HEAVY, modules_after

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
RUN = "import sys; sys.argv = ['bitnet']; from bitnet_cli.cli import main; main()"
# How each says what it is to complete; zsh and fish get the words in one string.
ASKS = {
    "bash": lambda words: {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": " ".join(words)},
    "fish": lambda words: {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models/own.gguf, a file beside it, and one whose name needs quotes; no hub cache."""
    for name in ("models/own.gguf", "tinfoil.gguf", "ti me.gguf", "tiled/x", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("BITNET_MODELS", str(tmp_path / "nothing"))
    return tmp_path


def asked(shell: str, *words: str) -> list[str]:
    """Lines that a shell would get."""
    environment = os.environ | ASKS[shell](words) | {"_BITNET_COMPLETE": f"complete_{shell}", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_what_is_offered(folder: Path) -> None:
    assert asked("bash", "bitnet", "ru") == ["run"]
    assert asked("bash", "bitnet", "run", "--cache-t") == ["--cache-type"]
    assert asked("bash", "bitnet", "run", "--cache-type", "q") == ["q8", "q4", "q3"]
    assert asked("bash", "bitnet", "run", "-m", "ti") == ["tiny", "tiny-a4.8", "tinfoil.gguf", "tiled/"]
    assert asked("bash", "bitnet", "bench", "--shape", "2B-4T,1") == ["2B-4T,125M", "2B-4T,1B", "2B-4T,1.5B", "2B-4T,13B", "2B-4T,100B"]
    assert asked("bash", "bitnet", "run", "--chat-template", "fal") == ["falcon3", "falcon-e"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_help_beside_a_candidate_is_one_line(shell: str) -> None:
    """Wrapped, its second line was a candidate of its own."""
    lines = asked(shell, "bitnet", "run", "--")
    starts = {"zsh": ("_arguments", '"-'), "fish": ("-",)}[shell]
    assert len(lines) > 30
    assert [line for line in lines if not line.startswith(starts)] == []
    assert any("q8, q4, q3" in line and "every bit." in line for line in lines)


def test_models(folder: Path) -> None:
    """Names first. Where there is none, the shell is left to complete files: quotes, `~` and folders are its business."""
    assert completion.model("") == ["tiny", "tiny-a4.8", "own", "tinfoil.gguf", "models/", "tiled/"]
    assert completion.model("ow") == ["own"]
    assert completion.model("tinf") == completion.model("models/") == completion.model("~/") == []


def test_lists() -> None:
    assert completion.several("f32", "f16")("") == ["f32", "f16"]
    assert completion.several("f32", "f16")("f32,f") == ["f32,f16"]
    assert tuple(SHAPES) == bench.SHAPES


def test_a_tab_imports_nothing_heavy(folder: Path) -> None:
    ask = {"COMP_WORDS": "bitnet run -m ti", "COMP_CWORD": "3", "_BITNET_COMPLETE": "complete_bash"}
    loaded = modules_after(f"import os; os.environ.update({ask}); {RUN}")
    assert "bitnet_cli" in loaded
    assert loaded & HEAVY == {"huggingface_hub"}  # of which only the module is read that says where its cache is


@pytest.mark.parametrize("shell", list(SHELLS))
@needs_tmux
def test_in_a_real_shell(shell: str, folder: Path) -> None:
    """Tab after the beginning of an option, of one of its values and of a name, with the script that --show-completion prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if not (BIN / "bitnet").exists():
        pytest.skip("the command is not installed in this environment")
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "TERM": "screen", "LANG": "C.UTF-8"}
    # `--show-completion SHELL` exists only where the shell is not detected; here it is, from the parent process.
    script = subprocess.run([shell, "-c", "bitnet --show-completion; true"], env=environment, capture_output=True, text=True, check=True)
    (folder / "script").write_text(("autoload -Uz compinit; compinit -u\n" if shell == "zsh" else "") + script.stdout)
    values = {"PATH": environment["PATH"], "HOME": str(folder), "HF_HOME": environment["HF_HOME"]}
    screen = Screen(SHELLS[shell], folder, columns=100, **values)
    try:
        two = "(math 1+1)" if shell == "fish" else "$((1 + 1))"
        screen.line(f". ./script; echo ready-{two}")
        screen.wait("ready-2")
        for typed, completed in (("bitnet run --mirostat-t", "--mirostat-tau"), ("3 --cache-type f1", "f16"), (" -m tiny-", "tiny-a4.8")):
            screen.keys(typed, "Tab")
            screen.wait(completed)
    finally:
        screen.close()
