"""Machine code of kernels that tests call, kept from process to process where CI keeps a folder (BITNET_CI_CACHE).

What the product calls it keeps itself (compile_cache.py); tests call hundreds of kernels beside, each of which Numba compiles in every
process. As a script: `kept_kernels.py SCRIPT ARGUMENTS...` runs another one so.
"""

import hashlib
import importlib.metadata
import os
import pickle
import platform
import runpy
import sys
from pathlib import Path
from typing import Any

from bitnet_kernels import callees, compile_cache, isa, target
from numba.core import serialize, types
from numba.core.compiler import CompileResult


class _Root(callees.Root):
    """Keeps its object code, too."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.enable_object_caching()


def _told(kind: Any) -> str:
    """A type by its name, and tuples by the names of their fields too, which Numba leaves out."""
    inner = kind.types if isinstance(kind, types.BaseTuple) else ()
    return f"{kind} {getattr(kind, 'fields', '')} {[_told(one) for one in inner]}"


def _read(path: Path) -> bytes | None:
    """What `_write` wrote; None where there is nothing, or something else."""
    whole = path.read_bytes() if path.exists() else b""
    return whole[32:] if whole and hashlib.sha256(whole[32:]).digest() == whole[:32] else None


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(hashlib.sha256(data).digest() + data)
    part.replace(path)


def install(folder: Path) -> None:
    """From now on, kernels that modules of bitnet_kernels define are looked for in a folder before they are compiled, and kept there."""
    versions = " ".join((sys.version, *map(importlib.metadata.version, ("numba", "llvmlite", "numpy"))))
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR")
    always = f"{compile_cache.source_hash()} {versions} {platform.machine()} {settings}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    compile_core = callees.RootCompiler._compile_core

    def kept(self: Any, args: Any, return_type: Any) -> Any:
        function = self.py_func
        module = sys.modules.get(function.__module__)
        defined = getattr(getattr(module, function.__name__, None), "py_func", None)
        if defined is not function or not function.__module__.startswith("bitnet_kernels"):
            return compile_core(self, args, return_type)
        described = isa.chosen(), isa.target(), function.__module__, function.__name__, return_type, self.targetoptions
        name = f"{always} {described} {[_told(kind) for kind in args]}"
        path = folder / f"kernel-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        found = _read(path)
        if found is not None:
            return CompileResult._rebuild(target.context(), *pickle.loads(found))
        result = compile_core(self, args, return_type)
        _write(path, serialize.dumps(result._reduce()))
        return result

    callees.Root = _Root  # type: ignore[misc]
    callees.RootCompiler._compile_core = kept  # type: ignore[method-assign]


if __name__ == "__main__":
    if isa.chosen() != isa.NAIVE:
        install(Path(os.environ["BITNET_CI_CACHE"]))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
