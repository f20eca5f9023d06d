"""Intel's AMX: eight tiles of 16 rows of 64 bytes, and one instruction for the products of two of them. Used by tile.py.

tdpbssd adds to a tile of sums, 16 tokens x 16 weight rows of int32, the products of a tile of activations, 16 tokens x 64 bytes of int8,
and one of codes, 16 words of 4 codes each, a lane a weight row. Those are the layouts that tile.py has anyway (Intel's architecture manual,
volume 1, chapter 18). 16 x 16 x 64 products take 16 cycles: eight times what vpdpbusd does.

Tiles have a shape, which belongs to the thread: it is set before the first of these operations, and let go after the last one, since a
thread with tiles in use costs the operating system 8 KB at each switch.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .vectors import I8, I64, call, element_pointer, intrinsic

ROWS, BYTES = 16, 64  # of a tile
WORDS = BYTES // 4
_NO = ir.VoidType()


@intrinsic
def begin(typingctx: Any) -> Any:
    """All tiles of this thread become 16 x 64 bytes."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        # Byte 0: palette 1; from byte 16 on the bytes of a row, 16 bits a tile; from byte 48 on the rows, 8 bits a tile.
        words = [1, 0, *[BYTES | BYTES << 16 | BYTES << 32 | BYTES << 48] * 2, 0, 0, int.from_bytes(bytes([ROWS] * 8), "little"), 0]
        kind = ir.ArrayType(I64, 8)
        shape = cgutils.alloca_once(b, kind)
        b.store(ir.Constant(kind, words), shape)
        call(b, "llvm.x86.ldtilecfg", _NO, [b.bitcast(shape, I8.as_pointer())])
        return ctx.get_dummy_value()

    return types.void(), codegen


@intrinsic
def end(typingctx: Any) -> Any:
    """Let the tiles go."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        call(b, "llvm.x86.tilerelease", _NO, [])
        return ctx.get_dummy_value()

    return types.void(), codegen


def _moves(name: str, blocks: int) -> Any:
    """Sums of 16 tokens with `blocks` times 16 weight rows <-> memory, int32, `step` elements a token."""

    @intrinsic
    def moves(typingctx: Any, sums: Any, place: Any, step: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for block in range(blocks):
                pointer = element_pointer(ctx, b, sums, args[0], b.add(args[1], I64(ROWS * block)))
                call(b, f"llvm.x86.{name}", _NO, [I8(block), b.bitcast(pointer, I8.as_pointer()), b.mul(args[2], I64(4))])
            return ctx.get_dummy_value()

        return types.void(sums, types.intp, types.intp), codegen

    return moves


def cleared(blocks: int) -> Any:
    """`clear()`: sums of zero in the tiles of `operations`."""

    @intrinsic
    def clear(typingctx: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for block in range(blocks):
                call(b, "llvm.x86.tilezero", _NO, [I8(block)])
            return ctx.get_dummy_value()

        return types.void(), codegen

    return clear


def operations(blocks: int) -> tuple[Any, Any, Any]:
    """load_sums, add_products, store_sums for 16 tokens and so many registers of weight rows (tile.py): three, of eight tiles."""
    activations, codes = blocks, blocks + 1  # tiles after those of sums

    @intrinsic
    def add_products(typingctx: Any, tile: Any, at: Any, values: Any, first: Any, gap: Any) -> Any:
        """Sums += products of 16 words of the tile from byte `at` on, with the activations values[first + t * gap ...] of token t."""

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, values, args[2], args[3])
            call(b, "llvm.x86.tileloadd64", _NO, [I8(activations), pointer, args[4]])
            for block in range(blocks):
                pointer = element_pointer(ctx, b, tile, args[0], b.add(args[1], I64(BYTES * block)))
                call(b, "llvm.x86.tileloadd64", _NO, [I8(codes + block), pointer, I64(BYTES * blocks)])
                call(b, "llvm.x86.tdpbssd", _NO, [I8(block), I8(activations), I8(codes + block)])
            return ctx.get_dummy_value()

        return types.void(tile, types.intp, values, types.intp, types.intp), codegen

    return _moves("tileloadd64", blocks), add_products, _moves("tilestored64", blocks)


def arithmetic() -> tuple[Any, Any, Any]:
    """start, step, store_sums of peak.py: four tiles of sums += products of two tiles of activations and two of codes, without loads."""

    @intrinsic
    def start(typingctx: Any, data: Any) -> Any:
        """Sums of zero, and 1 KB of data in each of the other tiles."""

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            pointer = element_pointer(ctx, b, data, args[0], I64(0))
            for tile in range(4):
                call(b, "llvm.x86.tilezero", _NO, [I8(tile)])
                call(b, "llvm.x86.tileloadd64", _NO, [I8(4 + tile), pointer, I64(BYTES)])
            return ctx.get_dummy_value()

        return types.void(data), codegen

    @intrinsic
    def step(typingctx: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for sums in range(4):
                call(b, "llvm.x86.tdpbssd", _NO, [I8(sums), I8(4 + sums % 2), I8(6 + sums // 2)])
            return ctx.get_dummy_value()

        return types.void(), codegen

    return start, step, _moves("tilestored64", 4)
