"""`bitnet eval`: tasks of lm-evaluation-harness over a model in this process. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.api import Model
from bitnet_cli.commands.loading import Options, open_model
from bitnet_cli.commands.reporting import Reporter, lacks, print_json, put
from bitnet_cli.errors import UsageError


class Asked(NamedTuple):
    """As evaluation.running.run takes it."""

    tasks: Sequence[str]
    limit: int = 0
    fewshot: int = -1
    chat: bool = False


def evaluate(model: str | None, asked: Asked, *, ctx_size: int, threads: int, samples: Path | None, as_json: bool, quiet: bool) -> None:
    """Run the tasks and print what they found; see options/ for the options."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from bitnet_cli.evaluation import running
    except ImportError as error:
        raise lacks("eval", "eval", error) from None
    manager, ours = running.tasks(), ", ".join(running.OURS)
    if not asked.tasks:
        raise UsageError(f"--tasks: name some; {ours} use data that is installed, those of the harness download theirs")
    missing = [task for task in asked.tasks if task not in manager.all_tasks]
    if missing:
        raise UsageError(f"--tasks {missing[0]}: no such task; {ours} are here, `lm_eval ls tasks` lists those of the harness")
    opened, bar = Model(open_model(model, Options(ctx_size, threads), quiet)), Reporter(quiet).counting("evaluating", "requests")
    with opened, bar as progress, contextlib.redirect_stdout(sys.stderr):
        found = running.run(opened, asked, manager, progress)
    if samples is not None:
        write_samples(samples, found.get("samples", {}))
    rows = running.rows_of(found)
    if as_json:
        print_json({"model": opened.path.name, "context": opened.context, "results": rows})
        return
    for row in rows:
        spread = "" if row["error"] is None else f" ± {row['error']:.4f}"
        put(f"{row['task']:<24} {row['metric']:<12} {row['value']:.4f}{spread}  ({row['items']} items)")


def write_samples(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    """Every item with what the model said of it."""
    with path.open("w", encoding="utf-8") as file:
        for task, items in samples.items():
            for item in items:
                file.write(json.dumps({"task": task, **item}, default=str) + "\n")
