"""`bitnet embed`: where vectors go, in which form, and the exit code for good input and bad.

The naive kernels do the work: they need not be compiled.
"""

import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.inspect import describe
from bitnet_cli.gguf_file.reader import open_gguf

from ..command import Done, bitnet
from ..model.builder import random_model, write_model
from ..model.embedding_models import write_folder

ENVIRONMENT = {**os.environ, "BITNET_ISA": "naive"}


@pytest.fixture(scope="module")
def model(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("embed")
    convert(write_folder(models, base / "hf", "qwen3"), base / "m.gguf", quiet=True)
    return base / "m.gguf"


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes text."""
    return write_model(tmp_path_factory.mktemp("embed") / "writer.gguf", random_model())


def embed(model: Path, *arguments: str | Path, stdin: str = "", command: str = "embed") -> Done:
    done = bitnet(command, "-m", model, *arguments, stdin=stdin, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def vectors(done: Done) -> np.ndarray:
    """The arrays on stdout, one a line."""
    assert done.returncode == 0, done.stderr
    return np.array([json.loads(line) for line in done.stdout.splitlines()], np.float32)


def refused(done: Done, code: int, *words: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith("bitnet: error: ") and all(word in done.stderr for word in words), done.stderr


def test_texts_from_arguments_a_file_and_a_pipe_are_the_same(model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("What is BitNet?\r\nin the\n\n")
    given = vectors(embed(model, "What is BitNet?", "in the", ""))
    assert given.shape == (3, 256)
    assert np.allclose(np.linalg.norm(given, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors(embed(model, "-f", lines)), given)  # an empty line is an empty text: lines and vectors stay in step
    assert np.array_equal(vectors(embed(model, stdin=lines.read_text())), given)


def test_one_json_object(model: Path) -> None:
    done = embed(model, "--json", "in the", "a", "--pooling", "mean", "--no-normalize")
    facts = json.loads(done.stdout)
    assert {k: facts[k] for k in ("model", "dimensions", "pooling", "normalized", "texts", "cut")} == {
        "model": "hf",
        "dimensions": 256,
        "pooling": "mean",
        "normalized": False,
        "texts": 2,
        "cut": 0,
    }
    assert len(facts["tokens"]) == 2 and np.array(facts["embeddings"]).shape == (2, 256)
    assert "2 texts" in done.stderr and "pooling mean, not normalized" in done.stderr


def test_an_npy_file_holds_the_same_numbers(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    done = embed(model, "-o", path, "in the", "thing", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    table = np.load(path)
    assert table.dtype == np.float32
    assert np.array_equal(table, vectors(embed(model, "in the", "thing")))
    refused(embed(model, "-o", path, "in"), 2, "exists already; use --force")
    assert json.loads(embed(model, "-o", path, "in", "--force", "--json").stdout)["output"] == str(path)
    assert np.load(path).shape == (1, 256)
    assert [item.name for item in tmp_path.iterdir()] == ["x.npy"]


def test_without_pooling_there_is_a_vector_a_token(model: Path, tmp_path: Path) -> None:
    facts = json.loads(embed(model, "--json", "--pooling", "none", "in the", "a").stdout)
    assert [len(text) for text in facts["embeddings"]] == facts["tokens"]
    last = vectors(embed(model, "in the", "a", "--pooling", "last"))
    assert np.array_equal(np.array([text[-1] for text in facts["embeddings"]], np.float32), last)
    embed(model, "--pooling", "none", "in the", "a", "-o", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (sum(facts["tokens"]), 256)


def test_prefixes(model: Path) -> None:
    assert np.array_equal(vectors(embed(model, "x", "--prompt", "query: ")), vectors(embed(model, "query: x")))
    queries = vectors(embed(model, "x", "--instruction", "Find the answer"))
    assert np.array_equal(queries, vectors(embed(model, "Instruct: Find the answer\nQuery: x")))
    refused(embed(model, "x", "--prompt", "a", "--instruction", "b"), 2, "not both")


def test_long_texts_are_cut_and_said_to_be(model: Path) -> None:
    done = embed(model, "abcdefgh", "ab", "-c", "5", "-q")
    assert done.stderr == "bitnet: warning: 1 of 2 texts have more than 5 tokens and were cut; -c up to 512 takes more\n"
    assert np.array_equal(vectors(done)[0], vectors(embed(model, "abcd"))[0])
    refused(embed(model, "a", "-c", "513"), 2, "trained for 1 to 512 tokens")


def test_what_cannot_be_done(model: Path, writer: Path, tmp_path: Path) -> None:
    refused(embed(model), 2, "no text")
    refused(embed(model, "a", "-f", tmp_path / "x"), 2, "not both")
    refused(embed(model, "-f", tmp_path / "none"), 2, "No such file")
    refused(embed(model, "a", "-o", tmp_path / "x.txt"), 2, ".npy")
    refused(embed(model, "a", "-o", tmp_path / "no" / "x.npy"), 2, "does not exist")
    refused(embed(model, "a", "-t", "-1"), 2, "-t is -1, expected a whole number, 0 or more")
    refused(embed(tmp_path / "none.gguf", "a"), 2, "none.gguf")
    refused(embed(writer, "a"), 2, "writer.gguf: says no pooling_type", "--pooling last or --pooling mean")
    assert vectors(embed(writer, "a", "--pooling", "last")).shape == (1, 128)


@pytest.mark.parametrize("command", ["run", "perplexity"])
def test_other_commands_name_this_one(model: Path, command: str) -> None:
    refused(embed(model, command=command, stdin="some text"), 4, "an embedding model: `bitnet embed`")


def test_inspect_lists_it(model: Path, writer: Path) -> None:
    with open_gguf(model) as file:
        works = {name: verdict["works"] for name, verdict in describe(file)["commands"].items()}
    assert works == {"run": False, "perplexity": False, "embed": True, "quantize": True}
    with open_gguf(writer) as file:
        verdict = describe(file)["commands"]["embed"]
    assert not verdict["works"] and "--pooling" in verdict["reason"]
