"""Options of `bitnet serve`."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options import completion
from bitnet_cli.options.groups import grouped
from bitnet_cli.options.shared import CACHE_HELP, MODEL_HELP, CacheType


class LogLevel(str, Enum):
    error = "error"
    warning = "warning"
    info = "info"


@dataclass(frozen=True)
class Place:
    """Where the server listens and who may ask."""

    host: Annotated[str, typer.Option("--host", help="Address to listen at. Any but a local one needs API keys.")] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: a free one, which is said.")] = 8080
    uds: Annotated[Path | None, typer.Option("--uds", help="Listen at this Unix socket instead.")] = None
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Keys that are accepted, one a line. Also: the variable BITNET_API_KEY.")
    ] = None
    allowed_host: Annotated[list[str] | None, typer.Option("--allowed-host", help="A name that this server has; may be repeated.")] = None
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="A site whose pages may ask, such as https://example.org; may be repeated.")
    ] = None


@dataclass(frozen=True)
class Running:
    """How texts are computed."""

    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Most tokens of a text; 0: 2048, or the model's if smaller.")] = 0
    parallel: Annotated[int, typer.Option("-np", "--parallel", min=1, max=64, help="Texts that are computed together at most.")] = 8
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f16
    cache_ram: Annotated[
        int,
        typer.Option(
            "--cache-ram",
            min=0,
            help="MiB of a model's KV cache, which keeps prompts for the next turn; 0: --parallel texts of --ctx-size.",
        ),
    ] = 0
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0
    max_ram: Annotated[int, typer.Option("--max-ram", min=0, help="MiB for all models together; 0: what is free.")] = 0
    sleep_idle: Annotated[
        int, typer.Option("--sleep-idle", min=0, help="Seconds without a request after which memory is given back; 0: never.")
    ] = 0
    timeout: Annotated[int, typer.Option("--timeout", min=1, help="Seconds that a request may take.")] = 600


@grouped
def serve(
    place: Place,
    running: Running,
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help=MODEL_HELP, autocompletion=completion.model)] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Name of a model for clients; once for each, in their order.")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="Numbers for Prometheus at /metrics.")] = False,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="What is said on stderr.")] = LogLevel.info,
) -> None:
    """Serve models over HTTP: OpenAI's API, Anthropic's messages, and a page to chat on at /."""
    from bitnet_cli.commands import serve as command

    where = command.Place(**vars(place))
    how = command.Running(**{**vars(running), "cache_type": running.cache_type.value})
    command.serve(models or [], where, how, aliases=alias or [], metrics=metrics, log_level=log_level.value)
