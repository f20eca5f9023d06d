"""Reading a file inside a kernel, for bytes that should not stay in this process's memory as mapped pages do."""

from typing import Any

from numba import types

from ..externals import register
from .vectors import I8, I32, I64, call, element_pointer, intrinsic

_KNOWN = register()["bitnet_pread"]


@intrinsic
def read_at(typingctx: Any, descriptor: Any, array: Any, offset: Any, count: Any, position: Any) -> Any:
    """Up to `count` bytes of an open file, from `position` on, to array[offset ...]; returns how many, or -1."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if not _KNOWN:
            return I64(-1)
        pointer = b.bitcast(element_pointer(ctx, b, array, args[1], args[2]), I8.as_pointer())
        return call(b, "bitnet_pread", I64, [b.trunc(args[0], I32), pointer, args[3], args[4]])

    return types.int64(types.int64, array, types.intp, types.int64, types.int64), codegen
