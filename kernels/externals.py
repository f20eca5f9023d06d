"""Functions of the operating system that kernels call, by the names by which LLVM finds them. No Numba here."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding


def _address(function: Callable[[], Any]) -> int:
    try:
        return ctypes.cast(function(), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


@cache
def register() -> dict[str, int]:
    """Tell LLVM the addresses. Name -> address, 0 where the system has no such function.

    bitnet_yield_thread: lets another thread run. bitnet_pread: reads a file at a position without moving the file's own; not on Windows.
    """
    windows = sys.platform == "win32"
    found = {
        "bitnet_yield_thread": _address(lambda: ctypes.CDLL("kernel32").SwitchToThread if windows else ctypes.CDLL(None).sched_yield),
        "bitnet_pread": 0 if windows else _address(lambda: ctypes.CDLL(None).pread),
    }
    for name, address in found.items():
        if address:
            binding.add_symbol(name, address)
    return found
