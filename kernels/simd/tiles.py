"""Rows in lanes: what the matmul of many tokens needs (tile.py). A lane is 32 bits, and has sums of one row of weights.

A register of codes holds, of LANES rows, four neighbouring codes each. They meet four neighbouring activations of one token, the same in
every lane, and are summed within lanes: a tile's sums need no additions across lanes. Products and folds are the set's own:

    LaneSums                          its vector of narrow sums; `products(b, sums, codes, values)` emits a step,
    lane_fold(b, wide, narrow)        at most STEPS_PER_FOLD of them, and then this, into one int32 a lane
    TILE_BLOCKS, TILE_TOKENS          LANES rows so often, and so many tokens, have their sums in registers at once
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from . import selected
from .vectors import F32, I8, I16, I32, I64, Vector, binary, call, element_pointer, intrinsic, lanewise, loader, storer, sums_of_four

WIDTH = selected.WIDTH
LANES = WIDTH // 4
_Words, _Floats, _Rows = Vector(I32, LANES), Vector(F32, LANES), types.UniTuple(selected.Bytes, LANES)

# Of LANES int32 and float32.
load_words, sub_words, store_floats = loader(_Words), binary(_Words, "sub"), storer(_Floats)
to_floats = lanewise(_Words, _Floats, lambda b, value: b.sitofp(value, _Floats.llvm))
add_floats, mul_floats = binary(_Floats, "fadd"), binary(_Floats, "fmul")


def _chosen(b: Any, x: Any, y: Any, lanes: Sequence[int]) -> Any:
    """Lanes of two vectors of 32-bit words, numbered through."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def repeated(b: Any, word: Any, vector: Vector) -> Any:
    """A 32-bit word in every lane."""
    one = b.insert_element(ir.Constant(vector.llvm, ir.Undefined), word, I32(0))
    return _chosen(b, one, one, [0] * vector.lanes)


@intrinsic
def splat_word(typingctx: Any, word: Any) -> Any:
    """The same int32 in every lane."""
    return _Words(types.int32), lambda ctx, b, sig, args: repeated(b, args[0], _Words)


@intrinsic
def splat_float(typingctx: Any, value: Any) -> Any:
    """The same float32 in every lane."""
    return _Floats(types.float32), lambda ctx, b, sig, args: repeated(b, args[0], _Floats)


def _first_lanes(b: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    word = repeated(b, b.trunc(count, I32), _Words)
    return b.icmp_signed("<", ir.Constant(_Words.llvm, list(range(LANES))), word)


@intrinsic
def load_some(typingctx: Any, array: Any, at: Any, count: Any) -> Any:
    """The first `count` lanes from array[at] on. No others are read: they are -0.0, which changes nothing if it is added."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = b.bitcast(element_pointer(ctx, b, array, *args[:2]), _Floats.llvm.as_pointer())
        operands = [pointer, I32(4), _first_lanes(b, args[2]), _Floats.splat(-0.0)]
        return call(b, f"llvm.masked.load.v{LANES}f32.p0", _Floats.llvm, operands)

    return _Floats(array, types.intp, types.intp), codegen


@intrinsic
def store_some(typingctx: Any, array: Any, at: Any, value: Any, count: Any) -> Any:
    """The first `count` lanes to array[at ...]."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = b.bitcast(element_pointer(ctx, b, array, *args[:2]), _Floats.llvm.as_pointer())
        call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [args[2], pointer, I32(4), _first_lanes(b, args[3])])
        return ctx.get_dummy_value()

    return types.void(array, types.intp, _Floats, types.intp), codegen


def _packed_line(ctx: Any, b: Any, kind: Any, array: Any, start: Any, left: Any) -> Any:
    """A register from array[start] on, of which only the first `left` bytes are there: zeros after them.

    A row is whole blocks of 32 bytes, so only longer registers can be too long, and those have loads with masks.
    """
    vector, pointer = selected.Bytes, element_pointer(ctx, b, kind, array, start)
    pointer = b.bitcast(pointer, vector.llvm.as_pointer())
    if WIDTH == 32:
        return b.load(pointer, align=1)
    bits = b.select(b.icmp_signed("<", left, I64(WIDTH)), b.sub(b.shl(I64(1), left), I64(1)), I64(-1))
    mask = b.bitcast(bits, ir.VectorType(ir.IntType(1), WIDTH))
    return call(b, f"llvm.masked.load.v{WIDTH}i8.p0", vector.llvm, [pointer, I32(1), mask, vector.splat(0)])


def ask(ctx: Any, b: Any, kind: Any, array: Any, at: Any, registers: int, locality: int) -> None:
    """Bring so many registers from byte `at` on to a cache. locality: as vectors.prefetcher's."""
    for line in range(0, registers * WIDTH, 64):
        pointer = b.bitcast(element_pointer(ctx, b, kind, array, b.add(at, I64(line))), I8.as_pointer())
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(locality), I32(1)])


@intrinsic
def load_rows(typingctx: Any, array: Any, at: Any, stride: Any, count: Any, left: Any) -> Any:
    """A register from each row at at, at + stride ..., zeros after `left` bytes; past `count` rows, the last again."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        data, at, stride, count, left = args
        rows = []
        for i in range(LANES):
            rows.append(_packed_line(ctx, b, array, data, at, left))
            at = b.add(at, b.select(b.icmp_signed("<", I64(i + 1), count), stride, I64(0)))
        return ctx.make_tuple(b, _Rows, rows)

    return _Rows(array, *[types.intp] * 4), codegen


def transposed(b: Any, rows: list[Any]) -> list[Any]:
    """LANES vectors of as many words -> vector i has word i of each. Shuffles within 16 bytes, then of 16 bytes: two each on x86."""
    quarters = range(0, LANES, 4)

    def zipped(x: Any, y: Any, unit: int, half: int) -> Any:
        units = [q + 2 * half + i for q in quarters for i in range(0, 2, unit)]
        return _chosen(b, x, y, [start + base + i for start in units for base in (0, LANES) for i in range(unit)])

    fours = []
    for i in quarters:
        for half in (0, 1):
            x, y = zipped(rows[i], rows[i + 1], 1, half), zipped(rows[i + 2], rows[i + 3], 1, half)
            fours += [zipped(x, y, 2, 0), zipped(x, y, 2, 1)]  # word j of four rows, of every 16 bytes
    return [part for words in zip(*(_of_sixteen_bytes(b, fours[j::4]) for j in range(4)), strict=True) for part in words]


def _of_sixteen_bytes(b: Any, parts: list[Any]) -> list[Any]:
    """Two vectors of two 16-byte parts, or four of four -> vector i has part i of each."""

    def pair(x: Any, y: Any, first: int, second: int) -> Any:
        return _chosen(b, x, y, [base + 4 * part + i for base in (0, LANES) for part in (first, second) for i in range(4)])

    if len(parts) == 2:
        return [_chosen(b, parts[0], parts[1], [base + 4 * part + i for base in (0, LANES) for i in range(4)]) for part in (0, 1)]
    halves = [[pair(parts[i], parts[i + 1], first, first + 1) for i in (0, 2)] for first in (0, 2)]
    return [pair(x, y, first, first + 2) for x, y in halves for first in (0, 1)]


def two_bits(b: Any, words: Any, shift: int) -> Any:
    """Bits shift, shift + 1 of each byte. Shifted in 16-bit lanes: x86 has no others."""
    halves = ir.VectorType(I16, WIDTH // 2)
    value = b.bitcast(words, halves)
    value = b.lshr(value, ir.Constant(halves, [shift] * halves.count)) if shift else value
    return b.and_(b.bitcast(value, selected.Bytes.llvm), selected.Bytes.splat(3))


@intrinsic
def store_codes(typingctx: Any, rows: Any, tile: Any, place: Any, gap: Any) -> Any:
    """Packed registers of LANES rows -> registers of codes, four neighbours of each row, at tile[place], tile[place + gap] ..."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        packed = [b.bitcast(b.extract_value(args[0], i), _Words.llvm) for i in range(LANES)]
        for number, words in enumerate(transposed(b, packed)):
            for field in range(4):
                at = b.add(args[2], b.mul(args[3], I64(field * LANES + number)))
                pointer = b.bitcast(element_pointer(ctx, b, tile, args[1], at), selected.Bytes.llvm.as_pointer())
                b.store(two_bits(b, words, 6 - 2 * field), pointer, align=1)
        return ctx.get_dummy_value()

    return types.void(_Rows, tile, types.intp, types.intp), codegen


def packed_codes(ctx: Any, b: Any, kind: Any, array: Any, start: Any, left: Any, ahead: Any) -> list[Any]:
    """Codes of a register of packed ones, field by field; as `_packed_line`. Asks for what is at byte `ahead`, in L2."""
    ask(ctx, b, kind, array, ahead, 1, 2)
    words = _packed_line(ctx, b, kind, array, start, left)
    return [two_bits(b, words, 6 - 2 * field) for field in range(4)]


@intrinsic
def turn_words(typingctx: Any, array: Any, at: Any, gap: Any, out: Any, place: Any, step: Any) -> Any:
    """LANES words of 32 bits from array[at], array[at + gap] ... on, LANES times -> word i of each to out[place + i * step ...]."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        def pointers(kind: Any, data: Any, start: Any, far: Any) -> list[Any]:
            starts = (b.add(start, b.mul(far, I64(i))) for i in range(LANES))
            return [b.bitcast(element_pointer(ctx, b, kind, data, place), _Words.llvm.as_pointer()) for place in starts]

        rows = [b.load(pointer, align=1) for pointer in pointers(array, *args[:3])]
        for words, pointer in zip(transposed(b, rows), pointers(out, *args[3:]), strict=True):
            b.store(words, pointer, align=1)
        return ctx.get_dummy_value()

    return types.void(array, types.intp, types.intp, out, types.intp, types.intp), codegen


def operations(blocks: int, tokens: int) -> tuple[Any, Any, Any]:
    """What works on sums of `blocks` times LANES rows with so many tokens, kept in registers: a tuple, tokens one after the other.

    no_sums()                                       all zero
    add_step(sums, tile, at, values, first, gap)    with one register of codes of each block, from tile[at] on, and four activations of each
                                                    token, from values[first], values[first + gap] ... on
    add_to(sums, array, at, step, place, gap)       and int32 at array[at ...], array[at + step ...] ..., a token each, to array[place ...],
                                                    array[place + gap ...] ...
    """
    kind = types.UniTuple(selected.LaneSums, blocks * tokens)

    @intrinsic
    def no_sums(typingctx: Any) -> Any:
        return kind(), lambda ctx, b, sig, args: ctx.make_tuple(b, kind, [selected.LaneSums.splat(0)] * kind.count)

    @intrinsic
    def add_step(typingctx: Any, sums: Any, tile: Any, at: Any, values: Any, first: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            codes, result = [], []
            for i in range(blocks):
                pointer = element_pointer(ctx, b, tile, args[1], b.add(args[2], I64(i * WIDTH)))
                codes.append(b.load(b.bitcast(pointer, selected.Bytes.llvm.as_pointer()), align=1))
            for t in range(tokens):
                pointer = element_pointer(ctx, b, values, args[3], b.add(args[4], b.mul(args[5], I64(t))))
                word = b.load(b.bitcast(pointer, I32.as_pointer()), align=1)
                x = b.bitcast(repeated(b, word, _Words), selected.Bytes.llvm)
                result += [selected.products(b, b.extract_value(args[0], t * blocks + i), codes[i], x) for i in range(blocks)]
            return ctx.make_tuple(b, kind, result)

        return kind(kind, tile, types.intp, values, types.intp, types.intp), codegen

    @intrinsic
    def add_to(typingctx: Any, sums: Any, array: Any, at: Any, step: Any, place: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            for number in range(kind.count):
                token, lane = I64(number // blocks), I64(number % blocks * LANES)
                starts = (b.add(b.add(start, b.mul(far, token)), lane) for start, far in (args[2:4], args[4:]))
                source, out = (b.bitcast(element_pointer(ctx, b, array, args[1], start), _Words.llvm.as_pointer()) for start in starts)
                b.store(selected.lane_fold(b, b.load(source, align=4), b.extract_value(args[0], number)), out, align=4)
            return ctx.get_dummy_value()

        return types.void(kind, array, *[types.intp] * 4), codegen

    return no_sums, add_step, add_to


def _adder_across(rows: int, kind: types.UniTuple) -> Any:
    """packed_operations' add_to."""

    @intrinsic
    def add_to(typingctx: Any, sums: Any, out: Any, place: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            wide = [selected.lane_fold(b, _Words.splat(0), b.extract_value(args[0], i)) for i in range(kind.count)]
            for i in range(0, kind.count, 4):
                totals = sums_of_four(b, wide[i : i + 4])
                for part in range(0, 4, rows):
                    start = b.add(args[2], b.mul(args[3], I64((i + part) // rows)))
                    few = _chosen(b, totals, totals, range(part, part + rows))
                    pointer = b.bitcast(element_pointer(ctx, b, out, args[1], start), few.type.as_pointer())
                    b.store(b.add(b.load(pointer, align=4), few), pointer, align=4)
            return ctx.get_dummy_value()

        return types.void(kind, out, types.intp, types.intp), codegen

    return add_to


def packed_operations(rows: int, tokens: int) -> tuple[Any, Any, Any]:
    """Sums of 2 or 4 packed rows with so many tokens. Codes stay as they lie, a row in a register: nothing is stored, but lanes are added.

    no_sums()                                   all zero
    add_step(sums, packed, at, left, stride,    with a register of each row, from packed[at], packed[at + stride] ... on, `left` bytes,
             values, first, gap)                and the activations of a token each from values[first], values[first + gap] ... on
    add_to(sums, out, place, gap)               the sums over the lanes to int32 at out[place], out[place + gap] ...
    """
    kind = types.UniTuple(selected.LaneSums, rows * tokens)

    @intrinsic
    def no_sums(typingctx: Any) -> Any:
        return kind(), lambda ctx, b, sig, args: ctx.make_tuple(b, kind, [selected.LaneSums.splat(0)] * kind.count)

    @intrinsic
    def add_step(typingctx: Any, sums: Any, packed: Any, at: Any, left: Any, stride: Any, values: Any, first: Any, gap: Any) -> Any:
        def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            totals, data, start, bytes_left, step, activations, place, far = args
            lines = [_packed_line(ctx, b, packed, data, b.add(start, b.mul(step, I64(row))), bytes_left) for row in range(rows)]
            result = [b.extract_value(totals, i) for i in range(kind.count)]
            for field in range(4):
                codes = [two_bits(b, line, 6 - 2 * field) for line in lines]
                for t in range(tokens):
                    x_at = b.add(b.add(place, I64(field * WIDTH)), b.mul(far, I64(t)))
                    pointer = element_pointer(ctx, b, values, activations, x_at)
                    x = b.load(b.bitcast(pointer, selected.Bytes.llvm.as_pointer()), align=1)
                    for row in range(rows):
                        result[rows * t + row] = selected.products(b, result[rows * t + row], codes[row], x)
            return ctx.make_tuple(b, kind, result)

        return kind(kind, packed, *[types.intp] * 3, values, types.intp, types.intp), codegen

    return no_sums, add_step, _adder_across(rows, kind)
