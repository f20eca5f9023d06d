"""Processes of their own, in Python: the only place of both packages that starts one. Only the standard library is imported.

A child imports Python's own library, and by name what it is given here, from where this process has it: the folders of our packages, and of
the few others that it needs. It has no other path: not the current folder, which may be full of what a stranger wrote, not PYTHONPATH or
any other variable of Python's, no `sitecustomize`, no `.pth` file. So it finds its modules wherever this process found them: in a virtual
environment, in the user's folder, in a checkout by a finder of an editable install, on PYTHONPATH or in a zip file. In a frozen program
there is no Python to start, and no child.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import IO, Any

# What a Python needs to start; nothing else of the environment, tokens among it, is anybody's business in a child. Of Python's own
# variables only the one without which some find no library at all.
ENVIRONMENT = (
    "PATH", "SYSTEMROOT", "WINDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "__PYVENV_LAUNCHER__",
    "PYTHONHOME", "TMPDIR", "TEMP", "TMP",
)  # fmt: skip
INTERPRETERS = ("python", "pypy")  # how the names of their files begin

# Without -I the current folder is the first of the path: it goes before anything is imported, and `sys` is no file. `places`: name ->
# folder to look in, or folder of the package itself, which is then named otherwise.
_START = """
import sys
if {folder_first}: del sys.path[0]
from importlib import import_module, util
from importlib.machinery import PathFinder
class Given:
    @staticmethod
    def find_spec(name, path=None, target=None):
        where, itself = {places}.get(name, ("", False))
        if itself:
            return util.spec_from_file_location(name, where + "/__init__.py", submodule_search_locations=[where])
        return PathFinder.find_spec(name, [where]) if where else None
sys.meta_path.append(Given)
import_module({module}).{function}()
"""


class NoChildError(Exception):
    """There is no Python to start, or a module that it would need is not to be found."""


def interpreter() -> str | None:
    """The Python that runs this; None in a frozen program, or one with a Python inside, where `sys.executable` is something else."""
    path = Path(sys.executable or "")
    if getattr(sys, "frozen", False) or not path.is_absolute() or not path.name.lower().startswith(INTERPRETERS):
        return None
    return str(path) if path.is_file() else None


def _same_folder(path: str, folder: str) -> bool:
    try:
        return Path(path or os.curdir).samefile(folder)
    except OSError:
        return False


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is or would be imported from. The current folder is looked into only if this very package is from there."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    own = str(Path(__file__).parent.parent)
    here = os.curdir if not _same_folder(own, os.curdir) else os.devnull
    path = [entry for entry in sys.path if entry and not _same_folder(entry, here)]
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)  # some of old have none
        found: ModuleSpec | None = find(name, path if finder is PathFinder else None) if find else None
        if found is not None:
            return found
    return None


def _place(name: str) -> tuple[str, bool]:
    """The folder (or zip file) to look for a top-level module in, or the package's own folder where its name is another one."""
    spec = _spec(name)
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is not None:
        whole = Path(folder).absolute()
        return (str(whole.parent), False) if whole.name == name else (str(whole), True)
    if spec is None or not spec.has_location or spec.origin is None:
        raise NoChildError(f"no file of the module {name} is found")
    return str(Path(spec.origin).absolute().parent), False


def command(module: str, function: str, needed: Iterable[str], folder: str | None = None) -> list[str]:
    """The command line of a Python that imports `module` and calls its `function` without arguments.

    module  a dotted name, its package one of `needed`; or with `folder` the name of a file there, of which no package is imported
    needed  top-level packages that it may import besides the standard library
    Raises NoChildError.
    """
    executable = interpreter()
    if executable is None:
        raise NoChildError("this is no Python that could be started again")
    places = {name: _place(name) for name in needed}
    if folder is not None:
        places[module] = (str(Path(folder).absolute()), False)
    # PYTHONHOME counts only without -I; its other effects, and those of -E, come by what the environment lacks.
    isolated = ["-I"] if "PYTHONHOME" not in os.environ else ["-s"]
    code = _START.format(folder_first=isolated != ["-I"], places=ascii(places), module=ascii(module), function=function)
    return [executable, *isolated, "-S", "-B", "-X", "utf8", "-c", code]


Process = subprocess.Popen[bytes]


def start(module: str, function: str, needed: Iterable[str], folder: str | None = None) -> Process:
    """Start such a process, with pipes for its stdin and stdout; stderr goes nowhere. Raises NoChildError, OSError.

    It stands in the folder of its Python, so that no empty entry of a path of the system's means the folder of this process.
    """
    words = command(module, function, needed, folder)
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NO_WINDOW
    return subprocess.Popen(words, env=environment, cwd=Path(words[0]).parent, **options)


def framed(data: bytes) -> bytes:
    """A message in a pipe: its length and itself."""
    return struct.pack("<q", len(data)) + data


def received(pipe: IO[bytes]) -> Iterator[bytes]:
    """Messages from a pipe, to its end."""
    while len(size := pipe.read(8)) == 8:
        yield pipe.read(*struct.unpack("<q", size))
