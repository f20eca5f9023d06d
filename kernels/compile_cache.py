"""Where compiled kernels are kept between runs: a private folder of the user.

Numba's cache files are unpickled when read, so whoever can write them runs code: the folder is 0700, owned by the user, and never under
a shared temporary folder. Its name holds everything that Numba's own key misses: changes in a callee in another file (a hash over all
kernel sources), the instruction set, and the versions of Python and Numba. Numba adds the CPU's name and features.

`prepare()` must run before the first `@njit(cache=True)` is met; jit.py sees to it. Where no folder can be had, kernels
still compile, but into memory: `njit` options then leave caching out (Numba would refuse to import otherwise).
The same folder holds the machine code of what Python calls, which runs without Numba: native.py.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

UNUSED_DAYS = 30


class Compilations:
    """How many functions Numba has compiled in this process."""

    done = 0


compiled = Compilations()


def _base() -> Path | None:
    """The user's cache folder by the platform's convention; None where there is no home."""
    override = os.environ.get("BITNET_CACHE_DIR")
    if override:
        return Path(override).absolute()  # wherever the process goes later
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "bitnet"
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            return Path(local) / "bitnet" / "cache" if local else None
        xdg = os.environ.get("XDG_CACHE_HOME")
        return Path(xdg) / "bitnet" if xdg and Path(xdg).is_absolute() else Path.home() / ".cache" / "bitnet"
    except RuntimeError:
        return None


def source_hash() -> str:
    """Hash over every file of this package."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _private(folder: Path) -> bool:
    """Make the folder 0700; False where it cannot be made, or belongs to or can be written by someone else."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
        if hasattr(os, "getuid") and (info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o022):
            return False
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _remove_unused(base: Path, current: Path) -> None:
    """Drop folders of other versions that no process has used for UNUSED_DAYS; each use renews its own folder's time."""
    with contextlib.suppress(OSError):
        os.utime(current)
        for other in base.glob("kernels-*"):
            if other != current and time.time() - other.stat().st_mtime > UNUSED_DAYS * 86400:
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


@cache
def folder() -> Path | None:
    """The private folder of this version on this machine; None where nothing can be kept."""
    from . import isa

    base = _base()
    if base is None:
        return None
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    path = base / f"kernels-{source_hash()}-{isa.chosen()}-{python}-numba{_numba_version()}"
    if not (_private(base) and _private(path)):
        return None
    _remove_unused(base, path)
    return path


@cache
def prepare() -> Path | None:
    """Point Numba at the private folder and return it; None where nothing can be kept."""
    import numba

    path = folder()
    if path is not None:
        config: Any = numba.config
        config.CACHE_DIR = str(path)
    return path


def tolerate_faults(dispatcher: Any) -> Any:
    """Numba raises where a kept file is damaged or cannot be written, as on a full disk. Here such a kernel is compiled, and not kept."""
    kept = dispatcher._cache
    load, save = kept.load_overload, kept.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:  # unpickling damaged bytes raises nearly anything
            with suppress(OSError):
                kept.flush()
            return None

    def save_overload(signature: Any, data: Any) -> None:
        with suppress(OSError):
            save(signature, data)

    kept.load_overload, kept.save_overload = load_overload, save_overload
    return dispatcher
