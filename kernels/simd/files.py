"""Reading a file inside a kernel, for bytes that should not stay in this process's memory as mapped pages do."""

import ctypes
import sys
from typing import Any

from llvmlite import binding
from numba import types

from .vectors import I8, I32, I64, call, element_pointer, intrinsic


def _pread() -> int:
    """Address of pread, which reads at a position without moving the file's own; 0 where there is none, as on Windows."""
    try:
        return 0 if sys.platform == "win32" else ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


_address = _pread()
if _address:
    binding.add_symbol("bitnet_pread", _address)


@intrinsic
def read_at(typingctx: Any, descriptor: Any, array: Any, offset: Any, count: Any, position: Any) -> Any:
    """Up to `count` bytes of an open file, from `position` on, to array[offset ...]; returns how many, or -1."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not _address:
            return I64(-1)
        pointer = b.bitcast(element_pointer(ctx, b, array, args[1], args[2]), I8.as_pointer())
        return call(b, "bitnet_pread", I64, [b.trunc(args[0], I32), pointer, args[3], args[4]])

    return types.int64(types.int64, array, types.intp, types.int64, types.int64), codegen
