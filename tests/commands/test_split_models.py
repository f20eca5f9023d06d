"""Split models in every command that takes a GGUF file, and in the Python API: the same as the model in one file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli import load
from bitnet_cli.checkpoint.hub import Repository
from bitnet_cli.commands.bench.rows import file_hash
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.opening import Options, open_model

from ..gguf_file.splitting import split
from .hub_server import Repo, serve

PROMPT = "And the king said"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split(EMBEDDED_MODEL, tmp_path_factory.mktemp("split"), [4, 20], "tiny3")


def test_run_and_perplexity(bitnet: Callable[..., Any], parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("In the beginning God created the heaven and the earth. " * 4)
    for command in (["run", "-p", PROMPT, "-n", "8", "--temp", "0", "-q"], ["perplexity", "-f", tmp_path / "text.txt", "--json", "-q"]):
        whole = bitnet(*command, "-m", EMBEDDED_MODEL, check=True)
        for model in (parts[0], parts[2], parts[0].parent):
            done = bitnet(*command, "-m", model)
            assert done.returncode == 0, done.stderr
            if "--json" in command:
                assert json.loads(done.stdout)["perplexity"] == json.loads(whole.stdout)["perplexity"]
            else:
                assert done.stdout == whole.stdout


def test_from_python(parts: list[Path]) -> None:
    with load(EMBEDDED_MODEL) as whole, load(parts[1]) as model:
        assert list(model.generate(PROMPT, max_tokens=8, temperature=0)) == list(whole.generate(PROMPT, max_tokens=8, temperature=0))


def test_inspect(bitnet: Callable[..., Any], parts: list[Path]) -> None:
    facts = json.loads(bitnet("inspect", parts[1], "--check", "--json", check=True).stdout)
    whole = json.loads(bitnet("inspect", EMBEDDED_MODEL, "--check", "--json", check=True).stdout)
    assert facts["files"] == [{"path": str(path), "bytes": path.stat().st_size} for path in parts]
    same = ["weights", "parts", "types", "zeros", "i2_s_order", "tokenizer", "commands", "check", "metadata"]
    assert {key: facts[key] for key in same} == {key: whole[key] for key in same}
    for row, other in zip(facts["tensors"], whole["tensors"], strict=True):
        assert (row["name"], row["sha256"]) == (other["name"], other["sha256"])
        raw = parts[row["file"]].read_bytes()[row["offset"] : row["offset"] + row["bytes"]]
        at = other["offset"]
        assert raw == EMBEDDED_MODEL.read_bytes()[at : at + other["bytes"]]
    assert "3, of " in bitnet("inspect", parts[0], check=True).stdout


def test_quantize_writes_one_file(parts: list[Path], tmp_path: Path) -> None:
    quantize(parts[2], tmp_path / "out.gguf", quiet=True)
    assert (tmp_path / "out.gguf").read_bytes() == EMBEDDED_MODEL.read_bytes()
    for part in parts:
        with pytest.raises(UsageError, match="is the input file"):
            quantize(parts[0], part, force=True, quiet=True)


def test_a_missing_part_is_named_everywhere(
    bitnet: Callable[..., Any], refused: Callable[..., None], parts: list[Path], tmp_path: Path
) -> None:
    first = tmp_path / parts[0].name
    shutil.copy(parts[0], first)
    shutil.copy(parts[2], tmp_path)
    for command in (["run", "-p", "x", "-q"], ["inspect"], ["perplexity", "-q", "-f", __file__], ["bench", "-q"]):
        refused(bitnet(command[0], "-m", first, *command[1:]), 3, "tiny3-00002-of-00003.gguf: file: is missing: part 2 of 3")
    refused(bitnet("quantize", first, tmp_path / "out.gguf"), 3, "is missing: part 2 of 3")
    with pytest.raises(BadFileError, match="is missing: part 2 of 3"):
        load(first)


def test_a_prompt_cache_knows_every_part(parts: list[Path], tmp_path: Path) -> None:
    """The embedding is in the first; a change in the last is another model."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in parts]

    def fingerprint(path: Path) -> str:
        opened = open_model(path, Options(context=16, threads=1))
        opened.scheduler.close()
        return prompt_cache.fingerprint(opened)

    before = fingerprint(copies[0])
    assert before == fingerprint(copies[1]) == fingerprint(parts[0])
    raw = bytearray(copies[2].read_bytes())
    raw[-100] ^= 1
    copies[2].write_bytes(raw)
    assert fingerprint(copies[0]) != before


def test_the_hash_of_a_benchmark_is_that_of_the_files(parts: list[Path]) -> None:
    import hashlib

    with open_gguf(parts[1]) as file:
        digest, of = file_hash(file)
    assert digest == hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    assert of == "3 files, one after the other"


def test_all_parts_are_fetched_from_the_hub(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    names = [path.name.replace("tiny3", "m-i2_s") for path in parts]
    files = {name: path.read_bytes() for name, path in zip(names, parts, strict=True)}
    with serve() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as CI has it
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        hub.repos["tester/split"] = Repo(files | {"other.gguf": b"other"})
        repository = Repository("tester/split", cache_dir=tmp_path)
        repository._hub.HfApi.endpoint = hub.url
        ready = repository.ready_file()
        assert ready is not None and (ready.name, ready.size, ready.cached) == (names[0], sum(map(len, files.values())), False)
        with open_gguf(repository.fetch_ready(ready)) as file:
            assert len(file.files) == 3
        assert hub.fetched() == names
        ready = repository.ready_file()
        assert ready is not None and ready.cached
        hub.repos["tester/holey"] = Repo({name: data for name, data in files.items() if name != names[1]})
        with pytest.raises(BadFileError, match=r"m-i2_s-00002-of-00003\.gguf: is not in the repository"):
            Repository("tester/holey", cache_dir=tmp_path).ready_file()
