"""Folders that belong to the user alone, the way to them included. Only the standard library is imported.

Whoever can write into a folder, or rename one on the way to it and put another in its place, decides what is read there. On POSIX a folder
counts as private if nobody but its owner can write there, and if it and every folder and every link on the way belong to the user or to the
administrator, and none lets others rename what is in it: it is not writable for them, or has the sticky bit, as /tmp has. A group
that holds the owner alone is nobody else. Windows keeps what is in a user's profile from others by itself.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LINKS = 40  # on one way, as many as Linux follows
GROUP, OTHERS = 0o020, 0o002


def home() -> Path | None:
    """The user's home: $HOME (on Windows the profile) if it is an absolute path, else what the system knows; None without either."""
    wish = os.environ.get("USERPROFILE" if os.name == "nt" else "HOME", "")
    if Path(wish).is_absolute():
        return Path(wish)
    try:
        import pwd

        known = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        return None
    return known if known.is_absolute() and known != Path("/") else None


def make(folder: Path) -> bool:
    """Make a folder, and those on the way that are missing, 0700 whatever the umask is. Whether this call made it. OSError."""
    missing = []
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            break
        missing.append(path)
    made = False
    for path in reversed(missing):
        made = False
        with suppress(FileExistsError):  # another process was quicker
            path.mkdir(mode=0o700)
            made = True
            if stat.S_IMODE(path.stat().st_mode) != 0o700:  # a umask that takes away even what the owner needs
                path.chmod(0o700)
    return made


def objection(folder: Path) -> str | None:
    """Why a folder that exists is not private, in words for the user; None where it is. OSError where the way cannot be followed."""
    if not hasattr(os, "getuid"):
        return None
    info = folder.stat()
    if info.st_uid not in (0, os.getuid()):  # the administrator could put anything anywhere
        return f"{folder} belongs to another user"
    if info.st_mode & (GROUP | OTHERS):
        return f"others can write in {folder}"
    for place in _way(folder.absolute()):
        info = place.lstat()
        if info.st_uid not in (0, os.getuid()) and not _unmapped(info.st_uid):
            return f"{place} belongs to another user"
        shared = info.st_mode & OTHERS or (info.st_mode & GROUP and not _lonely(info.st_gid))
        if stat.S_ISDIR(info.st_mode) and shared and not info.st_mode & stat.S_ISVTX:
            return f"others can rename what is in {place}"
    return None


def _way(folder: Path) -> Iterator[Path]:
    """Every folder and link that the system meets on the way to `folder`, it left out; OSError for too many links."""
    at, links = Path(folder.anchor), 0
    parts = list(folder.parts[1:])
    yield at
    while parts:
        part = parts.pop(0)
        if part == os.pardir:
            at = at.parent
            continue
        there = at / part
        if there.is_symlink():
            links += 1
            if links > LINKS:
                raise OSError(f"{folder}: too many links")
            yield there
            target = there.readlink()
            at, parts = (Path(target.anchor) if target.is_absolute() else at), [*target.parts[target.is_absolute() :], *parts]
            if target.is_absolute():
                yield at
            continue
        at = there
        if parts:
            yield at


def _lonely(group: int) -> bool:
    """Whether a group is the user's own (of the user's name, without other members) or the administrator's."""
    try:
        import grp
        import pwd

        known, name = grp.getgrgid(group), pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return False
    return (known.gr_name == name or group == 0) and set(known.gr_mem) <= {name, "root"}


def _unmapped(user: int) -> bool:
    """Whether an owner is one that this container does not know: the real root, outside of it, looks like nobody then."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
        mapped = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError, IndexError):
        return False
    return user == overflow and mapped < (1 << 32) - 1
