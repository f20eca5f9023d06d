"""`bitnet list`, `pull`, `show` and `rm`, and `run -hf`: with a hub on this machine, and a model folder of its own for each test."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL

from .hub_server import Hub, Repo, serve

Bitnet = Callable[..., Any]
NAME = "tester/ready-gguf"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as server:
        data = EMBEDDED_MODEL.read_bytes()
        server.repos[NAME] = Repo({"ggml-model-i2_s.gguf": data, "model-TQ2_0.gguf": data[:-1], "README.md": b"x"})
        yield server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder; the model folder is `user` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNET_MODELS", str(tmp_path / "user"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


@pytest.fixture
def online(bitnet: Bitnet, hub: Hub, place: Path) -> Bitnet:
    """The command in a process that knows this hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "hf"), "BITNET_ISA": "naive"}
    return lambda *words: bitnet(*words, env=env, cwd=place, process=True)


def test_pull_and_what_follows(online: Bitnet, hub: Hub, place: Path, refused: Callable[..., None]) -> None:
    pulled = place / "user" / NAME / "ggml-model-i2_s.gguf"
    refused(online("run", NAME, "-p", "a"), 2, f"`bitnet pull {NAME}` gets it")  # a script's `run` is no consent
    assert hub.fetched() == []
    done = online("pull", NAME)
    assert (done.returncode, done.stdout) == (0, f"{pulled}\n") and "downloading ggml-model-i2_s.gguf, 3.45 MB" in done.stderr
    assert pulled.read_bytes() == EMBEDDED_MODEL.read_bytes() and not pulled.is_symlink()
    assert sorted(path.name for path in (place / "user").rglob("*")) == ["ggml-model-i2_s.gguf", "ready-gguf", "tester"]
    again = online("pull", NAME)
    assert again.stdout == done.stdout and "is here already" in again.stderr and hub.fetched() == ["ggml-model-i2_s.gguf"]
    shutil.rmtree(place / "user")
    by_address = online("pull", f"{hub.url}/{NAME}/resolve/main/model-TQ2_0.gguf", "-q")
    assert (by_address.returncode, by_address.stderr) == (0, "") and by_address.stdout.endswith("model-TQ2_0.gguf\n")
    refused(online("pull", f"{NAME}:q4_0", "-q"), 2, "has no GGUF file q4_0", "model-TQ2_0.gguf")


def test_hf_as_in_llama_cpp(online: Bitnet, hub: Hub, refused: Callable[..., None]) -> None:
    """Downloads without asking, and only once; a word of the file's name, or with -hff the name itself."""
    for words in (("-hf", f"{NAME}:i2_s"), ("-hf", NAME, "-hff", "ggml-model-i2_s.gguf")):
        done = online("run", *words, "-p", "And", "-n", "1", "-t", "1")
        assert done.returncode == 0 and done.stdout, done.stderr
    assert hub.fetched() == ["ggml-model-i2_s.gguf"]
    refused(online("run", "-hff", "x.gguf", "-p", "a"), 2, "-hf")
    refused(online("run", "-hf", "nothing", "-p", "a"), 2, "OWNER/NAME:QUANT")


def test_pull_converts(online: Bitnet, hub: Hub, folders: dict[str, Path], place: Path) -> None:
    hub.repos["tester/tiny-bitnet"] = Repo({path.name: path.read_bytes() for path in sorted(folders["C"].iterdir())})
    done = online("pull", "tester/tiny-bitnet", "-q")
    assert (done.returncode, done.stdout) == (0, f"{place / 'user' / 'tiny-bitnet.gguf'}\n"), done.stderr


def test_list_show_rm(bitnet: Bitnet, refused: Callable[..., None], place: Path) -> None:
    for path in ("user/mine.gguf", f"user/{NAME}/a.gguf", "models/theirs.gguf", "mine.gguf", "outside.gguf"):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMBEDDED_MODEL, place / path)
    (place / "user" / "linked.gguf").symlink_to(place / "outside.gguf")
    listed = {one["name"]: one["source"] for one in json.loads(bitnet("list", "--json").stdout)["models"]}
    assert listed == {"tiny": "embedded", "tiny-a4.8": "embedded", "linked": "user", "mine": "user", NAME: "user", "theirs": "models"}
    assert "5.9 MB" not in bitnet("list").stdout and "user" in bitnet("list").stdout
    shown = bitnet("show", "mine").stdout
    assert str(place / "user" / "mine.gguf") in shown and "in your model folder" in shown and "bitnet-b1.58" in shown
    assert json.loads(bitnet("show", "tiny", "--json").stdout)
    for name, words in (
        ("tiny", "part of the program"),
        ("theirs", "not in your model folder"),
        ("./mine.gguf", "no paths"),
        ("no", "no such model"),
    ):
        refused(bitnet("rm", "mine", name), 2, words)
    assert (place / "user" / "mine.gguf").exists()  # nothing is removed where one cannot be
    done = bitnet("rm", "mine", NAME, "linked")
    assert (done.returncode, done.stderr.count("removed, 3.45 MB")) == (0, 3)
    assert list((place / "user").iterdir()) == []
    assert all((place / path).exists() for path in ("models/theirs.gguf", "mine.gguf", "outside.gguf"))


def test_rm_stays_in_its_folder(bitnet: Bitnet, refused: Callable[..., None], place: Path) -> None:
    """Not through a link to another folder, and not in the hub's cache."""
    (place / "other" / "name").mkdir(parents=True)
    shutil.copy(EMBEDDED_MODEL, place / "other" / "name" / "a.gguf")
    (place / "user").mkdir()
    (place / "user" / "owner").symlink_to(place / "other")
    refused(bitnet("rm", "owner/name"), 2, "not in your model folder")
    assert (place / "other" / "name" / "a.gguf").exists()


def test_conversions_land_in_the_folder(bitnet: Bitnet, folders: dict[str, Path], place: Path) -> None:
    """In the user's; in models/ where there is one, as in a clone of this project."""
    assert bitnet("convert", folders["C"], "-q").returncode == 0
    assert [path.suffix for path in (place / "user").iterdir()] == [".gguf"]
    (place / "models").mkdir()
    assert bitnet("convert", folders["C"], "-q").returncode == 0
    assert [path.suffix for path in (place / "models").iterdir()] == [".gguf"]
    assert bitnet("run", folders["C"].name, "-p", "a", "-n", "1", "-q").returncode == 0
