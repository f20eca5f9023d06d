"""What a user calls a model -> its file. Only the standard library is imported, so that shell completion is quick.

    model.gguf, path/to/model.gguf      a file
    path/to/folder                      a folder that holds one GGUF file
    tiny                                a model inside the package (EMBEDDED)
    name                                models/name.gguf
    owner/name                          a repository of the hub: models/name.gguf (converted), or a GGUF file of it in the hub's cache

The files of a split model, `name-00001-of-00003.gguf` and so on, are one model, called by the name or by any of them.
Nothing is downloaded here: `find` raises NotHereError for a repository that is not on this computer, or not converted.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitnet_cli.checkpoint.hub_id import HUB_ID, READY
from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.gguf_file.split_names import first_of_each, model_name, parts_beside

MODELS = Path("models")  # where conversions and downloads land by default
SUFFIX = ".gguf"
WEIGHTS = ".safetensors"


class NotHereError(UsageError):
    """A repository of the hub that cannot be run as it is. `downloaded`: its weights are in the hub's cache, and need `bitnet convert`."""

    def __init__(self, name: str, downloaded: bool):
        self.name, self.downloaded = name, downloaded
        state = "is downloaded but not converted" if downloaded else "is not on this computer"
        super().__init__(f"{name}: {state}; `bitnet convert {name}` {'does that' if downloaded else 'downloads and converts it'}")


class Listed(NamedTuple):
    """A model on this computer: what `-m` takes, where it came from (`embedded`, `models` or `hub`), its file and size in bytes."""

    name: str
    source: str
    path: Path
    size: int
    about: str = ""


def find(reference: str | os.PathLike[str] | None) -> Path:
    """The GGUF file that is meant; None: the default embedded model. UsageError, BadFileError: there is none, or several."""
    if reference is None:
        return EMBEDDED[DEFAULT_MODEL].path
    text = os.fspath(reference)
    path = Path(text).expanduser()
    if text in EMBEDDED and not path.is_file():
        return EMBEDDED[text].path
    if path.is_dir():
        return _only_one(path)
    if path.exists() or path.suffix.lower() == SUFFIX:
        return path  # a file that is not there is refused by name when it is opened
    named = _in_models(path.name)
    if HUB_ID.fullmatch(text):
        if named.is_file():
            return named
        folder = _snapshot(text)
        ready = _ready(folder) if folder else None
        if ready:
            return ready
        raise NotHereError(text, downloaded=bool(folder and any(folder.glob(f"*{WEIGHTS}"))))
    if path.name == text:
        if named.is_file():
            return named
        raise UsageError(f"{text}: no such model here: no file, none of {', '.join(EMBEDDED)}, and no {named}; see `bitnet run --list`")
    return path


def _in_models(name: str) -> Path:
    """models/name.gguf, or the first part of a split model of that name."""
    named = MODELS / f"{name}{SUFFIX}"
    if not named.is_file() and MODELS.is_dir():
        split = [path for path in first_of_each(_files(MODELS)) if path.stem != name and model_name(path) == name]
        return next(iter(split), named)
    return named


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and path.is_file())


def _only_one(folder: Path) -> Path:
    files = first_of_each(_files(folder))
    if len(files) == 1:
        return files[0]
    if files:
        raise UsageError(f"{folder}: is a folder with {len(files)} GGUF models; name one of them, such as {files[0]}")
    hint = f"; `bitnet convert {folder}` makes one of it" if (folder / "config.json").is_file() else ""
    raise BadFileError(folder, "model", f"is a folder without a GGUF file{hint}")


def hub_cache() -> Path:
    """The folder of the hub's cache, wherever the environment puts it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshot(name: str) -> Path | None:
    """Folder of a repository's main branch in the cache; None where it was never downloaded."""
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    folder = repository / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _ready(folder: Path) -> Path | None:
    """The GGUF file of a repository to run: the one with I2_S weights where its name says so, or the only one."""
    files = first_of_each(path for path in folder.glob(f"*{SUFFIX}") if path.exists())
    packed = [path for path in files if READY in path.name.lower()]
    return next(iter(packed), files[0] if len(files) == 1 else None)


def available() -> list[Listed]:
    """All models that `find` finds by name: embedded ones, models/, and GGUF files in the hub's cache."""
    found = [Listed(name, "embedded", model.path, _size(model.path), model.description) for name, model in EMBEDDED.items()]
    if MODELS.is_dir():
        found += [Listed(model_name(path), "models", path, _size(path)) for path in first_of_each(_files(MODELS))]
    return [model for model in [*found, *_cached()] if model.size >= 0]


def _cached() -> Iterator[Listed]:
    try:
        repositories = sorted(hub_cache().glob("models--*--*"))
    except OSError:
        return
    for repository in repositories:
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        folder = _snapshot(name)
        ready = _ready(folder) if folder else None
        if ready:
            yield Listed(name, "hub", ready, _size(ready))


def _size(path: Path) -> int:
    """Bytes, of a split model of all its parts that are here; -1 for what is no regular file (any more)."""
    try:
        return sum(part.stat().st_size for part in parts_beside(path) if part.is_file()) if path.is_file() else -1
    except OSError:
        return -1
