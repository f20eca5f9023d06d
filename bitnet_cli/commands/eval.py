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
from bitnet_cli.commands.opening import Options, open_model
from bitnet_cli.commands.reporting import Reporter, print_json
from bitnet_cli.errors import BitnetError, UsageError


class Asked(NamedTuple):
    """tasks by name; limit: items of each, 0 for all; fewshot: examples before each, -1 as the task says; chat: in the chat format."""

    tasks: Sequence[str]
    limit: int = 0
    fewshot: int = -1
    chat: bool = False


def evaluate(model: str | None, asked: Asked, *, ctx_size: int, threads: int, samples: Path | None, as_json: bool, quiet: bool) -> None:
    """Run the tasks and print what they found; see options/ for the options."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval.tasks import TaskManager

        from bitnet_cli.evaluation.harness import TASKS
    except ImportError as error:
        raise UsageError(f"eval needs {error.name}: pip install 'bitnet-cli[eval]'") from None
    manager = TaskManager(include_path=str(TASKS))
    ours = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
    if not asked.tasks:
        raise UsageError(f"--tasks: name some; {ours} use data that is installed, those of the harness download theirs")
    missing = [task for task in asked.tasks if task not in manager.all_tasks]
    if missing:
        raise UsageError(f"--tasks {missing[0]}: no such task; {ours} are here, `lm_eval ls tasks` lists those of the harness")
    with Model(open_model(model, Options(ctx_size, threads), quiet)) as opened:
        found = run(opened, asked, manager, Reporter(quiet))
    if samples is not None:
        write_samples(samples, found.get("samples", {}))
    rows = rows_of(found)
    if as_json:
        print_json({"model": opened.path.name, "context": opened.context, "results": rows})
        return
    for row in rows:
        spread = "" if row["error"] is None else f" ± {row['error']:.4f}"
        print(f"{row['task']:<24} {row['metric']:<12} {row['value']:.4f}{spread}  ({row['items']} items)")  # noqa: T201


def run(opened: Model, asked: Asked, manager: Any, report: Reporter) -> dict[str, Any]:
    """The harness' own result. BitnetError: a task's data cannot be had."""
    from lm_eval import simple_evaluate

    from bitnet_cli.evaluation.harness import BitnetLM

    with report.counting("evaluating", "requests") as progress, contextlib.redirect_stdout(sys.stderr):
        try:
            found: dict[str, Any] = simple_evaluate(
                model=BitnetLM(opened, progress),
                tasks=list(asked.tasks),
                num_fewshot=None if asked.fewshot < 0 else asked.fewshot,
                limit=asked.limit or None,
                apply_chat_template=asked.chat,
                task_manager=manager,
                bootstrap_iters=100,  # for errors of metrics that are no means
                log_samples=True,
                verbosity=None,
            )
        except (OSError, ModuleNotFoundError) as error:
            raise BitnetError(f"the data of a task cannot be had: {error}") from None
    return found


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Task, metric, value, standard error (None where the harness has none), number of items."""
    rows = []
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            metric, _, filter_ = name.partition(",")
            if metric in ("alias", "name", "sample_len") or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_}")
            items = found["n-samples"].get(task, {}).get("effective", 0)
            rows.append(
                {"task": task, "metric": metric, "value": value, "error": error if isinstance(error, float) else None, "items": items}
            )
    return rows


def write_samples(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    """Every item with what the model said of it."""
    with path.open("w", encoding="utf-8") as file:
        for task, items in samples.items():
            for item in items:
                file.write(json.dumps({"task": task, **item}, default=str) + "\n")
