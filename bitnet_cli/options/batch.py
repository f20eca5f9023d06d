"""Options of `bitnet batch`."""

from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.shared import CACHE_HELP, MODEL_HELP, CacheType


def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one a line, in OpenAI's batch format.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Answers, one a line. What it has already is not asked again.")],
    model: Annotated[str | None, typer.Option("-m", "--model", metavar="MODEL", help=MODEL_HELP, autocompletion=completion.model)] = None,
    parallel: Annotated[int, typer.Option("-np", "--parallel", min=1, max=64, help="Texts that are computed together at most.")] = 8,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Most tokens of a text; 0: 2048, or the model's if smaller.")] = 0,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f16,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Compute on a Ray cluster: RAY_ADDRESS's, else one on this machine. An engine for each -t of its CPUs."),
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Answer a file of requests, many at once; a run that was interrupted goes on where it was."""
    from bitnet_cli.commands import batch as command

    command.batch(source, target, model, command.Running(parallel, ctx_size, threads, cache_type.value), ray=ray, quiet=quiet)
