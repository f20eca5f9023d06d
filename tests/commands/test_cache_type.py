"""`--cache-type` of run and perplexity; the naive kernels quantise as the others do."""

import json
import os
from pathlib import Path

import pytest

from .. import command
from ..command import Done
from ..model.builder import random_model, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cache") / "model.gguf", random_model(seed=7, tied=False))


def bitnet(*arguments: str, text: bytes = b"") -> Done:
    return command.bitnet(*arguments, stdin=text, text=False, env={**os.environ, "BITNET_ISA": "naive"})


def test_perplexity_with_each(model: Path) -> None:
    """f32 without the option; the others differ a little, the coarser the more."""
    text = bytes(range(97, 123)) * 2
    results = {}
    for kind in ("", "f32", "q8", "q4", "q3"):
        done = bitnet("perplexity", "-m", str(model), "-c", "64", "--json", "-q", *(["--cache-type", kind] if kind else []), text=text)
        assert (done.returncode, done.stderr) == (0, b""), kind
        results[kind] = json.loads(done.stdout)["nats"]
    assert results[""] == results["f32"]
    assert len(set(results.values())) == 4
    assert abs(results["q8"] / results["f32"] - 1) < 0.01


def test_run_with_each(model: Path) -> None:
    for kind in ("q8", "q4", "q3"):
        done = bitnet("run", "-m", str(model), "-p", "ab", "-n", "4", "--temp", "0", "-t", "1", "--cache-type", kind)
        assert done.returncode == 0, done.stderr
        assert b"4 new tokens" in done.stderr


@pytest.mark.parametrize("name", ["run", "perplexity"])
def test_an_unknown_type(model: Path, name: str) -> None:
    done = bitnet(name, "-m", str(model), "--cache-type", "q5", text=b"ab")
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"q5" in done.stderr
