"""`bitnet batch`: a file of requests in OpenAI's batch format -> a file of answers; see serving/batch.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from bitnet_cli.commands.opening import Options, find_model, open_model
from bitnet_cli.commands.reporting import Reporter, lacks, say
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.gguf_file.split_names import model_name
from bitnet_cli.model.checks import DEFAULT_CONTEXT


class Running(NamedTuple):
    """How texts are computed, as in options/."""

    parallel: int
    ctx_size: int
    threads: int
    cache_type: str


def batch(source: Path, target: Path, model: str | None, running: Running, *, quiet: bool) -> None:
    """Answer the requests of `source` that have no answer in `target`; see options/ for the options."""
    try:
        from bitnet_cli.serving import batch as batches
        from bitnet_cli.serving.models import Served
        from bitnet_cli.serving.worker import Worker
    except ImportError as error:
        raise lacks("batch", "serve", error) from None
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
        together = running.parallel * (running.ctx_size or DEFAULT_CONTEXT)
        opened = open_model(model, Options(running.ctx_size, running.threads, running.cache_type, cache_tokens=together), quiet)
        served = Served(model_name(find_model(model)), opened.path, 0, Worker(opened, running.parallel))
        with report.counting("answering", "requests") as progress:
            told = (lambda done: progress(done, total)) if progress else (lambda _: None)
            failed = asyncio.run(batches.run(batches.requests_of(source), output, served, 2 * running.parallel, told))
        assert served.worker is not None
        served.worker.close()
    finally:
        output.close()
    if not quiet:
        say(f"bitnet: {len(output.done) - before} requests answered, {before} were already")
    if failed:
        raise BitnetError(f"{failed} of {total} requests failed; their answers say why")
