"""The harness run over a model in this process, and its result as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from bitnet_cli.api import Model
from bitnet_cli.errors import BitnetError
from bitnet_cli.evaluation.harness import TASKS, BitnetLM

OURS = sorted(path.stem for path in TASKS.glob("*.yaml"))  # tasks whose data a package carries


class Asked(Protocol):
    """tasks by name; limit: items of each, 0 for all; fewshot: examples before each, -1 as the task says; chat: in the chat format."""

    @property
    def tasks(self) -> Sequence[str]: ...
    @property
    def limit(self) -> int: ...
    @property
    def fewshot(self) -> int: ...
    @property
    def chat(self) -> bool: ...


def tasks() -> TaskManager:
    """All tasks that there are by name, ours among them."""
    return TaskManager(include_path=str(TASKS))


def run(opened: Model, asked: Asked, manager: TaskManager, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """The harness' own result. progress: as BitnetLM. BitnetError: a task's data cannot be had."""
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
