"""The one way kernels are compiled: `@kernel`, which is Numba's `njit` without the GIL, cached where a private folder can be had.

`@entry` is a kernel that Python calls over a frame (native.py). `@fast_kernel` also lets LLVM reorder float sums, so that reductions use
vectors. Infinities and NaNs keep their meaning in both.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from numba import njit
from numba.core import event

from . import compile_cache
from .callees import Callees, RootCompiler

_options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "cache": compile_cache.keeps()}
_reorder = {"reassoc", "contract", "arcp", "nsz"}


def _compiled(function: Callable[..., Any], inlined: bool = False, **options: Any) -> Any:
    dispatcher = compile_cache.tolerate_faults(njit(**options, **_options)(function))
    dispatcher._compiler.__class__ = RootCompiler
    callees = Callees(dispatcher, inlined)
    dispatcher.get_call_template, dispatcher.get_overload = callees.called, callees.found
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """Compile as written: float operations in their order."""
    # Said, not left out: what is left out Numba takes from the caller that happens to compile the function first.
    return _compiled(function, fastmath=False)


def fast_kernel(function: Callable[..., Any]) -> Any:
    """Compile with float sums in any order, for loops of reductions."""
    return _compiled(function, fastmath=_reorder)


def inlined(function: Callable[..., Any]) -> Any:
    """For functions of a few vector operations: copied into the caller, with its rules for floats, so that vectors stay in registers."""
    return _compiled(function, inlined=True)


def entry(function: Callable[..., Any]) -> Any:
    """A kernel for Python, native.py's `Entry`: its arguments are a frame and integers, its result is an integer.

    Without the wrappers by which Numba is called from Python and C, its machine code needs neither Numba nor Python.
    """
    dispatcher = _compiled(function, fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
    kept: Any = getattr(dispatcher._cache, "_impl", None) if _options["cache"] else None
    rebuild: Any = getattr(kept, "rebuild", None)

    def noting(context: Any, payload: Any) -> Any:
        with suppress(LookupError, TypeError):  # (name, kind, (object code, bitcode)) of Numba's library, which may change
            _loaded[dispatcher] = bytes(payload[0][2][0])
        return rebuild(context, payload)

    if rebuild is not None:
        kept.rebuild = noting
    return dispatcher


_loaded: dict[Any, bytes] = {}


def loaded_code(dispatcher: Any) -> bytes | None:
    """The object code of an entry that Numba has loaded from its cache, which Numba itself forgets; None where it compiled it."""
    return _loaded.pop(dispatcher, None)


class _Counter(event.Listener):
    def on_start(self, event: Any) -> None:
        """Called by Numba."""

    def on_end(self, event: Any) -> None:
        """Called by Numba, in the thread that compiles."""
        compile_cache.compiled.done += 1


event.register("numba:compile", _Counter())


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
