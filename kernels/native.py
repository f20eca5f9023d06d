"""Kernels that Python calls: compiled once, and afterwards run as bare machine code, without Numba.

Importing Numba and loading its caches takes a third of a second, more than all else until the first token. So the machine code of an
`@entry` (jit.py) is kept beside Numba's own files, in the same private folder, one file for each layout of a frame (frame.py). llvmlite
links it, and it is called by the convention of Numba's native functions:

    int32 status = f(int64 *result, void **error, char *frame, int64 ...)

Such code needs nothing but the C library, which is tried in another process before it is kept: LLVM ends a process that has a symbol it
cannot resolve. Where anything is amiss, a file missing, damaged or not to be linked, Numba compiles, or loads what it has kept itself.

A trial may fail for a while only, on a machine that is too busy or out of memory: the next TRIALS processes that miss the code try again,
later ones a day after the last. A frozen program has no Python for a trial: there the code is kept if this process has all functions that
it names, which can be told on Linux (object_file.py). Elsewhere Numba has its own files.
"""

import ctypes
import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from . import child, compile_cache, externals, isa, object_file
from .frame import Frame, Layout

Call = Callable[..., int]
_MAGIC = b"bitnet machine code 1\n"
_TRIAL_SECONDS = 30  # half a second is usual
WAIT = 120.0  # seconds for another process that compiles: four times what a slow machine takes
TRIALS, LATER = 3, 86400  # trials without delay after a failed one; seconds between those that follow
_lock = threading.RLock()
_engines: list[Any] = []  # they own the machine code


class Entry:
    """The function `name` of the module `module` of this package. `over(frame)` is a function of integers that returns one."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name
        self._functions: dict[Layout, Any] = {}

    def over(self, frame: Frame, integers: int) -> Call:
        """Load the code for the frame's layout, or compile it, which takes seconds. integers: how many there are besides the frame."""
        with _lock:
            if frame.layout not in self._functions:
                address = self._load(frame.layout)
                if not address:
                    with _alone(self._file(frame.layout)):
                        address = self._load(frame.layout) or self._compile(frame.layout, integers)
                prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * integers)
                self._functions[frame.layout] = prototype(address)
        return _bound(self._functions[frame.layout], frame)

    def _file(self, layout: Layout) -> Path | None:
        folder = compile_cache.folder()
        if folder is None:
            return None
        key = repr((layout, isa.host()))
        return folder / f"{self._module}.{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.code"

    def _load(self, layout: Layout) -> int:
        path = self._file(layout)
        try:
            return link(path.read_bytes()) if path else 0
        except (OSError, ValueError, RuntimeError):
            return 0

    def _compile(self, layout: Layout, integers: int) -> int:
        with _interrupted_later():
            from numba import types

            from .jit import interruptible, loaded_code
            from .records import Record

        with interruptible(), _collecting_less():
            kernel = getattr(import_module(f".{self._module}", __package__), self._name)
            signature = (Record(layout), *[types.int64] * integers)
            kernel.compile(signature)
            compiled = kernel.overloads[signature]
        symbol = compiled.fndesc.llvm_func_name
        path = self._file(layout)
        if path:
            with suppress(Exception), compile_cache.noting_faults():  # Numba's own functions, which may change
                keep(path, symbol, loaded_code(kernel) or compiled.library.serialize_using_object_code()[2][0])
        return int(compiled.library.get_pointer_to_function(symbol))


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """One process compiles what is kept in `path`, and others that want the same wait, for as long as it may take: then they find it done.

    The lock goes with its process. Where there is none (Windows, some network file systems, no folder), all compile.
    """
    if path is None or sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            except OSError:
                pass
            break
        yield
    finally:
        os.close(handle)


def _bound(function: Any, frame: Frame) -> Call:
    address, byref, integer, pointer = frame.address, ctypes.byref, ctypes.c_int64, ctypes.c_void_p

    def call(*integers: int) -> int:
        # A kernel raises nothing: the status is always 0.
        result, error = integer(), pointer()
        function(byref(result), byref(error), address, *integers)
        return result.value

    call.frame = frame  # type: ignore[attr-defined]  # lives as long as what may run over it
    return call


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the body, which imports Numba: its extension modules print an interrupt and fail with another error."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    noted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


@contextmanager
def _collecting_less() -> Iterator[None]:
    """Numba makes millions of objects; looking for garbage among them takes a sixth of the time. 70 MB more at the peak."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def keep(path: Path, symbol: str, code: bytes) -> None:
    """Write the file if another process can link it. Where that failed before, and it is not time to try again, do nothing."""
    failed = path.with_suffix(".failed")
    if not _due(failed):
        return
    data = symbol.encode() + b"\n" + code
    file = _MAGIC + hashlib.sha256(data).digest() + data
    if not (_resolves(code) if child.interpreter() is None else _links(file)):
        failed.write_text(f"{_failures(failed) + 1}\n", encoding="ascii")
        return
    new = path.with_suffix(f".{os.getpid()}")
    try:
        new.write_bytes(file)
        new.replace(path)
        failed.unlink(missing_ok=True)
    finally:
        new.unlink(missing_ok=True)


def _failures(failed: Path) -> int:
    """How many trials have failed."""
    try:
        return int(failed.read_bytes()[:9])
    except (OSError, ValueError):
        return 0


def _due(failed: Path) -> bool:
    if _failures(failed) <= TRIALS:
        return True
    with suppress(OSError):
        return not 0 <= time.time() - failed.stat().st_mtime < LATER
    return True


def _links(file: bytes) -> bool:
    """Whether another process links the contents of a file; False too where it takes too long or cannot be started."""
    try:
        process = child.start(f"{__package__}.native", "trial", ("bitnet_kernels", "llvmlite", "numpy"))
    except (OSError, child.NoChildError):
        return False
    with process:
        try:
            process.communicate(file, timeout=_TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
    return process.returncode == 0


def _resolves(code: bytes) -> bool:
    """Whether all that an object file asks for is there; False too where that cannot be told."""
    known = externals.register()
    try:
        return all(known.get(name) or object_file.found(name) for name in object_file.wanted(code))
    except ValueError:
        return False


def trial() -> None:
    """What the other process does: link what stdin brings."""
    link(sys.stdin.buffer.read())


def link(file: bytes) -> int:
    """The contents of a kept file -> the function's address. ValueError where they are damaged."""
    start = len(_MAGIC) + 32
    data = file[start:]
    if file[:start] != _MAGIC + hashlib.sha256(data).digest():
        raise ValueError("not machine code, or damaged")
    symbol, code = data.split(b"\n", 1)

    from llvmlite import binding

    externals.register()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(cpu=binding.get_host_cpu_name())
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = int(engine.get_function_address(symbol.decode()))
    if not address:
        raise ValueError("the function is missing")
    return address
