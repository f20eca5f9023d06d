"""Options of `bitnet list`, `pull`, `show` and `rm`: the models on this computer."""

from typing import Annotated

import typer

from bitnet_cli.options import completion


def list_models(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """List the models on this computer, with their sizes."""
    from bitnet_cli.commands import models

    models.list_models(as_json)


def pull(
    repository: Annotated[
        str,
        typer.Argument(metavar="REPO", help="OWNER/NAME on the hub, OWNER/NAME:QUANT or OWNER/NAME:FILE for a GGUF file, or an address."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Also if it is here already.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Download a model, and convert it if it needs that. Its path is printed."""
    from bitnet_cli.commands import pull as command

    command.pull(repository, again=force, quiet=quiet)


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or path of a model.", autocompletion=completion.model)],
    as_json: Annotated[bool, typer.Option("--json", help="What `bitnet inspect --json` prints.")] = False,
) -> None:
    """Show where a model is kept, and what it is."""
    from bitnet_cli.commands import models

    models.show(model, as_json)


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names of models in your model folder.", autocompletion=completion.model)
    ],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing.")] = False,
) -> None:
    """Delete models from your model folder; files anywhere else are left alone."""
    from bitnet_cli.commands import models

    models.remove(names, quiet)
