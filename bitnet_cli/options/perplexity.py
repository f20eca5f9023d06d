"""Options of `bitnet perplexity`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options.shared import (
    ACTIVATIONS_HELP,
    CACHE_HELP,
    ENCODING_HELP,
    MMAP_HELP,
    QUERY_HELP,
    Activations,
    CacheType,
    ModelArgument,
    ModelOption,
    QueryType,
)

LIKE_HELP = "Compute what llama-perplexity does: windows of -c tokens (512), each begun anew, of each the tokens after its middle."


class Like(str, Enum):
    llama_cpp = "llama.cpp"


def perplexity(
    model_argument: ModelArgument = None,
    model: ModelOption = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="The text to score; without it, stdin.")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help=ENCODING_HELP)] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens a window; 0: 2048, or the model's if smaller.")] = 0,
    stride: Annotated[int, typer.Option("--stride", help="Tokens a window advances by; 0: the whole window.")] = 0,
    special: Annotated[bool, typer.Option("--special", help="Read control tokens in the text, such as <|endoftext|>.")] = False,
    like: Annotated[Like | None, typer.Option("--like", help=LIKE_HELP)] = None,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f32,
    activations: Annotated[Activations, typer.Option("--activations", help=ACTIVATIONS_HELP)] = Activations.auto,
    query_type: Annotated[QueryType, typer.Option("--query-type", help=QUERY_HELP)] = QueryType.f32,
    mmap: Annotated[bool, typer.Option("--mmap/--no-mmap", help=MMAP_HELP)] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Measure how well a model predicts a text."""
    from bitnet_cli.commands import perplexity as command
    from bitnet_cli.commands.loading import Options
    from bitnet_cli.commands.models import chosen

    options = Options(ctx_size, threads, cache_type.value, activations=activations.value, query_type=query_type.value, mapped=mmap)
    command.perplexity(
        chosen(model_argument, model),
        options,
        file=file,
        encoding=encoding,
        stride=stride,
        special=special,
        like=like.value if like else None,
        as_json=as_json,
        quiet=quiet,
    )
