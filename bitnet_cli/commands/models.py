"""Which model is meant, and which there are; `bitnet list`, `show` and `rm`. Nothing heavy is imported."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from bitnet_cli.checkpoint.hub_id import Wanted, wanted
from bitnet_cli.commands.reporting import byte_size, print_json, put, row, say
from bitnet_cli.errors import UsageError, printable
from bitnet_cli.gguf_file.split_names import parts_beside
from bitnet_cli.model.names import Listed, available, find, is_path, user_folder


def chosen(argument: str | None, option: str | None) -> str | None:
    """The model of the command line: MODEL or -m MODEL, not both; None: neither."""
    if argument is not None and option is not None:
        raise UsageError(f"give the model once: {argument} or -m {option}")
    return argument if argument is not None else option


def from_hub(repository: str | None, file: str | None) -> str | None:
    """What -hf and -hff mean, as a name. UsageError: no repository, or a file of none."""
    if repository is None:
        if file is not None:
            raise UsageError("-hff names a file of the repository that -hf names; give both")
        return None
    what = wanted(repository)
    if what is None or (what.tag and file):
        raise UsageError(f"-hf {repository}: expected OWNER/NAME, OWNER/NAME:QUANT, or OWNER/NAME with -hff FILE")
    return str(Wanted(what.name, file or what.tag))


def chosen_to_ask(argument: str | None, option: str | None, words: list[str]) -> tuple[str | None, str | None]:
    """The model, and the question of the command line: MODEL QUESTION, or -m MODEL QUESTION. None where there is none."""
    if option is not None:
        words = words if argument is None else [argument, *words]
    return argument if option is None else option, " ".join(words) if words else None


def list_models(as_json: bool) -> None:
    """`bitnet list`: every model that has a name here, on stdout."""
    models = available()
    if as_json:
        listed = [{"name": m.name, "source": m.source, "path": str(m.path), "bytes": m.size, "about": m.about or None} for m in models]
        print_json({"models": listed})
        return
    width = max(len(printable(m.name)) for m in models)
    for m in models:
        about = m.about or shlex.quote(str(m.path))
        put(f"{printable(m.name):<{width}}  {byte_size(m.size):>9}  {m.source:<8}  {printable(about)}")


def show(model: str, as_json: bool) -> None:
    """`bitnet show`: where a model is, how large, and what `bitnet inspect` says of it."""
    from bitnet_cli.commands.inspect import inspect

    path = find(model)
    if not as_json:
        listed = next((one for one in available() if one.path == path), None)
        row("name", printable(listed.name if listed else model))
        row(
            "kept",
            {"embedded": "in the program", "user": "in your model folder", "models": "in models/ here"}.get(_source(listed), "elsewhere"),
        )
    inspect(model, full=False, tensors=False, as_json=as_json, quiet=True)


def _source(listed: Listed | None) -> str:
    return listed.source if listed else ""


def remove(names: Sequence[str], quiet: bool = False) -> None:
    """`bitnet rm`: delete models in the user's folder, and nothing anywhere else. UsageError, before anything is deleted: no such one."""
    found = [(name, _removable(name)) for name in names]
    for name, path in found:
        parts = [part for part in parts_beside(path) if part.exists()] or [path]
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            part.unlink()
        for folder in (path.parent, path.parent.parent):  # owner/name, when it is empty
            if folder != user_folder() and user_folder() in folder.parents:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if not quiet:
            say(f"{printable(name)}: removed, {byte_size(size)}")


def _removable(name: str) -> Path:
    if is_path(name) and wanted(name) is None:
        raise UsageError(f"{name}: `bitnet rm` takes names of models in {user_folder()}, no paths")
    path = find(name)
    listed = next((one for one in available() if one.path == path), None)
    if listed is None or listed.source != "user" or user_folder().resolve() not in [path.parent.resolve(), *path.parent.resolve().parents]:
        where = {"embedded": "is part of the program", "hub": "is in the hub's cache, which is other programs' too: see `hf cache`"}
        raise UsageError(f"{name}: {where.get(_source(listed), f'is {path}, not in your model folder')}; `bitnet rm` leaves it")
    return path
