"""Script: kernels at the ends of their arrays -> true as JSON. A stray read or write ends the process, or raises.

memory_bounds.py guard     arrays that end where no memory may be read (Linux)
memory_bounds.py check     whole steps with NUMBA_BOUNDSCHECK=1, which the environment must set
"""

import ctypes
import json
import mmap
import sys
from typing import Any

import group_cases
import numpy as np
from attending import attend
from bitnet_kernels import arrays, base3, columns, dense, grouped, inputs, quantise, quantised_cache
from bitnet_kernels import ternary as kernels
from bitnet_kernels.group_rows import Groups
from bitnet_kernels.kv_cache import QUANTISED_BITS, QuantisedCache, new_cache
from bitnet_kernels.naive import grouped as naive_grouped
from bitnet_kernels.operands import Destination, Inputs, Matrix
from bitnet_kernels.team import Step
from cases import activations, kernel_order, packed, product, ternary, tile_bytes
from head_case import Head
from numpy.typing import NDArray
from tiny_model import SHAPES, Model, head_bytes

PAGE = mmap.PAGESIZE
_kept: list[mmap.mmap] = []


def at_the_end(values: NDArray[Any]) -> NDArray[Any]:
    """A copy whose last byte is the last of a page, with a page after it that may not be touched."""
    size = -(-values.nbytes // PAGE) * PAGE
    region = mmap.mmap(-1, size + PAGE)
    _kept.append(region)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(region, values.dtype, values.size, size - values.nbytes).reshape(values.shape)
    copy[...] = values
    return copy


def ternary_products(cols: int, rows: int, tokens: int) -> bool:
    """matvec_scaled, matvec_chosen and matmul_scaled with weights and activations that end at the guard."""
    rng = np.random.default_rng(cols)
    weights, codes = ternary(rng, rows, cols), activations(rng, tokens, cols)
    exact = product(weights, codes) + codes.sum(-1, dtype=np.int64)[:, None]
    whole = at_the_end(packed(weights, 0, tail=0))
    one = at_the_end(kernel_order(codes[:1], kernels.WIDTH)[0])
    many = at_the_end(kernel_order(codes, kernels.WIDTH, more_rows=-tokens % 16))
    out, some, chosen = *(at_the_end(np.zeros(rows, np.float32)) for _ in range(2)), at_the_end(np.arange(rows))
    matrix = Matrix(whole, 0, cols, np.float32(1))
    kernels.matvec_scaled(matrix, one, np.int32(0), np.float32(1), out, False, 0, rows)
    kernels.matvec_chosen(matrix, one, np.int32(0), np.float32(1), some, chosen, rows)
    tile = at_the_end(np.zeros(tile_bytes(tokens, cols), np.uint8))
    sums = at_the_end(np.zeros((len(many) + 1) * arrays.BLOCK_ROWS, np.int32))
    table, zeros = at_the_end(np.zeros((tokens, rows), np.float32)), at_the_end(np.zeros(tokens, np.int32))
    x = Inputs(many, zeros, at_the_end(np.ones(tokens, np.float32)), tokens)
    kernels.matmul_scaled(matrix, x, Destination(table, 0, False), tile, sums, 0, rows)
    return bool(np.array_equal(out, exact[0]) and np.array_equal(some, exact[0]) and np.array_equal(table, exact))


def base3_products(cols: int, rows: int) -> bool:
    """build_base3 and both products, with every array at the guard."""
    rng = np.random.default_rng(cols)
    weights, codes = ternary(rng, rows, cols), activations(rng, 1, cols)
    exact, size = product(weights, codes)[0] + codes.sum(dtype=np.int64), base3.row_bytes(cols)
    built, tile = at_the_end(np.zeros(rows * size, np.uint8)), at_the_end(np.zeros(5 * size, np.uint8))
    base3.build_base3(at_the_end(packed(weights, 0, tail=0)), 0, cols, built, 0, tile, 0, rows)
    ordered = np.resize(kernel_order(codes, base3.WIDTH)[0], 5 * size)  # what is past the activations may be anything, here the first again
    ordered, out, some = at_the_end(ordered), at_the_end(np.zeros(rows, np.float32)), at_the_end(np.zeros(rows, np.float32))
    matrix = Matrix(built, 0, cols, np.float32(1))
    base3.base3_matvec(matrix, ordered, np.int32(0), np.float32(1), out, False, 0, rows)
    base3.base3_matvec_chosen(matrix, ordered, np.int32(0), np.float32(1), some, at_the_end(np.arange(rows)), rows)
    return bool(np.array_equal(out, exact) and np.array_equal(some, exact))


def grouped_products(cols: int, rows: int, tokens: int) -> bool:
    """Rows with a scale a group, by panels and by tiles, with every array at the guard."""
    groups, rng = Groups(64), np.random.default_rng(cols)
    codes, scales = group_cases.matrix(rng, rows, cols, 64)
    whole, x = at_the_end(group_cases.packed(codes, scales, 0, tail=0)), rng.standard_normal((tokens, cols)).astype(np.float32)
    exact = naive_grouped.matmul(whole, 0, rows, *naive_grouped.quantise(x, groups)[0], groups)
    count = -(-tokens // grouped.AT_ONCE) * grouped.AT_ONCE
    scratch = arrays.GroupScratch(*map(at_the_end, arrays.new_group_scratch(1, count, cols, 1)))
    ordered, rest = at_the_end(np.zeros((count, cols), np.int8)), at_the_end(np.zeros(cols, np.float32))
    for row in range(tokens):
        grouped.quantise_groups(at_the_end(x[row]), cols, groups, 1, ordered[row], ordered[row], scratch, row, rest)
    few, many = (at_the_end(np.zeros((tokens, rows), np.float32)) for _ in range(2))
    given = Matrix(whole, 0, cols, np.float32(1)), groups, grouped.GroupInputs(ordered, scratch.minus, scratch.steps, tokens)
    tile, sums = np.zeros(arrays.TILE_BYTES, np.uint8), np.zeros(grouped.UNIT_SUMS, np.int32)
    room = grouped.Room(*map(at_the_end, (tile, sums, scratch.totals[0], scratch.scales[0])))
    grouped.matmul_packed(*given, Destination(few, 0, False), room, 0, rows)
    grouped.matmul_tiles(*given, Destination(many, 0, True), room, 0, rows)
    return bool(np.array_equal(few, exact) and np.array_equal(many, exact))


def head(kind: int, rows: int, cols: int) -> bool:
    rng = np.random.default_rng(cols)
    data = at_the_end(head_bytes(rng.standard_normal((rows, cols)).astype(np.float32), kind))
    x, out = at_the_end(np.ones(cols, np.float32)), at_the_end(np.zeros(rows, np.float32))
    dense.head_matvec(dense.HeadRows(data, 0, kind, cols), x, out, 0, rows)
    return bool(np.isfinite(out).all())


def quantiser(cols: int) -> bool:
    x = at_the_end(np.linspace(1, -1, cols).astype(np.float32))
    length = len(kernel_order(np.zeros((1, cols), np.int8), kernels.WIDTH)[0])
    out = at_the_end(np.zeros(length, np.int8))
    quantise.quantise_row(x, cols, out, length)
    return bool(out.max() == 127)


def four_bits(cols: int) -> bool:
    """Rows that end with the 16 values which they are filled up to."""
    x = at_the_end(np.full(-(-cols // 16) * 16, np.nan, np.float32))
    inputs.own_row(at_the_end(np.linspace(1, -1, cols).astype(np.float32)), cols, x)
    if cols % 16 == 0:
        inputs.hadamard(x, cols)
    inputs.keep_largest(x, cols, max(1, cols // 2))
    length = len(kernel_order(np.zeros((1, cols), np.int8), kernels.WIDTH)[0])
    out = at_the_end(np.zeros(length, np.int8))
    sums = [inputs.quantise_row_4(x, cols, kind, out, length)[1] for kind in (arrays.INT4, arrays.FP4)]
    return bool(out.max() == 12 and sums[1] == out.sum(dtype=np.int64))


def by_columns(cols: int, rows: int) -> bool:
    """transpose, find_active and matvec_by_columns with every array at the guard."""
    rng = np.random.default_rng(rows)
    weights, codes = ternary(rng, rows, cols), activations(rng, 1, cols)
    codes[rng.random((1, cols)) < 0.5] = 0
    exact, ordered = product(weights, codes)[0], at_the_end(kernel_order(codes, kernels.WIDTH)[0])
    blocks, length = -(-rows // columns.BLOCK), len(ordered)
    turned = at_the_end(np.zeros(length * blocks * kernels.WIDTH, np.uint8))
    columns.transpose(at_the_end(packed(weights, 0, tail=0)), 0, cols, rows, turned, 0, 0, blocks)
    active, words = at_the_end(np.zeros(length + 4, np.int64)), at_the_end(np.zeros(length // 4 + 1, np.int32))
    sums, out = at_the_end(np.zeros(blocks * columns.BLOCK, np.int32)), at_the_end(np.zeros(rows, np.float32))
    count = columns.find_active(ordered, length, active, words)
    total = codes.sum(dtype=np.int32)
    matrix, found = Matrix(turned, 0, rows, np.float32(1)), columns.Active(active, words, count)
    columns.matvec_by_columns(matrix, found, total, np.float32(1), out, sums, 0, blocks)
    return bool(np.array_equal(out, exact))


def everything_at_the_end(value: Any) -> Any:
    """An array, or a tuple of them in any depth, each at a guard of its own."""
    if isinstance(value, tuple):
        return type(value)(*map(everything_at_the_end, value))
    return at_the_end(value) if isinstance(value, np.ndarray) else value


def searched_head(vocab: int, hidden: int, guarded: bool) -> bool:
    """Top logits by planes whose arrays, like the head's, end at the guard: of one token, and of as many as tiles take."""
    rng = np.random.default_rng(hidden)
    case = Head(rng.standard_normal((vocab, hidden)).astype(np.float32), arrays.HEAD_F16, 1, silent=[1, vocab - 1])
    x, many = rng.standard_normal(hidden).astype(np.float32), rng.standard_normal((arrays.TOGETHER, hidden)).astype(np.float32)
    many[0, 3] = 3e4  # so that second digits meet all rows, and there are twice as many vectors
    if guarded:
        case.weights, case.scratch, x = everything_at_the_end(case.weights), everything_at_the_end(case.scratch), at_the_end(x)
    found = [*(case.check(x, top) for top in (1, 40)), *(case.check_all(some, [3] * len(some)) for some in (many, many[1:10]))]
    return all(each["lost"] == 0 for each in found)


def quantised_positions(kind: str, dim: int, length: int, guarded: bool) -> bool:
    """Keys and values of every position stored, and attention over all of them, with arrays that end at the guard."""
    rng = np.random.default_rng(dim)
    place = at_the_end if guarded else np.copy
    head = QuantisedCache(*(place(part[0, 0]) for part in new_cache(1, 1, dim, length, kind)))
    row, source = place(np.zeros(dim, np.float32)), place(rng.standard_normal(dim + 1).astype(np.float32))
    for p in range(length):
        row[:] = rng.standard_normal(dim)
        quantised_cache.store_key(head, p, 0 if p == 0 else -1, row, dim)
        quantised_cache.store_value(head, p, 0 if p == 0 else -1, source, 1, dim, row)
    results = [attend(rng.standard_normal((rows, dim)).astype(np.float32), head, [length] * rows, place=place) for rows in (1, 4, 7)]
    return all(bool(np.isfinite(result).all()) for result in results)


def guarded_model(name: str) -> Model:
    """Every array of a model ends at a guard of its own."""
    model = Model(SHAPES[name])
    for field in ("weights", "cache", "scratch"):
        setattr(model, field, everything_at_the_end(getattr(model, field)))
    model.team._arrays = Step(model.sizes, model.weights, model.cache, model.scratch, at_the_end(model.team._control))
    model.team._control = model.team._arrays.control
    return model


def whole_steps(guarded: bool) -> bool:
    """To the last position of the context, 47."""
    right = []
    for name, shape in SHAPES.items():
        model, plain = guarded_model(name) if guarded else Model(shape), Model(shape)
        for position, tokens in [*model.plan(), (40, 6), (46, 1), (47, 1)]:
            if guarded:
                right += [np.array_equal(a, b) for a, b in zip(model.run(position, tokens), plain.run(position, tokens), strict=True)]
            else:
                right += [bool(np.isfinite(part).all()) for part in model.run(position, tokens)]
    return all(right)


def main() -> None:
    if sys.argv[1] == "check":
        result = whole_steps(guarded=False) and searched_head(37, 384, guarded=False)
        result &= all(quantised_positions(kind, dim, 33, guarded=False) for kind in QUANTISED_BITS for dim in (20, 96))
    else:
        shapes = [(128, 1, 1), (128, 4, 5), (256, 5, 3), (384, 7, 4), (640, 9, 1), (2688, 3, 2), (6912, 13, 5), (640, 7, 17), (384, 70, 37)]
        result = all(ternary_products(*shape) for shape in shapes)
        kinds = (arrays.HEAD_F32, arrays.HEAD_F16, arrays.HEAD_BF16, arrays.HEAD_Q8_0)
        result &= all(head(kind, rows, cols) for kind in kinds for rows, cols in ((1, 32), (3, 96), (5, 256)))
        result &= all(head(kind, rows, cols) for kind in (arrays.HEAD_Q6_K, arrays.HEAD_Q4_K) for rows, cols in ((1, 256), (3, 768)))
        result &= all(quantiser(cols) and four_bits(cols) for cols in (1, 31, 128, 129, 1000))
        result &= all(base3_products(cols, rows) for cols, rows, _ in shapes)
        result &= all(grouped_products(*shape) for shape in ((64, 1, 1), (192, 16, 3), (640, 37, 5), (1088, 50, 27)))
        result &= all(by_columns(*shape) for shape in ((128, 1), (384, 300), (2560, 129)))
        result &= all(searched_head(*shape, guarded=True) for shape in ((37, 384), (5, 128), (50, 640)))
        sizes = [(2, 1), (20, 15), (64, 16), (80, 33), (96, 64), (100, 65), (128, 48)]
        result &= all(quantised_positions(kind, *size, guarded=True) for kind in QUANTISED_BITS for size in sizes)
        result &= whole_steps(guarded=True)
    json.dump(bool(result), sys.stdout)


main()
