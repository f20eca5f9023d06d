"""SHA-256 of files: compared with what a hub announces, and with what the user pins.

An announced digest guards against damage: whoever sends a file announces its digest too. A pinned one is the user's own knowledge.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitnet_cli.checkpoint.pooling import POOLING_FILE
from bitnet_cli.checkpoint.shards import shard_names
from bitnet_cli.checkpoint.tokenizer import TOKENIZER_FILES
from bitnet_cli.errors import BadFileError, UsageError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    """64 hexadecimal digits. OSError where the file cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def check_announced(path: Path, listed: str | None, name: str) -> None:
    """BadFileError, and the file is gone from the hub's cache, unless it has the digest of the listing and that in its blob's name.

    path: of a commit's folder in the cache, where files are links into `blobs`, named by the digest that the file's own headers said, or
    by a shorter one of another kind. listed: None where the listing says none.
    """
    blob = path.resolve()
    announced = {listed} if listed else set()
    if blob != path and _DIGEST.fullmatch(blob.name):
        announced.add(blob.name)
    if not announced:
        return
    found = sha256_of(path)
    if announced != {found}:
        for old in (path, blob):
            with contextlib.suppress(OSError):
                old.unlink()
        said = " and ".join(sorted(announced))
        reason = f"is {found}, announced was {said}; the file is damaged, and is removed from the cache: run the command again"
        raise BadFileError(name, "SHA-256", reason)


def parse_pins(texts: Sequence[str]) -> dict[str, str]:
    """--sha256 [NAME=]HEX, each -> name of the file (empty: the weights) -> digest. UsageError for anything else."""
    pins: dict[str, str] = {}
    for text in texts:
        name, _, digest = text.rpartition("=")
        digest = digest.strip().lower()
        if not _DIGEST.fullmatch(digest) or ("=" in text and not name):
            raise UsageError(f"--sha256 {text[:100]}: expected 64 hexadecimal digits, or NAME=DIGITS for one file of several")
        if pins.get(name, digest) != digest:
            raise UsageError(f"--sha256: two different digests of {name or 'the weights'}")
        pins[name] = digest
    return pins


def files_to_read(folder: Path) -> list[str]:
    """What a conversion reads of a folder, by name, the weights last; as the readers choose it (folder.py, shards.py)."""
    names = [name for name in (CONFIG, POOLING_FILE, *TOKENIZER_FILES) if (folder / name).is_file()]
    if (folder / SINGLE).exists():
        return [*names, SINGLE]
    if (folder / INDEX).exists():
        return [*names, INDEX, *shard_names(folder / INDEX)]
    return [*names, *sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")]


def check_pins(folder: Path, pins: dict[str, str]) -> list[str]:
    """Compare the files that a conversion reads with the user's digests. Returns the names of those that no digest was given of.

    BadFileError: one differs. UsageError: a digest of a file that is not read, or one without a name where there are several weights.
    """
    if not pins:
        return []
    names = files_to_read(folder)
    weights = [name for name in names if name.endswith(".safetensors")]
    wanted = dict(pins)
    if "" in wanted:
        if len(weights) != 1:
            raise UsageError(f"--sha256: {folder} has {len(weights)} files of weights; give NAME=DIGITS for each")
        digest = wanted.pop("")
        if wanted.setdefault(weights[0], digest) != digest:
            raise UsageError(f"--sha256: two different digests of {weights[0]}")
    if absent := sorted(wanted.keys() - set(names)):
        raise UsageError(f"--sha256 {absent[0]}: no such file is read from {folder}; read are {', '.join(names)}")
    _compare(folder, wanted.items())
    return [name for name in names if name not in wanted]


def _compare(folder: Path, wanted: Iterable[tuple[str, str]]) -> None:
    for name, digest in wanted:
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise BadFileError(folder / name, "file", error.strerror or str(error)) from None
        if found != digest:
            raise BadFileError(folder / name, "SHA-256", f"is {found}, --sha256 says {digest}")
