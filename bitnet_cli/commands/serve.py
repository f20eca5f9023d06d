"""`bitnet serve`: models -> a server; see serving/. What it says goes to stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitnet_cli.commands.compile_progress import compiling
from bitnet_cli.commands.loading import find_model
from bitnet_cli.commands.reporting import Reporter, lacks, say
from bitnet_cli.errors import BadFileError, UsageError, printable
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.split_names import model_name
from bitnet_cli.model import opening
from bitnet_cli.model.checks import DEFAULT_CONTEXT, check_text
from bitnet_cli.model.config import read_config
from bitnet_cli.model.opening import OpenModel, Options

if TYPE_CHECKING:
    from bitnet_cli.serving.app import Api
    from bitnet_cli.serving.guard import Rules
    from bitnet_cli.serving.metrics import Metrics
    from bitnet_cli.serving.models import Load, Served

KEY_VARIABLE = "BITNET_API_KEY"
SHORTEST_KEY = 8  # characters
LARGEST_FILE = 1 << 20  # bytes


class Place(NamedTuple):
    """Where the server listens and who may ask, as in options/."""

    host: str
    port: int
    uds: Path | None
    api_key_file: Path | None
    allowed_host: Sequence[str] | None
    cors_origin: Sequence[str] | None


class Running(NamedTuple):
    """How texts are computed, as in options/."""

    ctx_size: int
    parallel: int
    cache_type: str
    threads: int
    max_ram: int
    sleep_idle: int
    timeout: int
    cache_ram: int = 0


def serve(
    models: Sequence[str], place: Place, running: Running, *, aliases: Sequence[str] = (), metrics: bool = False, log_level: str = "info"
) -> None:
    """Serve until a signal comes; see options/ for the options."""
    try:
        from bitnet_cli.serving import server
        from bitnet_cli.serving.guard import Rules
        from bitnet_cli.serving.metrics import Metrics, Prometheus
    except ImportError as error:
        raise lacks("serve", "serve", error) from None
    rules = Rules(keys_of(place.api_key_file), place.allowed_host or (), origins_of(place.cors_origin or ()))
    if place.uds is None and not server.is_local(place.host) and not rules.keys:
        raise UsageError(
            f"--host {place.host} can be reached by others: give keys by --api-key-file or {KEY_VARIABLE}, or listen at 127.0.0.1"
        )
    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="bitnet: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its lines about itself
    served = served_of(models, aliases)
    api = api_of(served, running, rules, Prometheus() if metrics else Metrics())
    socket = server.listen_at(place.uds) if place.uds else server.listen(place.host, place.port)
    address = str(place.uds) if place.uds else f"http://{place.host}:{socket.getsockname()[1]}"
    try:
        server.serve(
            server.Server(api, lambda: say(f"bitnet: serving {', '.join(m.name for m in served)} at {address} (Ctrl-C ends)")), [socket]
        )
    finally:
        if place.uds:
            place.uds.unlink(missing_ok=True)


def api_of(served: Sequence[Served], running: Running, rules: Rules, metrics: Metrics) -> Api:
    """The server without its sockets; a model that is the only one is loaded."""
    from bitnet_cli.serving.app import Api, Settings
    from bitnet_cli.serving.models import Models
    from bitnet_cli.serving.worker import Worker

    memory = running.max_ram << 20 if running.max_ram else None
    models = Models(served, loader(running), lambda opened: Worker(opened, running.parallel), memory=memory, idle=running.sleep_idle)
    if len(served) == 1:
        models.preload()
    return Api(models, Settings(rules, running.parallel, float(running.timeout)), metrics)


def keys_of(path: Path | None) -> list[str]:
    """Keys of a file, one a line, and of the environment. UsageError: there is none in the file, or one that is too short to be one."""
    keys = []
    if path is not None:
        try:
            with path.open("rb") as file:
                text = file.read(LARGEST_FILE).decode("utf-8")
        except OSError as error:
            raise UsageError(f"--api-key-file {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BadFileError(path, "keys", "not UTF-8") from None
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not keys:
            raise UsageError(f"--api-key-file {path}: there is no key in it")
        if os.name == "posix" and path.stat().st_mode & 0o077:
            Reporter(False).warn(f"{path}: other users can read these keys; `chmod 600` changes that")
    keys += [key for key in (os.environ.get(KEY_VARIABLE, "").strip(),) if key]
    for key in keys:
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"an API key needs at least {SHORTEST_KEY} characters of ASCII without spaces")
    return keys


def origins_of(given: Sequence[str]) -> list[str]:
    """Sites as browsers name them: scheme and host. UsageError: something else."""
    for origin in given:
        scheme, found, host = origin.partition("://")
        if origin != "*" and not (found and scheme in ("http", "https") and host and "/" not in host.rstrip("/")):
            raise UsageError(f"--cors-origin {origin}: expected a site such as https://example.org, or *")
    return list(given)


def served_of(models: Sequence[str], aliases: Sequence[str]) -> list[Served]:
    """The models by their names for clients; what is wrong with a file is said now, not when it is asked for."""
    from bitnet_cli.serving.models import Served

    paths = [find_model(model) for model in models] or [find_model(None)]
    if len(aliases) > len(paths):
        raise UsageError(f"--alias is given {len(aliases)} times, for {len(paths)} models")
    names = [*aliases, *(model_name(path) for path in paths[len(aliases) :])]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two models are called {twice}; --alias gives them names")
    served = []
    for name, path in zip(names, paths, strict=True):
        with open_gguf(path) as gguf:
            check_text(gguf, read_config(gguf), embeds=True)
        served.append(Served(printable(name), path, int(path.stat().st_mtime)))
    return served


def loader(running: Running) -> Load:
    """What opens a model and makes it ready."""
    context = running.ctx_size or DEFAULT_CONTEXT
    tokens, memory = running.parallel * context, running.cache_ram << 20
    options = Options(running.ctx_size, running.threads, running.cache_type, cache_tokens=tokens, cache_bytes=memory)

    def load(path: Path) -> OpenModel:
        opened = opening.open_model(path, options, embeds=True)
        with compiling(False):
            opened.engine.start()
        return opened

    return load
