"""`bitnet batch`: a file of requests in OpenAI's batch format -> a file of answers; see serving/batch.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitnet_cli.commands.loading import Options, find_model, open_model
from bitnet_cli.commands.reporting import Reporter, lacks, say
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.gguf_file.split_names import model_name
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model.checks import DEFAULT_CONTEXT

if TYPE_CHECKING:
    from bitnet_cli.serving.batch import Output


class Running(NamedTuple):
    """How texts are computed, as in options/."""

    parallel: int
    ctx_size: int
    threads: int
    cache_type: str


def batch(source: Path, target: Path, model: str | None, running: Running, *, ray: bool, quiet: bool) -> None:
    """Answer the requests of `source` that have no answer in `target`; see options/ for the options."""
    try:
        from bitnet_cli.serving import batch as batches

        if ray:
            from bitnet_cli.serving import ray_batch  # noqa: F401 -- before anything is written
    except ImportError as error:
        raise lacks("batch", "ray" if (error.name or "").startswith("ray") else "serve", error) from None
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the file of requests")
    total = sum(1 for _ in batches.requests_of(source))
    output, report = batches.Output(target), Reporter(quiet)
    try:
        before = len(output.done)
        if before:
            report.note(f"{target} has {before} answers already")
        with report.counting("answering", "requests") as progress:
            told = (lambda done: progress(done, total)) if progress else (lambda _: None)
            failed = (_on_ray if ray else _here)(source, output, model, running, told, quiet)
    finally:
        output.close()
    if not quiet:
        say(f"bitnet: {len(output.done) - before} requests answered, {before} were already")
    if failed:
        raise BitnetError(f"{failed} of {total} requests failed; their answers say why")


def _options(running: Running, threads: int) -> Options:
    together = running.parallel * (running.ctx_size or DEFAULT_CONTEXT)
    return Options(running.ctx_size, threads, running.cache_type, cache_tokens=together)


def _here(source: Path, output: Output, model: str | None, running: Running, told: Callable[[int], None], quiet: bool) -> int:
    from bitnet_cli.serving import batch as batches
    from bitnet_cli.serving.models import Served
    from bitnet_cli.serving.worker import Worker

    opened = open_model(model, _options(running, running.threads), quiet)
    worker = Worker(opened, running.parallel)
    served = Served(model_name(find_model(model)), opened.path, 0, worker)
    failed = asyncio.run(batches.run(batches.requests_of(source), output, served, 2 * running.parallel, told))
    worker.close()
    return failed


def _on_ray(source: Path, output: Output, model: str | None, running: Running, told: Callable[[int], None], quiet: bool) -> int:
    from bitnet_cli.serving import batch as batches
    from bitnet_cli.serving import ray_batch

    options = _options(running, running.threads or physical_cores())
    opened = open_model(model, options, quiet)  # what is wrong with it is said here, once, and kernels are compiled with a word about it
    opened.scheduler.close()
    path = opened.path.resolve()
    return ray_batch.run(batches.requests_of(source), output, model_name(path), path, options, running.parallel, told)
