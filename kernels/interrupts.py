"""Ctrl-C where it may come at any moment: the signal waits, and its handler runs where an exception can be borne. SIGTERM likewise.

An exception between any two lines of llvmlite's frees what LLVM still has, and the process dies of it; LLVM also calls back into Python,
where exceptions are dropped; and modules of Numba that are being imported print an interrupt and fail with another error.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_handlers: dict[int, Callable[[int, Any], object]] = {}  # of the signals that wait
_noted: list[int] = []


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Signals wait for the end of the body, or for `let_interrupt` within it.

    Elsewhere than in the main thread this does nothing: handlers run there. Nor for signals that are ignored, or end the process at once.
    """
    if _handlers or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            _handlers[number] = handler
            signal.signal(number, lambda number, _: _noted.append(number))
    try:
        yield
    finally:
        _release()


def let_interrupt() -> None:
    """The moment for a signal that waits, if there is one: for what takes long, where it can be left."""
    if _noted and threading.current_thread() is threading.main_thread():
        _release()


def _release() -> None:
    handlers = dict(_handlers)
    _handlers.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    noted, _noted[:] = _noted[:], []
    for number in noted:
        handlers[number](number, None)
