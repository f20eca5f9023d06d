"""Intel's AMX: eight tiles of 16 rows of 64 bytes, and one instruction for the products of two of them. Used by staged.py and grouped.py.

tdpbssd adds to a tile of sums, 16 tokens x 16 weight rows of int32, the products of a tile of activations, 16 tokens x 64 bytes of int8,
and one of codes, 16 words of 4 codes each, a lane a weight row (Intel's architecture manual, volume 1, chapter 18); or those of weights and
of activations, the other way round. 16 x 16 x 64 products take 16 cycles: eight times what vpdpbusd does. A load of a tile whose rows do
not begin at cache lines takes four times as long.

Tiles have a shape, which belongs to the thread: it is set before the first of these operations, and let go after the last one, since a
thread with tiles in use costs the operating system 8 KB at each switch.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from . import plane_codes, selected
from .tiles import packed_codes
from .vectors import I8, I64, call, element_pointer, intrinsic

ROWS, BYTES = 16, 64  # of a tile
WORDS, SIZE, PAGE = BYTES // 4, ROWS * BYTES, 4096  # words of a row, bytes of a tile; see `staged`
PART = 8  # rows that a stage's quarter unpacks
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


def stored(blocks: int, apart: int = ROWS, size: int = 4) -> Any:
    """`store(sums, place, step)`: the first `blocks` tiles to memory, whose elements take `size` bytes.

    A tile's row goes to element `place`, the next one `step` elements further, the next tile `apart`. As they are, int32 sums of 16 tokens
    with `blocks` times 16 weight rows, `step` a token.
    """

    @intrinsic
    def store(typingctx: Any, sums: Any, place: Any, step: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for block in range(blocks):
                pointer = element_pointer(ctx, b, sums, args[0], b.add(args[1], I64(apart * block)))
                stride = b.mul(args[2], I64(size))
                call(b, "llvm.x86.tilestored64", _NO, [I8(block), b.bitcast(pointer, I8.as_pointer()), stride])
            return ctx.get_dummy_value()

        return types.void(sums, types.intp, types.intp), codegen

    return store


def cleared(blocks: int) -> Any:
    """`clear()`: sums of zero in the first tiles."""

    @intrinsic
    def clear(typingctx: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for block in range(blocks):
                call(b, "llvm.x86.tilezero", _NO, [I8(block)])
            return ctx.get_dummy_value()

        return types.void(), codegen

    return clear


def products(blocks: int) -> Any:
    """add_products for 16 tokens and so many registers of weight rows (grouped.py): three, of eight tiles."""
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

    return add_products


def staged(columns: int) -> Any:
    """`stage(weights, (at, stride, rows, left), ahead, tile, place, unpacked, turned)`: unpacks weights, and multiplies others.

    A quarter of the work: four calls unpack 64 packed bytes of 32 rows, and multiply as many. Weights are the left operand here, 64 packed
    bytes of a row a row of four tiles, so nothing of them is turned; activations are the right one, 16 words of four codes, a lane a token,
    and a tile of sums has 16 weight rows with as many tokens.

    weights: packed ternary rows, or the head's two planes (plane_codes.py), whose codes are unsigned and whose places count in the second.
    unpacks: 64 bytes (the first `left` of them, then zeros) of PART rows, `stride` apart, the first from byte `at` on, the last again where
    there are fewer than that: one field to tile[place ...], the next to tile[place + PAGE ...] ...
    multiplies: tiles of a field of two blocks of rows, tile[unpacked ...] and 4 PAGE further, with `columns` times 16 tokens, from
    tile[turned] on, SIZE apart. Sums: two tiles, then those of the next column; `cleared`'s.
    asks for: as many bytes as it unpacks, from byte `ahead` on, in the L2 cache.

    PAGE: a load that follows a store to the same place of another 4 KB waits for it, since the CPU compares the lower 12 bits of addresses
    first (Intel's optimization manual, "memory disambiguation"). With a quarter of all pages each for what is written, what is read and two
    columns of activations, unpacking and multiplying overlap; one after the other they take twice as long (docs/log.md#stages).
    """
    activations, codes = columns * 2, columns * 3  # tiles after those of sums

    @intrinsic
    def stage(typingctx: Any, weights: Any, rows: Any, ahead: Any, tile: Any, place: Any, unpacked: Any, turned: Any) -> Any:
        unpack = plane_codes.eight_bits if isinstance(weights, types.BaseTuple) else packed_codes
        multiply = "llvm.x86.tdpbusd" if isinstance(weights, types.BaseTuple) else "llvm.x86.tdpbssd"

        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            data, _, next_line, tiles, to, source, values = args
            start, stride, count, left = (b.extract_value(args[1], i) for i in range(4))
            vector = selected.Bytes.llvm.as_pointer()

            def load(number: int, at: Any) -> None:
                call(b, "llvm.x86.tileloadd64", _NO, [I8(number), element_pointer(ctx, b, tile, tiles, at), I64(BYTES)])

            def products(block: int) -> None:
                for column in range(columns if block == 0 else 0):
                    load(activations + column, b.add(values, I64(column * SIZE)))
                load(codes + block, b.add(source, I64(4 * block * PAGE)))
                for column in range(columns):
                    call(b, multiply, _NO, [I8(2 * column + block), I8(codes + block), I8(activations + column)])

            for row in range(PART):
                if row % (PART // 2) == 0:
                    products(row // (PART // 2))
                for field, bytes_ in enumerate(unpack(ctx, b, weights, data, start, left, b.add(next_line, I64(row * BYTES)))):
                    pointer = element_pointer(ctx, b, tile, tiles, b.add(to, I64(row * BYTES + field * PAGE)))
                    b.store(bytes_, b.bitcast(pointer, vector), align=1)
                start = b.add(start, b.select(b.icmp_signed("<", I64(row + 1), count), stride, I64(0)))
            return ctx.get_dummy_value()

        return types.void(weights, types.UniTuple(types.intp, 4), types.intp, tile, *[types.intp] * 3), codegen

    return stage


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

    return start, step, stored(4)
