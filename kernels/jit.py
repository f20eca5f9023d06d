"""The one way kernels are compiled: `@kernel`, which is Numba's `njit` without the GIL, cached where a private folder can be had.

`@fast_kernel` also lets LLVM reorder float sums, so that reductions use vectors. Infinities and NaNs keep their meaning in both.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

from . import compile_cache

_options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": compile_cache.prepare() is not None}
_reorder = {"reassoc", "contract", "arcp", "nsz"}


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    return compile_cache.tolerate_faults(njit(**options, **_options)(function))


def kernel(function: Callable[..., Any]) -> Any:
    """Compile as written: float operations in their order."""
    # Said, not left out: what is left out Numba takes from the caller that happens to compile the function first.
    return _compiled(function, fastmath=False)


def fast_kernel(function: Callable[..., Any]) -> Any:
    """Compile with float sums in any order, for loops of reductions."""
    return _compiled(function, fastmath=_reorder)


def inlined(function: Callable[..., Any]) -> Any:
    """For functions of a few vector operations: copied into the caller, so that vectors stay in registers."""
    return _compiled(function, inline="always")
