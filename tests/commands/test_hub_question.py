"""`bitnet run owner/name` of a model that is not on this computer: it asks on a terminal, and only there."""

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..model.chat_models import reciting_model
from ..screen import BITNET, Screen, needs_tmux
from .hub_server import Hub, Repo, serve

NAME = "tester/tiny-bitnet"


@pytest.fixture
def hub(folders: dict[str, Path]) -> Iterator[Hub]:
    """With a packed model, as files of Hugging Face's."""
    with serve() as server:
        server.repos[NAME] = Repo({path.name: path.read_bytes() for path in sorted(folders["C"].iterdir())})
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    """ask(NAME, ...): `bitnet run` on a terminal, in tmp_path; `times` one after the other, each with its exit code."""
    screens = []
    (tmp_path / "models").mkdir()

    def make(*arguments: str, times: int = 1) -> Screen:
        command = f"{shlex.join([*BITNET, 'run', '-p', 'x', '-st', '-n', '3', '--temp', '0', *arguments])}; echo code $?; "
        values = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        screens.append(Screen(["sh", "-c", f"trap : INT; {command * times}"], tmp_path, columns=150, **values))
        return screens[-1]

    yield make
    for screen in screens:
        screen.close()


@needs_tmux
def test_no(hub: Hub, ask: Callable[..., Screen], tmp_path: Path) -> None:
    """Anything but yes, the end of the input, Ctrl-C: nothing is fetched, and one line says how to get it."""
    screen = ask(NAME, times=4)
    for count, keys in enumerate((("n", "Enter"), ("maybe", "Enter"), ("C-d",)), 1):
        text = screen.wait(lambda text, count=count: text.count("[Y/n]") == count)
        assert f"{NAME} is not on this computer. Download" in text and "convert it into models?" in text
        screen.keys(*keys)
        screen.wait(lambda text, count=count: text.count(f"`bitnet pull {NAME}` gets it") == count)
    screen.wait(lambda text: text.count("[Y/n]") == 4)
    screen.keys("C-c")
    text = screen.wait("left with")
    assert [line for line in text.splitlines() if line.startswith("code")] == ["code 2"] * 3 + ["code 130"]
    assert hub.fetched() == [] and not any((tmp_path / "models").iterdir())


@needs_tmux
def test_yes_downloads_converts_and_runs(hub: Hub, ask: Callable[..., Screen], tmp_path: Path) -> None:
    """Enter says yes. The second time it is there, and nothing is asked."""
    screen = ask(NAME, times=2)
    screen.wait("[Y/n]")
    screen.keys("Enter")
    text = screen.wait("left with")
    assert text.count("[Y/n]") == 1 and text.count("code 0") == 2
    assert text.count("3 new tokens") == 2
    assert "model.safetensors" not in text and "%" not in text  # no bar is left behind
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny-bitnet.gguf"]
    assert hub.fetched().count("model.safetensors") == 1


@needs_tmux
def test_what_is_downloaded_is_only_converted(hub: Hub, ask: Callable[..., Screen], bitnet: Callable[..., Any], tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    bitnet("convert", NAME, "-o", "elsewhere.gguf", cwd=tmp_path, env=environment, check=True)
    screen = ask(NAME)
    screen.wait(f"{NAME} is downloaded but not converted. Convert it into models? [Y/n]")
    screen.keys("y", "Enter")
    assert "code 0" in screen.wait("left with")
    assert hub.fetched().count("model.safetensors") == 1


@needs_tmux
def test_a_file_that_is_ready_is_run_as_it_is(hub: Hub, ask: Callable[..., Screen], tmp_path: Path) -> None:
    """A repository with a GGUF file of I2_S weights: that one, no conversion."""
    model = reciting_model(tmp_path / "m.gguf", "Ready made. ")
    hub.repos["tester/ready-gguf"] = Repo({"ggml-model-i2_s.gguf": model.read_bytes(), "README.md": b"unwanted"})
    screen = ask("tester/ready-gguf")
    text = screen.wait("[Y/n]")
    assert "Download ggml-model-i2_s.gguf, " in text
    screen.keys("yes", "Enter")
    text = screen.wait("left with")
    assert "Ready made." in text and "code 0" in text
    assert hub.fetched() == ["ggml-model-i2_s.gguf"]
    assert (tmp_path / "models/tester/ready-gguf/ggml-model-i2_s.gguf").read_bytes() == model.read_bytes()


def test_in_a_pipe_nothing_is_asked(hub: Hub, bitnet: Callable[..., Any], refused: Callable[..., None], tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    refused(bitnet("run", NAME, "-p", "x", cwd=tmp_path, env=environment), 2, NAME, "is not on this computer", "`bitnet pull")
    assert hub.requests == []
