"""Ctrl-C where it may come at any moment: the signal waits, and its handler runs where an exception can be borne. SIGTERM likewise.

An exception between any two lines of llvmlite's frees what LLVM still has, and the process dies of it; LLVM also calls back into Python,
where exceptions are dropped; and modules of Numba that are being imported print an interrupt and fail with another error.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}  # of the signals that wait
_noted: list[int] = []
_may_come = False


def _note(number: int, frame: FrameType | None) -> None:
    _noted.append(number)


@contextmanager
def interrupted_later(may_come: bool = False) -> Iterator[None]:
    """Signals wait for the end of the body, or, if they may come before, for a `let_interrupt` in it.

    Elsewhere than in the main thread this does nothing: handlers run there. Nor for signals that are ignored, or end the process at once.
    """
    global _may_come
    if _handlers or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):
                _handlers[number] = handler
                signal.signal(number, _note)
        _may_come = may_come
        yield
    finally:
        try:
            _restore()
        finally:
            _deliver(signal.raise_signal)


def let_interrupt() -> None:
    """The moment for signals that wait, if there are any: for what takes long, where it can be left."""
    if _noted and _may_come and threading.current_thread() is threading.main_thread():
        frame = sys._getframe(1)
        _deliver(lambda number: _handlers[number](number, frame))


def _restore() -> None:
    """The handlers as they were, but for those that somebody has set meanwhile; also if one of them raises as soon as it is back."""
    raised = None
    while _handlers:
        try:
            for number, handler in _handlers.items():
                if signal.getsignal(number) is _note:
                    signal.signal(number, handler)
            _handlers.clear()
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _deliver(call: Callable[[int], object]) -> None:
    """Call with each number noted, in order, whatever the calls before it raised."""
    while _noted:
        number = _noted.pop(0)
        try:
            call(number)
        finally:
            _deliver(call)
