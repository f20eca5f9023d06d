"""Speeds from the benchmark programs of llama.cpp and its forks, given by path: llama-bench, llama-batched-bench, llama-sweep-bench.

In: a program, a model that it reads, and a Setup. Out: tokens/s by name, as compare_peers.py has them of every engine:

    prefill, decode               from an empty context
    prefill@2048, decode@2048     with so many tokens in the cache before
    together@8                    of all texts, where 8 decode at once

A program that lacks something (llama-bench of ik_llama.cpp has no depths; its llama-sweep-bench does that) ends with its own error.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Setup(NamedTuple):
    """What is measured: tokens of a prompt, decoded tokens, contexts that both begin at, numbers of texts that decode together."""

    threads: int
    prompt: int
    tokens: int
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = ()


Figures = dict[str, float]
SHORT = 16  # tokens of each text before texts decode together


def at_depth(name: str, depth: int) -> str:
    """The name of a figure at a depth."""
    return f"{name}@{depth}" if depth else name


def llama_bench(binary: Path, model: Path, setup: Setup) -> Figures:
    """One repetition's averages. llama.cpp's `-d`, of May 2025 and later, only where a depth is asked for."""
    depths = ["-d", ",".join(map(str, setup.depths))] if setup.depths != (0,) else []
    command = [*_begin(binary, model, setup), "-p", str(setup.prompt), "-n", str(setup.tokens), *depths, "-r", "1", "-o", "json"]
    rows = json.loads(_run(command).stdout)
    return {at_depth("decode" if row["n_gen"] else "prefill", row.get("n_depth", 0)): row["avg_ts"] for row in rows}


def batched_bench(binary: Path, model: Path, setup: Setup) -> Figures:
    """Texts of SHORT tokens and those that they decode, without a shared prompt."""
    room = max(setup.batches) * (SHORT + setup.tokens)
    command = [*_begin(binary, model, setup), "-c", str(room), "-npp", str(SHORT), "-ntg", str(setup.tokens)]
    command += ["-npl", ",".join(map(str, setup.batches)), "--output-format", "jsonl"]
    return {f"together@{row['pl']}": row["speed_tg"] for row in _json_lines(_run(command)) if "pl" in row}


def sweep_bench(binary: Path, model: Path, setup: Setup) -> Figures:
    """ik_llama.cpp's: a prompt of one micro-batch and decoded tokens, at each multiple of the micro-batch. ValueError: other depths."""
    if odd := [depth for depth in setup.depths if depth % setup.prompt]:
        raise ValueError(f"llama-sweep-bench measures at multiples of the prompt, {setup.prompt} tokens, not at {odd[0]}")
    room, size = max(setup.depths) + setup.prompt, str(setup.prompt)
    command = [*_begin(binary, model, setup), "-c", str(room), "-b", size, "-ub", size, "-n", str(setup.tokens)]
    figures = {}
    for row in _json_lines(_run([*command, "--output-format", "jsonl"])):
        if row.get("n_kv") in setup.depths and "pl" not in row:
            for name, key in (("prefill", "speed_pp"), ("decode", "speed_tg")):
                figures[at_depth(name, row["n_kv"])] = row[key]
    return figures


TOOLS = {"llama-bench": llama_bench, "llama-batched-bench": batched_bench, "llama-sweep-bench": sweep_bench}


def _begin(binary: Path, model: Path, setup: Setup) -> list[str]:
    return [str(binary), "-m", str(model), "-t", str(setup.threads)]


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=True, capture_output=True, text=True)


def _json_lines(done: "subprocess.CompletedProcess[str]") -> Iterator[dict[str, Any]]:
    """Objects, one a line, among lines of other things; forks write them to stdout, or as their log to stderr."""
    for line in (done.stdout + "\n" + done.stderr).splitlines():
        if line.startswith("{"):
            yield json.loads(line)
