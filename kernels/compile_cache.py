"""Where compiled kernels are kept between runs: a private folder of the user. Others, filled by `bitnet compile`, are read after it.

Machine code that another wrote would run: the folder is 0700, owned by the user, and nobody else can put another in its place (private.py).
Its name holds what code depends on besides the types of its arguments (native.py): a hash over all kernel sources, the instruction set, and
Numba's version. Where no folder can be had, kernels are compiled into memory. A folder that was made here has a file MARK in it, and only
such a folder is ever removed.

Shared folders are the administrator's, in SHARED or where BITNET_SHARED_CACHE_DIR says, where nobody else can write, and one that a wheel
brings within this package: who could write there could change the package itself. Machine code asks for nothing of Numba's, so there it may
also come from another version of it.
"""

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from . import private

UNUSED_DAYS = 30
MARK = "made-by-bitnet"
MARKED = b"Compiled kernels of bitnet. This folder may be deleted; it is made again.\n"
_NAME = re.compile(r"kernels-[0-9a-f]{16}-\w+-(?:py\d+-)?numba[\w.+]+")  # once Python's version was a part of it
SHARED = Path("/var/cache/bitnet")
BROUGHT = Path(__file__).parent / "code"  # by a wheel


class Compilations:
    """How many parts (separate.py) this process has compiled, or had compiled, and how many more it knows of."""

    done = waiting = 0


compiled = Compilations()


def _base() -> Path | None:
    """The user's cache folder by the platform's convention; None where there is no home."""
    override = os.environ.get("BITNET_CACHE_DIR")
    if override:
        return Path(override).absolute()  # wherever the process goes later
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) / "bitnet" / "cache" if local else None
    xdg, home = os.environ.get("XDG_CACHE_HOME"), private.home()
    if sys.platform != "darwin" and xdg and Path(xdg).is_absolute():
        return Path(xdg) / "bitnet"
    if home is None:
        return None
    return home / "Library" / "Caches" / "bitnet" if sys.platform == "darwin" else home / ".cache" / "bitnet"


def _sources() -> Iterator[tuple[str, bytes]]:
    """Path in this package and contents of each of its files; in a frozen program without them, what tells its versions apart."""
    root = Path(__file__).parent
    if root.is_dir():
        for path in sorted(root.rglob("*.py")):
            yield str(path.relative_to(root)), path.read_bytes()
        return
    from importlib.resources import files

    def within(folder: Any, above: str) -> Iterator[tuple[str, bytes]]:
        for item in sorted(folder.iterdir(), key=lambda item: str(item.name)):
            if item.is_dir():
                yield from within(item, f"{above}{item.name}/")
            elif item.name.endswith(".py"):
                yield above + item.name, item.read_bytes()

    found = []
    with suppress(OSError):
        found = list(within(files(str(__package__)), ""))
    yield from found
    if not found:
        info = Path(sys.executable).stat()
        yield sys.executable, f"{info.st_size} {info.st_mtime_ns}".encode()


def source_hash() -> str:
    """Hash over every file of this package."""
    digest = hashlib.sha256()
    for name, data in _sources():
        digest.update(name.encode() + b"\0" + data)
    return digest.hexdigest()[:16]


class Refusal:
    """Why nothing can be kept, or something could not be, in words for the user; None where that is not known, or all was."""

    reason: str | None = None


refused = Refusal()


def _private(folder: Path) -> bool:
    """Make the folder 0700; False where it cannot be made, others can write in it or replace it, or it is empty and stays so."""
    try:
        if private.make(folder) and _NAME.fullmatch(folder.name):
            (folder / MARK).write_bytes(MARKED)
        refused.reason = private.objection(folder)
        if refused.reason:
            return False
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        refused.reason = f"{folder}: {error.strerror or error}"
        # Kernels that are there are used also where none can be added: in a container they are the administrator's, or all is read-only.
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and any(folder.glob("**/*.code"))
    return True


def _ours(folder: Path) -> bool:
    """Whether a folder was made and marked here; a link to one was not."""
    try:
        here, mark = folder.lstat(), (folder / MARK).lstat()
        made = stat.S_ISDIR(here.st_mode) and stat.S_ISREG(mark.st_mode) and (folder / MARK).read_bytes() == MARKED
    except OSError:
        return False
    return made and _NAME.fullmatch(folder.name) is not None and (not hasattr(os, "getuid") or here.st_uid == mark.st_uid == os.getuid())


def _remove_unused(base: Path, current: Path) -> None:
    """Drop our folders of other versions that no process has used for UNUSED_DAYS; each use renews its own folder's time."""
    with suppress(OSError):
        os.utime(current)
        for other in base.glob("kernels-*"):
            if other != current and _ours(other) and time.time() - other.lstat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(other, ignore_errors=True)


def _numba_version() -> str:
    """Without importing Numba, which takes a fifth of a second."""
    found = importlib.util.find_spec("numba")
    try:
        text = Path(str(found.origin)).with_name("_version.py").read_text(encoding="utf-8") if found else ""
        version = re.search(r'"version": "([^"]+)"', text)
    except OSError:
        version = None
    return version[1] if version else importlib.metadata.version("numba")


def _name(numba: str) -> str:
    from . import isa

    return f"kernels-{source_hash()}-{isa.chosen()}-numba{numba}"


@cache
def folder() -> Path | None:
    """The private folder of this version on this machine; None where nothing can be kept."""
    base = _base()
    if base is None:
        refused.reason = "there is no home folder"
        return None
    path = base / _name(_numba_version())
    if not (_private(base) and _private(path)):
        return None
    _remove_unused(base, path)
    return path


@cache
def folders() -> tuple[Path, ...]:
    """Where code is looked for, in this order: the private folder, if there is one, and shared ones."""
    own, found = folder(), list[Path]()
    for base in (_shared(), BROUGHT):
        with suppress(OSError):
            found += sorted(path for path in base.glob(_name("*")) if base == BROUGHT or private.objection(path) is None) if base else []
    return (*([own] if own else []), *(path for path in found if path != own))


def _shared() -> Path | None:
    named = os.environ.get("BITNET_SHARED_CACHE_DIR")
    return Path(named).absolute() if named else SHARED if sys.platform != "win32" else None


def made_within(base: Path) -> Path:
    """A folder of this version in one that all may read, made where it is missing. Raises OSError."""
    path = base / _name(_numba_version())
    made = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    if private.make(path):
        (path / MARK).write_bytes(MARKED)
    for place in (*made, path, path / MARK):
        readable(place)
    return path


def readable(path: Path) -> None:
    """Let everybody read a file or folder, and nobody but its owner write, whatever the umask is."""
    path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def noting_faults() -> Iterator[None]:
    """What cannot be written, as on a full disk, is not kept; the reason is noted for the user."""
    try:
        yield
    except OSError as error:
        refused.reason = f"{folder()}: {error.strerror or error}"
