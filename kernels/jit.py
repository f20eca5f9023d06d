"""The one way kernels are compiled: `@kernel`, which is Numba's `njit` without the GIL.

`@entry` is a kernel that Python calls over a frame, compiled once and kept (native.py); any other that Python calls, as tests do, is
compiled in each process. Float operations are done as written, in their order, everywhere: `fastmath` would let LLVM choose an order, and
another one on each CPU. Where a sum is to be quick, its order is 16 lanes and their total (simd/floats.py).
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from numba import njit

from .callees import Callees, RootCompiler, of

_options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "_nrt": False}


def _compiled(function: Callable[..., Any], inlined: bool = False, **options: Any) -> Any:
    dispatcher: Any = njit(**options, **_options)(function)
    dispatcher._compiler.__class__ = RootCompiler
    callees = Callees(dispatcher, inlined)
    dispatcher.get_call_template, dispatcher.get_overload = callees.called, callees.found
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function, as a part of all that call it."""
    return _compiled(function)


def inlined(function: Callable[..., Any]) -> Any:
    """For functions of a few vector operations: copied into the caller, so that vectors stay in registers."""
    return _compiled(function, inlined=True)


def separate(returns: str = "none") -> Callable[[Any], Any]:
    """For a kernel that is worth code of its own (separate.py). returns: what it returns, by Numba's name of the type."""

    def marked(dispatcher: Any) -> Any:
        of(dispatcher).returns = returns
        return dispatcher

    return marked


def entry(function: Callable[..., Any]) -> Any:
    """A kernel for Python, native.py's `Entry`: its arguments are a frame and integers, its result is an integer."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C while Numba compiles becomes KeyboardInterrupt, whatever Python was doing just then.

    LLVM calls back into Python while it compiles. An exception there is printed and dropped, and Numba then fails with one of its own,
    or goes on. So the signal is noted too, and raised afterwards. Elsewhere than in the main thread this does nothing: signals go there.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        raise KeyboardInterrupt

    def drop(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, drop
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not noted:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
    if noted:
        raise KeyboardInterrupt
