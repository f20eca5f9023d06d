"""`bitnet bench` as a process, on a small random model with the naive kernels: formats, keys, lists, Ctrl-C, bad input. Never a time."""

import csv
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.commands.bench.plan import make_plan
from bitnet_cli.commands.bench.rows import power_of
from bitnet_cli.errors import UsageError

from ...model.builder import Sizes, random_model, write_model

# What llama-bench writes for a CPU test, and tools that read its files look for.
LLAMA_BENCH = {
    *("build_commit", "build_number", "cpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params", "n_batch"),
    *("n_ubatch", "n_threads", "type_k", "type_v", "n_gpu_layers", "use_mmap", "embeddings", "n_prompt", "n_gen", "n_depth", "test_time"),
    *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
}
SMALL = ("-p", "16", "-n", "4", "-r", "2", "-t", "1", "-q")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bench") / "model.gguf", random_model(Sizes(), seed=5))


@pytest.fixture
def bench(bitnet: Callable[..., Any], model: Path) -> Callable[..., Any]:
    """bench("-p", "16", ...): on the model, by the naive kernels."""
    env = os.environ | {"BITNET_ISA": "naive"}
    return lambda *arguments, **options: bitnet("bench", "-m", model, *arguments, env=env, **options)


def test_json(bench: Callable[..., Any], model: Path) -> None:
    rows = json.loads(bench(*SMALL, "-d", "0,8", "-o", "json", check=True).stdout)
    assert [(row["test"], row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == [
        ("pp16", 16, 0, 0),
        ("pp16 @ d8", 16, 0, 8),
        ("tg4", 0, 4, 0),
        ("tg4 @ d8", 0, 4, 8),
    ]
    for row in rows:
        assert set(row) >= LLAMA_BENCH
        assert row["model_type"].endswith(" I2_S")  # the ternary type, whatever type the embedding is of
        assert (row["isa"], row["n_threads"], row["type_k"], row["model_filename"]) == ("naive", 1, "f16", str(model))
        tokens = row["n_prompt"] or row["n_gen"]
        assert row["samples_ts"] == pytest.approx([1e9 * tokens / ns for ns in row["samples_ns"]])
        assert row["median_ts"] == statistics.median(row["samples_ts"])
        assert row["avg_ns"] == round(statistics.mean(row["samples_ns"]))
        assert row["stddev_ns"] == round(statistics.stdev(row["samples_ns"]))
        assert row["spread"] == pytest.approx(abs(row["samples_ns"][0] - row["samples_ns"][1]) / 2 / row["median_ns"])
        assert row["noisy"] == (row["spread"] > 0.1)
        assert [rung["method"] for rung in row["energy"]][-1] == "arithmetic"
        assert all(rung["note"] and rung["low"] <= rung["joules"] <= rung["high"] for rung in row["energy"])
        assert row["cpu_s_a_token"] > 0


def test_bytes_and_operations(bench: Callable[..., Any]) -> None:
    """By hand: 2 layers of 128 x (2 x 128 + 2 x 64 + 3 x 256) weights, a head of 260 x 128, 64 keys and values a layer and position."""
    row = json.loads(bench(*SMALL, "-p", "0", "-d", "8", "--cache-type", "f32", "-o", "jsonl", check=True).stdout)
    weights = 2 * 128 * (2 * 128 + 2 * 64 + 3 * 256)
    assert row["ternary_bytes_a_token"] == weights / 4  # the naive kernels skip nothing
    assert row["head_bytes_a_token"] in (260 * 128 * 2, 260 * 128 * 4)  # F16 or F32
    assert row["kv_bytes_a_token"] == pytest.approx((8 + 1 + 1) * 2 * 2 * 64 * 4)
    assert row["ternary_ops_a_token"] == 2 * weights
    assert row["head_ops_a_token"] == 2 * 260 * 128
    assert row["attention_ops_a_token"] == 4 * 128 * 2 * (8 + 2.5)
    assert row["bytes_a_token"] == pytest.approx(sum(row[f"{part}_bytes_a_token"] for part in ("ternary", "head", "kv")))


@pytest.mark.slow
def test_other_formats(bench: Callable[..., Any], tmp_path: Path) -> None:
    kept = tmp_path / "rows.json"
    done = bench(*SMALL, "-t", "1,2", "--cache-type", "f16,q8", "-o", "csv", "--save", kept, check=True)
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["n_threads"], row["type_k"], row["test"]) for row in table] == [
        (threads, kind, test) for threads in "12" for kind in ("f16", "q8") for test in ("pp16", "tg4")
    ]
    assert len(json.loads(table[0]["samples_ns"])) == 2
    assert [row["test"] for row in json.loads(kept.read_text())] == [row["test"] for row in table]
    lines = bench(*SMALL, "-o", "md", check=True).stdout.splitlines()
    assert lines[0] == "| model | size | params | backend | threads | type_k | weights | test | t/s |"
    assert len(lines) == 4 and "±" in lines[2]


def test_table(bench: Callable[..., Any]) -> None:
    done = bench("-p", "16", "-n", "4", "-r", "2", "-t", "1", "--tdp", "100", "--tdp-cpus", "8", "--watts", "30", check=True)
    for words in ("pp16", "tg4", "layers", "TDP model, J/token", "30 W as given", "arithmetic only", "sha256"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_the_embedded_model_and_a_model_as_first_word(bitnet: Callable[..., Any], model: Path) -> None:
    env = os.environ | {"BITNET_ISA": "naive"}
    rows = json.loads(bitnet("bench", "tiny", "-p", "0", "-n", "1", "-r", "1", "-o", "json", "-q", env=env, check=True).stdout)
    assert (rows[0]["tokens"], rows[0]["spread"], rows[0]["noisy"]) == ("text", None, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": "0", "gen": "0"}, "nothing"),
        ({"prompt": "1,x"}, "-p 1,x: expected numbers"),
        ({"gen": "-3"}, "-n -3"),
        ({"threads": "257"}, "-t 257: expected numbers from 0 to 256"),
        ({"repeats": 0}, "-r 0"),
        ({"cache_type": "f16,q5"}, "--cache-type f16,q5: expected f32, f16"),
        ({"weights": "3"}, "--weights 3"),
        ({"activations": "a3"}, "--activations a3"),
    ],
)
def test_bad_lists(options: dict[str, Any], words: str) -> None:
    good = {
        "prompt": "1",
        "gen": "1",
        "depth": "0",
        "threads": "1",
        "cache_type": "f16",
        "weights": "auto",
        "activations": "auto",
        "top": "0",
    }
    with pytest.raises(UsageError, match=words):
        make_plan(**(good | {"repeats": 1, "warm_up": True, "cores": 1} | options))


@pytest.mark.parametrize(("watts", "tdp", "cpus"), [(-1.0, 0.0, 0), (float("nan"), 0.0, 0), (0.0, float("inf"), 0), (0.0, 0.0, 4)])
def test_bad_power(watts: float, tdp: float, cpus: int) -> None:
    with pytest.raises(UsageError, match="--tdp"):
        power_of(watts, tdp, cpus)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("-d", "60"), ("76 tokens", "64")), (("--save", "nowhere/x.json"), ("nowhere/x.json",)), (("-n", "x"), ("-n x",))],
)
def test_bad_input(bench: Callable[..., Any], refused: Callable[..., None], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(bench(*SMALL, *arguments), 2, *words)


def test_a_missing_file(bitnet: Callable[..., Any], refused: Callable[..., None]) -> None:
    refused(bitnet("bench", "-m", "missing.gguf"), 2, "missing.gguf")


INTERRUPTED = """
import signal, sys
from bitnet_cli.commands.bench.measure import Runner
sample, samples = Runner.sample, []
def interrupted(self, result):
    sample(self, result)
    samples.append(result)
    if len(samples) == 3:
        signal.raise_signal(signal.SIGINT)
Runner.sample = interrupted
from bitnet_cli.cli import main
main()
"""


def test_ctrl_c_prints_what_is_done(model: Path, tmp_path: Path) -> None:
    """After the third sample: two of the first test and one of the second, and the exit code is 130."""
    kept = tmp_path / "rows.json"
    arguments = ["bench", "-m", str(model), "-p", "16", "-n", "4", "-r", "5", "-t", "1", "--save", str(kept)]
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    done = subprocess.run(command, env=os.environ | {"BITNET_ISA": "naive"}, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "pp16" in done.stdout
    assert "Traceback" not in done.stderr
    assert [(row["test"], len(row["samples_ns"])) for row in json.loads(kept.read_text())] == [("pp16", 2), ("tg4", 1)]


@pytest.mark.slow
def test_many_texts_at_once(bitnet: Callable[..., Any], refused: Callable[..., None]) -> None:
    """By the names of llama-batched-bench."""
    done = bitnet("bench", "-m", "tiny", "-p", "12", "-n", "3", "-npl", "1,3", "-r", "1", "-o", "jsonl", "-q")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["pp"], row["tg"], row["pl"], row["n_kv"]) for row in rows] == [(12, 3, 1, 15), (12, 3, 3, 45)]
    for row in rows:
        assert row["t"] == pytest.approx(row["t_pp"] + row["t_tg"]) and row["speed"] == pytest.approx(row["n_kv"] / row["t"])
    table = bitnet("bench", "-m", "tiny", "-p", "12", "-n", "3", "-npl", "2", "-r", "1", "-q").stdout.splitlines()
    assert table[0].replace(" ", "") == "PP|TG|B|N_KV|T_PPs|S_PPt/s|T_TGs|S_TGt/s|Ts|St/s" and len(table) == 3
    for options in (("-npl", "0"), ("-npl", "2", "-n", "0"), ("-npl", "2", "--kernels")):
        refused(bitnet("bench", "-m", "tiny", *options, "-q"), 2, "-npl")
