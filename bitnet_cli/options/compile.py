"""Options of `bitnet compile`."""

from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.shared import CACHE_HELP, CacheType


def compile_kernels(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Only what these models need. Default: what all published kinds need.",
            autocompletion=completion.model,
        ),
    ] = None,
    sets: Annotated[str, typer.Option("--isa", metavar="SET[,SET]", help="Instruction sets. Default: the one that is used here.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All instruction sets of this kind of CPU, also those that this one lacks.")] = False,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FOLDER", help="A folder for all users (BITNET_SHARED_CACHE_DIR), not your own cache."),
    ] = None,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f16,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Compile the kernels ahead, so that no first run does: for an image, or a machine that many use."""
    from bitnet_cli.commands import compile as command

    command.compile_kernels(models or [], sets, every, into, cache_type.value, quiet)
