"""Kernels that Python calls: compiled once, and afterwards run as bare machine code, without Numba.

Importing Numba takes a third of a second, more than all else until the first token. So the machine code of an `@entry` (jit.py) and of the
parts that it calls (separate.py) is kept in the private folder (compile_cache.py), one file for each part and the types of its arguments.
llvmlite links them, and an entry is called by the convention of Numba's native functions:

    int32 status = f(int64 *result, void **error, char *frame, int64 ...)

Such code needs nothing but the C library, which is tried in another process before it is kept: LLVM ends a process that has a symbol it
cannot resolve. Where anything is amiss, a file missing, damaged or not to be linked, it is compiled again.

A trial may fail for a while only, on a machine that is too busy or out of memory: the next TRIALS processes that miss the code try again,
later ones a day after the last. A frozen program has no Python for a trial: there the code is kept if this process has all functions that
it names, which can be told on Linux (object_file.py).
"""

import ctypes
import gc
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from . import child, compile_cache, externals, object_file
from .frame import Frame, Layout
from .interrupts import interrupted_later
from .separate import Build, Code, Part, processes, symbol_of

Call = Callable[..., int]
_MAGIC = b"bitnet machine code 2\n"
_TRIAL_SECONDS = 30  # half a second is usual
WAIT = 120.0  # seconds for another process that compiles: six times what a slow machine takes
TRIALS, LATER = 3, 86400  # trials without delay after a failed one; seconds between those that follow
_lock = threading.RLock()  # of what is compiled
_linking = threading.RLock()
_engines: list[Any] = []  # they own the machine code
_addresses: dict[str, int] = {}  # of what is linked, by symbol
_noted: "list[Asked] | None" = None


class Entry:
    """The function `name` of the module `module` of this package. `over(frame)` is a function of integers that returns one.

    large: worth processes that compile its parts side by side.
    """

    def __init__(self, module: str, name: str, large: bool = False):
        self._module, self._name, self._large = module, name, large
        self._functions: dict[Layout, Any] = {}

    def over(self, frame: Frame, integers: int) -> Call:
        """Load the code for the frame's layout, or compile it, which takes seconds. integers: how many there are besides the frame."""
        with _lock:
            if _noted is not None:
                _noted.append(Asked(self._module, self._name, frame.layout, integers, self._large))
                return _nothing
            if frame.layout not in self._functions:
                symbol = symbol_of(self._module, self._name, frame.layout)
                address = linked(symbol)
                if not address:
                    with _alone(compile_cache.folder(), symbol):
                        address = linked(symbol) or self._compile(symbol, frame.layout, integers)
                prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * integers)
                self._functions[frame.layout] = prototype(address)
        return _bound(self._functions[frame.layout], frame)

    def _compile(self, symbol: str, layout: Layout, integers: int) -> int:
        codes = _built(Asked(self._module, self._name, layout, integers, self._large), linked)
        folder = compile_cache.folder()
        if folder:
            with suppress(ValueError), compile_cache.noting_faults():  # ValueError: of a part that is needed no file is kept
                keep(folder, codes)
        with _linking:
            _link(codes)
        return _addresses[symbol]


class Asked(NamedTuple):
    """What code is needed for: Entry's and `over`'s arguments."""

    module: str
    name: str
    layout: Layout
    integers: int
    large: bool


def _built(asked: Asked, known: Callable[[str], object]) -> list[Code]:
    with interrupted_later():
        from numba import types

        from .records import Record

    root = Part(asked.module, asked.name, (Record(asked.layout), *[types.int64] * asked.integers))
    symbol = symbol_of(asked.module, asked.name, asked.layout)
    with interrupted_later(may_come=True), collecting_less():
        return Build(known).run(root, symbol, processes() if asked.large else 1)


@contextmanager
def noted() -> Iterator[list[Asked]]:
    """In the body, what kernels are asked for is noted: they are neither compiled nor loaded, and what is called does nothing, and is 0."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def compile_ahead(asked: Asked, folder: Path) -> int:
    """Have the machine code of a kernel in a folder, with all that it needs; what the user's own has is copied.

    Returns how many parts are new there. Raises OSError, ValueError where it cannot be done.
    """
    own = compile_cache.folder()
    places = [folder, *([own] if own else [])]

    def there(symbol: str) -> bool:
        try:
            return bool(_kept(places, [symbol], lambda name: None))
        except (OSError, ValueError):
            return False

    symbol = symbol_of(asked.module, asked.name, asked.layout)
    codes = [] if there(symbol) else _built(asked, there)
    known = {code.symbol for code in codes}
    needed = [name for code in codes for name in code.needs] if codes else [symbol]
    codes = [*_kept(places, needed, lambda name: name in known), *codes]
    new = [code for code in codes if not _is_in(folder, code)]
    if new and not keep(folder, new, again=True):
        raise ValueError("another process cannot load what was compiled")
    return len(new)


def _is_in(folder: Path, code: Code) -> bool:
    with suppress(OSError, ValueError):
        return decoded((folder / f"{code.symbol}.code").read_bytes()) == code
    return False


def linked(symbol: str) -> int:
    """The address of a function whose code is kept, linked with all that it needs; 0 where any of it is missing or damaged."""
    if symbol not in _addresses:
        with _linking, suppress(OSError, ValueError, RuntimeError):
            _link(_kept(compile_cache.folders(), [symbol]))
    return _addresses.get(symbol, 0)


def _kept(folders: Sequence[Path], symbols: Sequence[str], known: Callable[[str], Any] = _addresses.get) -> list[Code]:
    """Code from files, and that of all it needs and is not known, which goes before. Raises OSError, ValueError."""
    found: dict[str, Code] = {}

    def add(symbol: str) -> None:
        if symbol not in found and not known(symbol):
            code = _read(folders, symbol)
            for needed in code.needs:
                add(needed)
            found[symbol] = code

    for symbol in symbols:
        add(symbol)
    return list(found.values())


def _read(folders: Sequence[Path], symbol: str) -> Code:
    """From the first folder where it is whole. Raises OSError, ValueError where it is nowhere."""
    error: OSError | ValueError = FileNotFoundError(symbol)
    for folder in folders:
        try:
            return decoded((folder / f"{symbol}.code").read_bytes())
        except (OSError, ValueError) as fault:
            error = fault
    raise error


def encoded(code: Code) -> bytes:
    """The contents of a file: digest, symbols, object file."""
    data = " ".join((code.symbol, *code.needs)).encode() + b"\n" + code.object
    return _MAGIC + hashlib.sha256(data).digest() + data


def decoded(file: bytes) -> Code:
    """The other way. ValueError: damaged."""
    start = len(_MAGIC) + 32
    data = file[start:]
    if file[:start] != _MAGIC + hashlib.sha256(data).digest():
        raise ValueError("not machine code, or damaged")
    symbols, code = data.split(b"\n", 1)
    symbol, *needs = symbols.decode().split()
    return Code(symbol, tuple(needs), code)


@contextmanager
def _alone(folder: Path | None, symbol: str) -> Iterator[None]:
    """One process compiles what is kept in a folder under a name, and others that want the same wait, for as long as it may take.

    Then they find it done. The lock goes with its process. Where there is none (Windows, some network file systems), all compile.
    """
    if folder is None or sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder / f"{symbol}.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
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


def _nothing(*integers: int) -> int:
    return 0


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
def collecting_less() -> Iterator[None]:
    """Numba makes millions of objects; looking for garbage among them takes a sixth of the time. 70 MB more at the peak."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def keep(folder: Path, codes: Sequence[Code], again: bool = False) -> bool:
    """Write the files if another process can link them; whether it can. Where that failed before, and it is not time to try again, no.

    again: it is time.
    codes: in an order in which each follows what it needs; of what else they need there are files. The last one is what Python calls.
    Raises OSError, and ValueError where a file that is needed is missing or damaged.
    """
    failed = folder / f"{codes[-1].symbol}.failed"
    if not (again or _due(failed)):
        return False
    own = {code.symbol for code in codes}
    needed = [name for code in codes for name in code.needs if name not in own]
    try:
        whole = [*_kept(list(dict.fromkeys((folder, *compile_cache.folders()))), needed, lambda name: None), *codes]
    except OSError as error:
        raise ValueError("a file is missing") from error
    if not (_resolves(whole) if child.interpreter() is None else _links(whole)):
        failed.write_text(f"{_failures(failed) + 1}\n", encoding="ascii")
        return False
    for code in codes:
        new = folder / f"{code.symbol}.{os.getpid()}"
        try:
            new.write_bytes(encoded(code))
            compile_cache.readable(new)  # and no more than that, if a folder of root's is opened for all
            new.replace(folder / f"{code.symbol}.code")
        finally:
            new.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return True


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


def _links(codes: Sequence[Code]) -> bool:
    """Whether another process links them; False too where it takes too long or cannot be started."""
    try:
        process = child.start(f"{__package__}.native", "trial", ("bitnet_kernels", "llvmlite", "numpy"))
    except (OSError, child.NoChildError):
        return False
    with process:
        try:
            process.communicate(b"".join(child.framed(encoded(code)) for code in codes), timeout=_TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()
    return process.returncode == 0


def _resolves(codes: Sequence[Code]) -> bool:
    """Whether all that object files ask for is there; False too where that cannot be told."""
    known = {**externals.register(), **{code.symbol: 1 for code in codes}}
    try:
        return all(known.get(name) or object_file.found(name) for code in codes for name in object_file.wanted(code.object))
    except ValueError:
        return False


def trial() -> None:
    """What the other process does: link what stdin brings."""
    _link([decoded(file) for file in child.received(sys.stdin.buffer)])


@interrupted_later()
def _link(codes: Sequence[Code]) -> None:
    """Load object files, which need each other and what is linked already. RuntimeError, ValueError: no object files."""
    from llvmlite import binding

    if not codes:
        return
    externals.register()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(cpu=binding.get_host_cpu_name())
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    for code in codes:
        engine.add_object_file(binding.ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    _engines.append(engine)
    found = {code.symbol: int(engine.get_function_address(code.symbol)) for code in codes}
    if not all(found.values()):
        raise ValueError("a function is missing")
    for symbol, address in found.items():
        binding.add_symbol(symbol, address)
    _addresses.update(found)
