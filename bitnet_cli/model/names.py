"""What a user calls a model -> its file. Only the standard library, and platformdirs, are imported, so that shell completion is quick.

    model.gguf, ./folder, path/to/folder    a path, said by a slash or the ending: a file, or a folder that holds one GGUF file
    tiny                                    a model inside the package (EMBEDDED)
    name                                    name.gguf in the user's model folder, or in models/ here
    owner/name, owner/name:i2_s, https://   a repository of the hub (hub_id.py): owner/name/*.gguf there (pulled), name.gguf (converted), or
                                            a GGUF file of it in the hub's cache

The user's folder is BITNET_MODELS, else the platform's data folder. What somebody else put into models/ here takes no name over. The
files of a split model, `name-00001-of-00003.gguf` and so on, are one model, called by the name or by any of them.
Nothing is downloaded here: `find` raises NotHereError for a repository that is not on this computer, or not converted.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitnet_cli.checkpoint.hub_id import SUFFIX, Wanted, pick, wanted
from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.gguf_file.split_names import first_of_each, model_name, parts_beside

HERE = Path("models")  # in a clone of this project: where conversions and downloads land before they land in the user's folder
WEIGHTS = ".safetensors"
_SEPARATORS = re.compile(r"[/\\]" if os.name == "nt" else "/")


class NotHereError(UsageError):
    """A repository of the hub that cannot be run as it is. `downloaded`: its weights are in the hub's cache, and need `bitnet convert`."""

    def __init__(self, what: Wanted, downloaded: bool):
        self.wanted, self.downloaded = what, downloaded
        state = "is downloaded but not converted" if downloaded else "is not on this computer"
        super().__init__(f"{what}: {state}; `bitnet pull {what}` {'converts it' if downloaded else 'gets it'}")


class Listed(NamedTuple):
    """A model on this computer: what `-m` takes, where it came from, its file and size in bytes.

    source: `embedded`, `user` (the user's model folder), `models` (the folder here) or `hub` (the hub's cache)
    """

    name: str
    source: str
    path: Path
    size: int
    about: str = ""


def user_folder() -> Path:
    """The user's model folder, which may not be there yet: BITNET_MODELS, else `models` in the platform's folder for data of programs."""
    if wish := os.environ.get("BITNET_MODELS"):
        return Path(wish).expanduser()
    from platformdirs import user_data_path

    return user_data_path("bitnet", appauthor=False) / "models"


def output_folder() -> Path:
    """Where conversions and downloads land unless told otherwise: models/ where there is one, else the user's folder."""
    return HERE if HERE.is_dir() else user_folder()


def _folders() -> dict[str, Path]:
    """By source, in the order in which names are looked up."""
    return {"user": user_folder(), "models": HERE}


def is_path(text: str) -> bool:
    """Whether a path is meant and not a name: it has a slash, or the ending of a model file."""
    return _SEPARATORS.search(text) is not None or text.lower().endswith(SUFFIX) or text in (".", "..", "~")


def find(reference: str | os.PathLike[str] | None) -> Path:
    """The GGUF file that is meant; None: the default embedded model. UsageError, BadFileError: there is none, or several."""
    if reference is None:
        return EMBEDDED[DEFAULT_MODEL].path
    text, path = os.fspath(reference), Path(reference).expanduser()
    if isinstance(reference, str) and not is_path(text):
        return _named(text)
    if path.is_dir():
        return _only_one(path)
    hub = None if path.exists() else wanted(text)
    if hub is None or (hub.tag is None and path.suffix.lower() == SUFFIX):
        return path  # a file that is not there is refused by name when it is opened
    for folder in _folders().values():
        if found := _of_repository(folder, hub):
            return found
    snapshot = _snapshot(hub.name)
    if snapshot and (ready := _ready(snapshot, hub.tag)):
        return ready
    raise NotHereError(hub, downloaded=bool(snapshot and hub.tag is None and any(snapshot.glob(f"*{WEIGHTS}"))))


def _named(text: str) -> Path:
    if text in EMBEDDED:
        return EMBEDDED[text].path
    for folder in _folders().values():
        if found := _in_folder(folder, text):
            return found
    path = Path(text)
    if path.exists() and os.fspath(path) == text:
        raise UsageError(f"{text}: is a {'folder' if path.is_dir() else 'file'} here and no name of a model; as a path it is ./{text}")
    folder = user_folder()
    raise UsageError(f"{text}: no such model: none of {', '.join(EMBEDDED)}, and no {text}{SUFFIX} in {folder}; see `bitnet list`")


def _in_folder(folder: Path, name: str) -> Path | None:
    """folder/name.gguf, the first part of a split model of that name, or the model of the only repository called so."""
    if not folder.is_dir():
        return None
    if (named := folder / f"{name}{SUFFIX}").is_file():
        return named
    split = [path for path in first_of_each(_files(folder)) if path.stem != name and model_name(path) == name]
    pulled = [path for path in _repositories(folder) if path.name == name]
    return next(iter(split), None) or (_ready(pulled[0], None) if len(pulled) == 1 else None)


def _of_repository(folder: Path, hub: Wanted) -> Path | None:
    """Its file where it was pulled, or where it was converted, by its name without the owner."""
    pulled = folder / hub.name
    found = _ready(pulled, hub.tag) if pulled.is_dir() else None
    if found is None and hub.tag is None:
        return _in_folder(folder, hub.name.partition("/")[2])
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and path.is_file())


def _repositories(folder: Path) -> list[Path]:
    """Folders owner/name of what was pulled."""
    return sorted(path for path in folder.glob("*/*") if path.is_dir() and not path.parent.name.startswith("."))


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


def _ready(folder: Path, tag: str | None) -> Path | None:
    """The GGUF file of a repository to run (hub_id.pick)."""
    files = first_of_each(path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.exists())
    name = pick([path.name for path in files], tag)
    return folder / name if name is not None else None


def available() -> list[Listed]:
    """All models that `find` finds by name: embedded ones, the user's, those in models/ here, and GGUF files in the hub's cache."""
    found = [Listed(name, "embedded", model.path, _size(model.path), model.description) for name, model in EMBEDDED.items()]
    for source, folder in _folders().items():
        if folder.is_dir():
            found += [Listed(model_name(path), source, path, _size(path)) for path in first_of_each(_files(folder))]
            found += [Listed(name, source, path, _size(path)) for repository in _repositories(folder) for name, path in _pulled(repository)]
    first: dict[str, Listed] = {}
    for model in [*found, *_cached()]:
        if model.size >= 0:
            first.setdefault(model.name, model)
    return list(first.values())


def _pulled(repository: Path) -> Iterator[tuple[str, Path]]:
    """The models in a folder owner/name; the one that is found without a tag by that name."""
    ready = _ready(repository, None)
    for path in first_of_each(_files(repository)):
        name = f"{repository.parent.name}/{repository.name}"
        yield name if path == ready else f"{name}:{path.name}", path


def _cached() -> Iterator[Listed]:
    try:
        repositories = sorted(hub_cache().glob("models--*--*"))
    except OSError:
        return
    for repository in repositories:
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        folder = _snapshot(name)
        ready = _ready(folder, None) if folder else None
        if ready:
            yield Listed(name, "hub", ready, _size(ready))


def _size(path: Path) -> int:
    """Bytes, of a split model of all its parts that are here; -1 for what is no regular file (any more)."""
    try:
        return sum(part.stat().st_size for part in parts_beside(path) if part.is_file()) if path.is_file() else -1
    except OSError:
        return -1
