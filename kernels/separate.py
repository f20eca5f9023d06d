"""Separate compilation: a tree of kernels in several parts, by several processes side by side, each part kept for all that call it.

A kernel marked `@separate` (jit.py) has machine code and a symbol of its own. Who calls it needs to know only what it returns, which its
mark says; so it is neither typed nor lowered there, and other processes make its code meanwhile. The next layout of arrays, cache type or
model that calls it with the same types finds it done. Which parts there are turns out while their callers are compiled: `Build` hands each
to whoever is free, this process among them. From 25 to 13 seconds on two cores (docs/log.md#separate).
"""

import hashlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import IO, Any, NamedTuple

from . import child, compile_cache, isa
from .interrupts import let_interrupt

PROCESSES = 3  # at most, this one among them: each takes 200 to 350 MB
PATIENCE = 60.0  # seconds for a child: ten times what its longest part takes
NEEDED = ("bitnet_kernels", "numba", "llvmlite", "numpy")
SETTINGS = (
    "BITNET_CACHE_DIR",
    "BITNET_SHARED_CACHE_DIR",
    "HOME",
    "XDG_CACHE_HOME",
    "LOCALAPPDATA",
)  # and all of Numba's own: so that all compile alike


class Part(NamedTuple):
    """The kernel `name` of the module `module` of this package, for arguments of these types of Numba's."""

    module: str
    name: str
    types: tuple[Any, ...]

    @property
    def symbol(self) -> str:
        return symbol_of(self.module, self.name, self.types)


class Code(NamedTuple):
    """An object file. needs: symbols of the parts that it calls."""

    symbol: str
    needs: tuple[str, ...]
    object: bytes


def symbol_of(module: str, name: str, types: object) -> str:
    """What a part's machine code is called by, in the linker and in the folder where it is kept."""
    return f"{module}.{name}-{hashlib.sha256(repr((types, isa.target())).encode()).hexdigest()[:16]}"


def compile_part(part: Part, symbol: str, found: Callable[[Part], object]) -> Code:
    """Compile a kernel. found: told of each part that it calls, some of them while it is still compiled."""
    from . import callees

    kernel = getattr(import_module(f".{part.module}", __package__), part.name)
    with callees.separately(found):
        object_code, called = callees.of(kernel).object_code(part.types, symbol)
    for other in called.values():
        found(other)
    return Code(symbol, tuple(called), object_code)


class Build:
    """All parts of one kernel. known: says of a symbol whether its code is there already."""

    def __init__(self, known: Any):
        self._known = known
        self._changed = threading.Condition()
        self._waiting: dict[str, Part] = {}
        self._at_work: dict[str, Part] = {}
        self._seen: set[str] = set()
        self.codes: dict[str, Code] = {}
        self._children: list[child.Process] = []

    def run(self, root: Part, symbol: str, processes: int) -> list[Code]:
        """Compile the kernel and all that it calls and is not known: codes in an order in which each follows those that it needs."""
        self._at_work[symbol] = root
        try:
            self._start(processes - 1)
            self._done(compile_part(root, symbol, self.want))
            while (task := self._take(PATIENCE)) is not None:
                self._done(compile_part(task[1], task[0], self.want))
        finally:
            for process in self._children:
                process.kill()
            with self._changed:  # also where it was interrupted, and others wait for more
                self._waiting, self._at_work = {}, {}
                self._count()
        return list(self._in_order(symbol))

    def _in_order(self, symbol: str) -> Iterator[Code]:
        code = self.codes.pop(symbol, None)
        if code is not None:
            for needed in code.needs:
                yield from self._in_order(needed)
            yield code

    def want(self, part: Part) -> None:
        """Note that a part is called."""
        symbol = part.symbol
        with self._changed:
            if symbol in self._seen or self._known(symbol):
                return
            self._seen.add(symbol)
            self._waiting[symbol] = part
            self._count()

    def _take(self, patience: float | None = None) -> tuple[str, Part] | None:
        """The next part, as soon as there is one; None where none is left and none can come any more.

        patience: after so many seconds in which nothing happens, a part that a child is at: it may hang, or have been stopped.
        """
        until = None if patience is None else time.monotonic() + patience
        with self._changed:
            while not self._changed.wait_for(lambda: self._waiting or not self._at_work, 0.1 if until else None):
                let_interrupt()
                if until and time.monotonic() >= until:
                    break
            for parts in (self._waiting, self._at_work):
                for symbol, part in parts.items():
                    del parts[symbol]
                    self._at_work[symbol] = part
                    return symbol, part
        return None

    def _count(self) -> None:
        """Tell who waits, in this process, and the user."""
        compile_cache.compiled.waiting = len(self._waiting) + len(self._at_work)
        self._changed.notify_all()

    def _done(self, code: Code) -> None:
        with self._changed:
            self.codes[code.symbol] = code
            self._at_work.pop(code.symbol, None)
            compile_cache.compiled.done += 1
            self._count()

    def _start(self, count: int) -> None:
        for _ in range(count):
            try:
                process = child.start(f"{__package__}.separate", "work", NEEDED)
            except (OSError, child.NoChildError):
                return
            self._children.append(process)
            threading.Thread(target=self._lead, args=(process,), daemon=True).start()

    def _lead(self, process: child.Process) -> None:
        """Give one child parts to compile, until there are no more. What it fails at is left to the others."""
        task = None
        with suppress(Exception), process:  # a child that fails may say anything
            assert process.stdout is not None  # child.start makes pipes of both
            send(process.stdin, settings())
            for answer in messages(process.stdout):
                if isinstance(answer, Part):
                    self.want(answer)
                    continue
                if isinstance(answer, Code):
                    self._done(answer)
                task = self._take()  # also where it has only said that it is ready
                if task is None:
                    break
                send(process.stdin, task)
        if task is not None:
            with self._changed:
                if self._at_work.pop(task[0], None):
                    self._waiting[task[0]] = task[1]
                self._count()


def send(pipe: Any, value: object) -> None:
    """Any object, pickled, to another process."""
    pipe.write(child.framed(pickle.dumps(value)))
    pipe.flush()


def messages(pipe: IO[bytes]) -> Iterator[Any]:
    """What comes by `send`, to the pipe's end."""
    return (pickle.loads(message) for message in child.received(pipe))


def settings(set_name: str = "") -> dict[str, str]:
    """What a child must know to compile as this process does, or for another instruction set."""
    own = {name: value for name, value in os.environ.items() if name in SETTINGS or name.startswith("NUMBA_")}
    return own | {"BITNET_ISA": set_name or isa.chosen()}


def begin() -> Iterator[Any]:
    """In a child: take the settings from stdin, and give what else comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair, which ends this process
    sent = messages(sys.stdin.buffer)
    os.environ.update(next(sent))
    isa.assume(os.environ["BITNET_ISA"])
    return sent


def processes() -> int:
    """How many processes compile side by side."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(count or 1, PROCESSES)


def work() -> None:
    """What a child does."""
    sent, sink = begin(), sys.stdout.buffer
    from . import native, records  # noqa: F401  # types of frames, before any is read

    with native.collecting_less():
        import_module(f"{__package__}.step")
        send(sink, "ready")
        for symbol, part in sent:
            send(sink, compile_part(part, symbol, lambda part: send(sink, part)))
