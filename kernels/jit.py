"""The one way kernels are compiled: `@kernel`, which is Numba's `njit` without the GIL.

`@entry` is a kernel that Python calls over a frame, compiled once and kept (native.py); any other that Python calls, as tests do, is
compiled in each process. Float operations are done as written, in their order, everywhere: `fastmath` would let LLVM choose an order, and
another one on each CPU. Where a sum is to be quick, its order is 16 lanes and their total (simd/floats.py).
"""

from collections.abc import Callable
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
