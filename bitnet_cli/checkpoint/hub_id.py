"""How repositories of the Hugging Face hub, and files in them, are named. Only the standard library is imported.

owner/name                                          a repository
owner/name:i2_s                                     the GGUF file of it whose name has that word (a quantisation, as llama.cpp's -hf)
owner/name:model.gguf                               that file
https://huggingface.co/owner/name                   the same, pasted from a browser; also with /blob/main/FILE or /resolve/main/FILE
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from bitnet_cli.errors import UsageError

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
HUB_ID = re.compile(f"{_PART}/{_PART}", re.ASCII)
_WANTED = re.compile(rf"({_PART}/{_PART})(?::([\w][\w.+-]{{0,199}}))?", re.ASCII)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
READY = "i2_s"  # in the name of a GGUF file: `ggml-model-i2_s.gguf` is what Microsoft publishes
SUFFIX = ".gguf"


class Wanted(NamedTuple):
    """A repository, and what of it: a file's name, a word of one, or None."""

    name: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name


def is_hub_id(source: str) -> bool:
    """Whether `source` is meant as `owner/name`: it has that form, and nothing of that name is on the disk."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def wanted(text: str) -> Wanted | None:
    """What of the hub `text` means; None: nothing. UsageError: an address that is not of the hub, or not of its main branch."""
    if text.lower().startswith(("https://", "http://")):
        return _pasted(text)
    match = _WANTED.fullmatch(text)
    return Wanted(match[1], match[2]) if match else None


def _pasted(text: str) -> Wanted:
    address = urlsplit(text)
    own = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    parts = [unquote(part) for part in address.path.split("/") if part]
    known = address.netloc.lower() in _HOSTS or address.netloc == own.netloc
    if not known or len(parts) < 2 or not HUB_ID.fullmatch("/".join(parts[:2])):
        raise UsageError(f"{text}: is no address of a repository of the hub; expected {own.geturl()}/OWNER/NAME")
    name, rest = "/".join(parts[:2]), parts[2:]
    if not rest or rest == ["tree", "main"]:
        return Wanted(name)
    if len(rest) != 3 or rest[0] not in ("blob", "resolve") or rest[1] != "main" or not rest[2].lower().endswith(SUFFIX):
        raise UsageError(f"{text}: expected a repository, or a GGUF file at the top of its main branch")
    return Wanted(name, rest[2])


def pick(names: Sequence[str], tag: str | None) -> str | None:
    """Which of the GGUF files of a repository is meant; None: none, or nobody can tell.

    Without a tag the one with I2_S weights where its name says so, or the only one.
    """
    if tag is None:
        packed = [name for name in names if READY in name.lower()]
        return next(iter(packed), names[0] if len(names) == 1 else None)
    if tag.lower().endswith(SUFFIX):
        return tag if tag in names else None
    word = re.compile(rf"(?<![a-z0-9]){re.escape(tag.lower())}(?![a-z0-9])")
    return next((name for name in sorted(names, key=len) if word.search(name.lower())), None)
