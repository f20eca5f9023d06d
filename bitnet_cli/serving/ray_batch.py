"""A batch on Ray Data: engines in processes of a cluster, and one that writes, here.

    requests without an answer ──> blocks ──> engines, one a process, as many as the cluster's CPUs allow ──> answers ──> Output

Ray starts a process that dies again, on another machine where its own is gone, and asks its blocks again. An answer may so come
twice: it is written once. That none is missing is looked at in the end. RAY_ADDRESS says which cluster, as everywhere with Ray; without
one it is a cluster of this machine, for this run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers of every cluster that it starts
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what a later version does to accelerators' variables

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from bitnet_cli.errors import BitnetError
from bitnet_cli.model import opening
from bitnet_cli.model.opening import Options
from bitnet_cli.serving.batch import Line, Output, answer
from bitnet_cli.serving.models import Served
from bitnet_cli.serving.worker import Worker

AT_ONCE = 2  # blocks that are with an engine, so that the next one's texts fill the places of those that are done
MOST_BLOCKS = 10_000  # of a batch: Ray keeps accounts of each


class Engine:
    """What a process of Ray's runs: a model, and the answers of one block of requests after another."""

    def __init__(self, name: str, path: str, options: Options, parallel: int):
        opened = opening.open_model(Path(path), options)
        opened.engine.start()
        self._model = Served(name, opened.path, 0, Worker(opened, parallel))

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        """{"line": a line's name, url and body as JSON} -> the same names, statuses, and bodies as JSON. Called by several threads."""
        lines = [Line(*json.loads(text)) for text in block["line"]]

        async def answers() -> list[tuple[int, dict[str, Any]]]:
            return await asyncio.gather(*(answer(line, self._model) for line in lines))

        found = asyncio.run(answers())
        return {
            "name": [line.name for line in lines],
            "status": [status for status, _ in found],
            "body": [json.dumps(body, ensure_ascii=False) for _, body in found],
        }


def run(
    requests: Iterator[Line], output: Output, name: str, path: Path, options: Options, parallel: int, progress: Callable[[int], None]
) -> int:
    """As batch.run, with engines of `options.threads` threads and `parallel` texts each; `path` is there on every machine.

    BitnetError: Ray, or a model somewhere in it, failed for good.
    """
    left = [{"line": json.dumps(line)} for line in requests if line.name not in output.done]
    if not left:
        return 0
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs of an error is in the exception too
    try:
        ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
        try:
            return _run(left, output, (name, str(path), options, parallel), progress)
        finally:
            ray.shutdown()
    except (RayError, ConnectionError, ValueError) as error:
        raise BitnetError(f"Ray: {_reason(error)}") from None


def _run(left: list[dict[str, str]], output: Output, engine: tuple[str, str, Options, int], progress: Callable[[int], None]) -> int:
    threads, parallel = engine[2].threads, engine[3]
    most = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
    context = DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    blocks = min(MOST_BLOCKS, -(-len(left) // (2 * parallel)))
    answers = ray.data.from_items(left, override_num_blocks=blocks).map_batches(
        Engine,
        fn_constructor_args=engine,
        batch_size=None,
        batch_format="numpy",
        num_cpus=threads,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=most,
            max_tasks_in_flight_per_actor=2 * AT_ONCE,
            max_concurrent_calls_per_actor=AT_ONCE,
            enable_true_multi_threading=True,
        ),
    )
    failed, expected = 0, {json.loads(row["line"])[0] for row in left}
    for block in answers.iter_batches(batch_size=None, batch_format="numpy"):
        # An answer that is there already is of a block that was asked again.
        new = [row for row in zip(block["name"], block["status"], block["body"], strict=True) if row[0] not in output.done]
        for left_of_block, (name, status, body) in zip(reversed(range(len(new))), new, strict=True):
            output.write(str(name), int(status), json.loads(body), sync=not left_of_block)
            failed += int(status != 200)
        progress(len(output.done))
    if missing := expected - output.done:
        raise BitnetError(f"{len(missing)} requests came back without an answer; the same command asks them again")
    return failed


def _reason(error: BaseException) -> str:
    """The last line of what Ray says, which is the exception at the bottom of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
