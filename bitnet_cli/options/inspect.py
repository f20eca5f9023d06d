"""Options of `bitnet inspect`."""

from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.shared import MODEL_HELP, ModelOption


def inspect(
    model_argument: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=f"Checkpoint folder, or: {MODEL_HELP}", autocompletion=completion.model)
    ] = None,
    model: ModelOption = None,
    check: Annotated[bool, typer.Option("--check", help="Read all weights: every code and number must be usable. Exit 3 if not.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; with --check, a SHA-256 of every tensor.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Show what a model file holds, and which commands work on it."""
    from bitnet_cli.commands import inspect as command
    from bitnet_cli.commands.models import chosen

    command.inspect(chosen(model_argument, model), full=check, tensors=tensors, as_json=as_json, quiet=quiet)
