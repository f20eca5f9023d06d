"""Options of `bitnet inspect`."""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    model: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="GGUF file or checkpoint folder. Without it, the small model in the package.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read all weights: every code and number must be usable. Exit 3 if not.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; with --check, a SHA-256 of every tensor.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Show what a model file holds, and which commands work on it."""
    from bitnet_cli.commands import inspect as command

    command.inspect(model, full=check, tensors=tensors, as_json=as_json, quiet=quiet)
