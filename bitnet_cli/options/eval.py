"""Options of `bitnet eval`."""

from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options.shared import ModelArgument


def evaluate(
    model: ModelArgument = None,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks of lm-evaluation-harness or of this package, with commas between.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Items of each task; 0: all.")] = 0,
    num_fewshot: Annotated[int, typer.Option("--num-fewshot", min=-1, help="Examples before each item; -1: as the task says.")] = -1,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's chat format.")] = False,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Most tokens of a text; 0: 2048, or the model's if smaller.")] = 0,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Write every item with its answer to this file, one JSON a line.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Measure a model with lm-evaluation-harness: accuracy and its error, by task."""
    from bitnet_cli.commands import eval as command

    asked = command.Asked([task for task in tasks.split(",") if task], limit, num_fewshot, chat)
    command.evaluate(model, asked, ctx_size=ctx_size, threads=threads, samples=samples, as_json=as_json, quiet=quiet)
