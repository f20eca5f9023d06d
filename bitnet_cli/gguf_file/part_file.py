"""A file that appears complete or not at all: written beside its target as `<name>.<random>.part`, then renamed over it.

Nobody ever opens half a file: the rename is atomic, and until then the target is absent or the old file. Whatever ends the writing early
(an error, Ctrl-C) removes the part file; a part file left behind by a killed process is removed by the next writer of the same target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from bitnet_cli.errors import BitnetError, UsageError

if sys.platform != "win32":  # a file that is open cannot be deleted on Windows, which is lock enough
    import fcntl

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC, errno.EFBIG}


def refuse_same_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """UsageError if both paths lead to one file, through links too. A path that does not exist is nobody's twin."""
    try:
        same = Path(source).samefile(target)
    except OSError:
        return
    if same:
        raise UsageError(f"{os.fspath(target)}: is the input file; give the output another name")


def check_target(target: Path, force: bool) -> None:
    """UsageError unless a file can be made at `target`: its folder is there, and nothing stands in its place (a file may, with `force`)."""
    if not target.parent.is_dir():
        raise UsageError(f"{target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise UsageError(f"{target}: is a folder, expected the name of a file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: is not a regular file")
    if not force and os.path.lexists(target):
        raise UsageError(f"{target}: exists already; use --force to replace it")


def check_space(target: Path, needed: int) -> None:
    """BitnetError if the disk of `target` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise BitnetError(f"{target}: needs {needed} bytes, its disk has {free} free")


@contextlib.contextmanager
def explain_write_errors(target: Path, needed: int) -> Iterator[None]:
    """OSError -> BitnetError that names the target and the reason; for a full disk also the bytes that the file needs."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BitnetError(f"{target}: the disk is full ({error.strerror}); the file needs {needed} bytes") from None
        raise BitnetError(f"{target}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def part_file(target: Path, needed: int, mode: int = 0o666) -> Iterator[Path]:
    """Gives the path of an empty file to write; renames it to `target` when the block ends well, removes it when it does not.

    The block must close whatever it opened. `needed` is the size for the message about a full disk. mode: the file's permissions, less
    what the umask takes away; also where it replaces a file that had others.
    """
    _remove_stale(target)
    with explain_write_errors(target, needed):
        part, handle = _create_part(target, mode)
    try:
        yield part
        with explain_write_errors(target, needed):
            os.fsync(handle)
            if sys.platform == "win32":  # renames no file that is open
                os.close(handle)
                handle = -1
            part.replace(target)
            _sync_folder(target.parent)
    finally:
        if handle >= 0:
            os.close(handle)
        with contextlib.suppress(OSError):
            part.unlink()  # gone already if it was renamed


def _create_part(target: Path, mode: int) -> tuple[Path, int]:
    """A new part file and an open handle that holds its lock for as long as the writer lives."""
    while True:
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
        if sys.platform == "win32" or (_lock(handle, without=True) and os.fstat(handle).st_nlink):
            return part, handle
        os.close(handle)  # between its creation and its lock another writer took it for a dead one's and removed it


def _lock(handle: int, *, without: bool) -> bool:
    """Whether the file's lock is now ours; `without` where the file system has no locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return without
    return True


def _remove_stale(target: Path) -> None:
    """Removes part files of `target` whose writer has died: the system dropped its lock when it did."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.part")
    with contextlib.suppress(OSError):
        for old in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
            if sys.platform == "win32":
                with contextlib.suppress(OSError):
                    old.unlink()
                continue
            handle = os.open(old, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if _lock(handle, without=False):
                    old.unlink()  # while the lock is held, so that `_create_part` sees it gone
            finally:
                os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows does not open folders; some network file systems do not sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
