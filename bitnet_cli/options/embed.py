"""Options of `bitnet embed`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.shared import ENCODING_HELP, MODEL_HELP


class Pooling(str, Enum):
    last = "last"
    mean = "mean"
    none = "none"


def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to embed; without any, the lines of stdin.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", metavar="MODEL", help=MODEL_HELP, autocompletion=completion.model)] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read texts from this file, one a line.")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help=ENCODING_HELP)] = None,
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Vector of the last token, mean of all, or one a token. Default: as the model says.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Divide each vector by its length.")] = True,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Put this before every text, such as 'query: '.")] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="For queries: the task in a sentence, put before as 'Instruct: TASK / Query: '.")
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Most tokens of a text; 0: 2048, or the model's if smaller.")] = 0,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a NumPy array (texts, dimensions), float32, to this .npy file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, instead of a JSON array a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Turn texts into vectors whose products tell how alike the texts are."""
    from bitnet_cli.commands import embed as command
    from bitnet_cli.commands.loading import Options

    command.embed(
        texts or [],
        model,
        Options(ctx_size, threads),
        file=file,
        encoding=encoding,
        prefix=command.prefix_of(prompt, instruction),
        pooling=pooling.value if pooling else None,
        normalize=normalize,
        output=command.Output(output, as_json, force, quiet),
    )
