"""Intel's AMX: eight tiles of 16 rows of 64 bytes, and one instruction for products of two of them. Used by tile.py for 16 tokens and more.

tdpbssd adds to a tile of sums, 16 tokens x 16 weight rows of int32, the products of a tile of activations, 16 tokens x 64 bytes of int8, and
one of codes: 16 words of 4 codes each, a lane a weight row. Those are the layouts that tile.py has anyway (Intel's architecture manual,
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
_ACTIVATIONS, _CODES = 6, 7  # tiles; those before hold sums


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


def _moves(name: str, groups: int, blocks: int) -> Any:
    """Sums of `groups` times 16 tokens with `blocks` times 16 weight rows <-> memory, int32, `step` elements a token."""

    @intrinsic
    def moves(typingctx: Any, sums: Any, place: Any, step: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            stride = b.mul(args[2], I64(4))
            for group in range(groups):
                for block in range(blocks):
                    at = b.add(args[1], b.add(b.mul(args[2], I64(ROWS * group)), I64(ROWS * block)))
                    pointer = b.bitcast(element_pointer(ctx, b, sums, args[0], at), I8.as_pointer())
                    call(b, f"llvm.x86.{name}", _NO, [I8(group * blocks + block), pointer, stride])
            return ctx.get_dummy_value()

        return types.void(sums, types.intp, types.intp), codegen

    return moves


def operations(groups: int, blocks: int) -> tuple[Any, Any, Any]:
    """load_sums, add_products, store_sums for 16 tokens or 32, and so many registers of weight rows (tile.py): at most six tiles of sums."""

    @intrinsic
    def add_products(typingctx: Any, tile: Any, at: Any, values: Any, first: Any, gap: Any) -> Any:
        """Sums += products of 16 words of the tile from byte `at` on, with the activations values[first + t * gap ...] of token t."""

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for group in range(groups):
                row = b.add(args[3], b.mul(args[4], I64(ROWS * group)))
                pointer = element_pointer(ctx, b, values, args[2], row)
                call(b, "llvm.x86.tileloadd64", _NO, [I8(_ACTIVATIONS), pointer, args[4]])
                for block in range(blocks):
                    pointer = element_pointer(ctx, b, tile, args[0], b.add(args[1], I64(BYTES * block)))
                    call(b, "llvm.x86.tileloadd64", _NO, [I8(_CODES), pointer, I64(BYTES * blocks)])
                    call(b, "llvm.x86.tdpbssd", _NO, [I8(group * blocks + block), I8(_ACTIVATIONS), I8(_CODES)])
            return ctx.get_dummy_value()

        return types.void(tile, types.intp, values, types.intp, types.intp), codegen

    return _moves("tileloadd64", groups, blocks), add_products, _moves("tilestored64", groups, blocks)
