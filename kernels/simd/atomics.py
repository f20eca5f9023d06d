"""A barrier for threads that run one kernel together, from LLVM atomics.

The team's `control` array is int64; the barrier uses two elements on cache lines of their own. Threads spin, because the waits inside
a token are microseconds; a sleep would cost more than the work between two barriers.
"""

import platform
from typing import Any

from llvmlite import ir
from numba import types

from ..externals import register
from .vectors import I32, call, element_pointer, intrinsic


@intrinsic
def atomic_add(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    """array[offset] += value as one step; returns the value before. A full fence, so it also orders what follows."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", element_pointer(ctx, b, array, args[0], args[1]), args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, array: Any, offset: Any) -> Any:
    """array[offset] with acquire order: what other threads wrote before their release is visible afterwards."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load_atomic(element_pointer(ctx, b, array, *args), "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    """array[offset] = value with release order."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store_atomic(args[2], element_pointer(ctx, b, array, args[0], args[1]), "release", 8)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


def pause_instruction() -> Any:
    """`pause()`: tells the CPU that this is a spin loop, where the instruction is known."""
    machine = platform.machine().lower()
    x86, arm = machine in ("x86_64", "amd64"), machine in ("aarch64", "arm64")

    @intrinsic
    def pause(typingctx: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            if x86:
                call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
            elif arm:  # isb, which empties the pipeline: `yield` does nothing on cores without hardware threads, and costs no time
                call(b, "llvm.aarch64.isb", ir.VoidType(), [I32(15)])
            return ctx.get_dummy_value()

        return types.void(), codegen

    return pause


pause = pause_instruction()


_YIELDS = register()["bitnet_yield_thread"]


@intrinsic
def yield_thread(typingctx: Any) -> Any:
    """Let the operating system run another thread: for waits that last because there are more threads than free cores."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        if _YIELDS:
            call(b, "bitnet_yield_thread", I32, [])
        return ctx.get_dummy_value()

    return types.void(), codegen
