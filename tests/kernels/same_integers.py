"""Script: every integer kernel of this process's instruction set at many sizes -> names and digests of the results, as JSON.

Run with BITNET_ISA=naive it computes the same by the twins. The digests of all instruction sets must be equal.
"""

import json
import sys

import numpy as np
from bitnet_kernels import arrays, isa, operands
from bitnet_kernels.group_rows import GROUPS, LINE, WHOLE_ROW, Groups
from bitnet_kernels.naive import grouped as naive_grouped
from cases import COLS, activations, digest, extremes, kernel_order, natural_order, packed, padded_length, ternary, tile_bytes
from group_cases import Inputs, matrix, run_matmul
from group_cases import packed as laid_out
from numpy.typing import NDArray

ROWS, TOKENS = 7, 5
NAIVE = isa.chosen() == isa.NAIVE

if NAIVE:
    from bitnet_kernels.naive import inputs as naive_inputs
    from bitnet_kernels.naive import quantise as naive_quantise
    from bitnet_kernels.naive import ternary as naive_ternary
else:
    from bitnet_kernels import base3 as simd_base3
    from bitnet_kernels import columns as simd_columns
    from bitnet_kernels import inputs as simd_inputs
    from bitnet_kernels import quantise as simd_quantise
    from bitnet_kernels import ternary as simd_ternary


def products(weights: NDArray[np.int8], codes: NDArray[np.int8], offset: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By matvec (rows,), token 0 only, and by matmul (tokens, rows)."""
    (rows, cols), tokens = weights.shape, len(codes)
    whole, sums = packed(weights, offset), codes.sum(-1, dtype=np.int64)
    if NAIVE:
        many = naive_ternary.matmul(naive_ternary.unpack(whole, offset, rows, cols), codes).astype(np.int64)
        return many[0], many
    width = simd_ternary.WIDTH
    one, many = np.zeros(rows, np.float32), np.zeros((tokens, rows), np.float32)
    ordered = kernel_order(codes, width, more_rows=-tokens % 16)
    matrix = operands.Matrix(whole, offset, cols, np.float32(1))
    simd_ternary.matvec_scaled(matrix, ordered[0], np.int32(0), np.float32(1), one, False, 0, rows)
    tile, scratch = np.full(tile_bytes(tokens, cols), 99, np.uint8), np.zeros((len(ordered) + 1) * arrays.BLOCK_ROWS, np.int32)
    x = operands.Inputs(ordered, np.zeros(tokens, np.int32), np.ones(tokens, np.float32), tokens)
    simd_ternary.matmul_scaled(matrix, x, operands.Destination(many, 0, False), tile, scratch, 0, rows)
    return one.astype(np.int64) - sums[0], many.astype(np.int64) - sums[:, None]


def sparse_product(weights: NDArray[np.int8], codes: NDArray[np.int8], offset: int) -> NDArray[np.int64]:
    """weights times codes, one token, by columns: (rows,). What the arrays held before must not matter."""
    (rows, cols), whole = weights.shape, packed(weights, offset)
    if NAIVE:
        return naive_ternary.matmul(naive_ternary.unpack(whole, offset, rows, cols), codes[None]).astype(np.int64)[0]
    width, block = simd_ternary.WIDTH, simd_columns.BLOCK
    length, blocks = padded_length(cols, width), -(-rows // block)
    columns = np.full(11 + length * blocks * width, 0xFF, np.uint8)
    simd_columns.transpose(whole, offset, cols, rows, columns, 11, 0, blocks)
    active, words = np.full(length + 4, -99), np.full(length // 4 + 1, -99, np.int32)
    count = simd_columns.find_active(kernel_order(codes[None], width)[0], length, active, words)
    assert count == np.count_nonzero(codes)
    total, out, sums = codes.sum(dtype=np.int32), np.zeros(rows, np.float32), np.full(blocks * block, -99, np.int32)
    one, found = np.float32(1), simd_columns.Active(active, words, count)
    for first, last in ((0, blocks // 2), (blocks // 2, blocks)):
        simd_columns.matvec_by_columns(operands.Matrix(columns, 11, rows, one), found, total, one, out, sums, first, last)
    return out.astype(np.int64)


def by_base3(weights: NDArray[np.int8], codes: NDArray[np.int8], offset: int) -> NDArray[np.int64]:
    """(rows,) for token 0, from base-3 rows built from the same bytes."""
    rows, cols = weights.shape
    whole = packed(weights, offset)
    if NAIVE:
        return naive_ternary.matmul(naive_ternary.unpack(whole, offset, rows, cols), codes)[0].astype(np.int64)
    size, width = simd_base3.row_bytes(cols), simd_base3.WIDTH
    built, tile = np.zeros(rows * size, np.uint8), np.zeros(5 * size, np.uint8)
    simd_base3.build_base3(whole, offset, cols, built, 0, tile, 0, rows)
    out, ordered = np.zeros(rows, np.float32), kernel_order(codes[:1], width, more_cols=4 * width)[0]
    matrix = operands.Matrix(built, 0, cols, np.float32(1))
    simd_base3.base3_matvec(matrix, ordered, np.int32(0), np.float32(1), out, False, 0, rows)
    return out.astype(np.int64) - codes[0].sum(dtype=np.int64)


def by_groups(rng: np.random.Generator, cols: int, groups: Groups) -> list[NDArray[np.float32]]:
    """Rows with a scale a group times 1, 5 and 27 tokens: floats, which are to be the same too."""
    rows = 45
    codes, scales = matrix(rng, rows, cols, groups.weights)
    whole, x = laid_out(codes, scales, LINE), rng.standard_normal((27, cols)).astype(np.float32)
    if NAIVE:
        found = naive_grouped.matmul(whole, LINE, rows, *naive_grouped.quantise(x, groups)[0], groups)
        return [found[:1], found[:5], found, found]
    several = [run_matmul(whole, LINE, rows, Inputs(x[:tokens], groups, 1), 1.0) for tokens in (1, 5, 27)]
    return [*several, run_matmul(whole, LINE, rows, Inputs(x, groups, 1), 1.0, many=True)]


def own_row(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x and zeros up to a multiple of 16."""
    row = np.full(-(-len(x) // 16) * 16, 99, np.float32)
    simd_inputs.own_row(x, len(x), row)
    return row


def quantised(x: NDArray[np.float32], kind: int) -> tuple[NDArray[np.int8], np.float32]:
    """(cols,) -> codes in natural order and the factor."""
    if NAIVE:
        codes, factors = naive_quantise.quantise(x[None], kind)
        return codes[0], factors[0]
    width = simd_ternary.WIDTH
    out = np.full(padded_length(len(x), width), 99, np.int8)
    if kind == arrays.INT8:
        factor, total = simd_quantise.quantise_row(x, len(x), out, len(out))
    else:
        factor, total = simd_inputs.quantise_row_4(own_row(x), len(x), kind, out, len(out))
    natural = natural_order(out[None], width)[0]
    assert total == natural.sum(dtype=np.int64)
    assert not natural[len(x) :].any()
    return natural[: len(x)], np.float32(factor)


def transformed(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cols,) -> after a Hadamard transform, and its largest half with zeros for the others."""
    count = max(1, len(x) // 2)
    if NAIVE:
        return naive_inputs.hadamard(x[None])[0], naive_inputs.keep_largest(x[None], count)[0]
    turned, kept = own_row(x), own_row(x)
    simd_inputs.hadamard(turned, len(x))
    simd_inputs.keep_largest(kept, len(x), count)
    return turned, kept


def main() -> None:
    results: dict[str, str] = {}
    for cols in COLS:
        rng = np.random.default_rng(cols)
        weights, codes = ternary(rng, ROWS, cols), activations(rng, TOKENS, cols)
        results[f"random {cols}"] = digest(*products(weights, codes, cols % 100))
        results[f"base 3, random {cols}"] = digest(by_base3(weights, codes, cols % 100))
    for cols in (5460, 8640):  # rows are packed to whole 128s: what is past the end may be any weight, and meets zeros
        rng = np.random.default_rng(cols)
        whole = arrays.packed_width(cols)
        weights, codes = ternary(rng, ROWS, whole), activations(rng, TOKENS, whole)
        codes[:, cols:] = 0
        exact = codes[:, :cols].astype(np.int64) @ weights[:, :cols].T.astype(np.int64)
        one, many = products(weights, codes, cols % 100)
        by_columns = sparse_product(weights, codes[0], cols % 100)
        assert all(np.array_equal(a, b) for a, b in ((one, exact[0]), (many, exact), (by_columns, exact[0])))
        results[f"padded {cols}"] = digest(one, many, by_columns)
    for cols in (128, 5504, 16384):
        for name, weights, codes in extremes(cols):
            results[f"{name} {cols}"] = digest(*products(weights, codes, 0))
            results[f"base 3, {name} {cols}"] = digest(by_base3(weights, codes, 0))
    for rows, cols, share in ((1, 128, 1.0), (300, 384, 0.5), (2560, 256, 0.2), (129, 8704, 0.05), (256, 5504, 1.0), (70, 128, 0.0)):
        rng = np.random.default_rng(rows)
        weights, codes = ternary(rng, rows, cols), activations(rng, 1, cols)[0]
        codes[rng.random(cols) >= share] = 0
        product = sparse_product(weights, codes, cols % 100)
        assert np.array_equal(product, weights.astype(np.int64) @ codes)
        results[f"columns {rows} x {cols}"] = digest(product)
    for name, weights, codes in extremes(16384):
        results[f"columns {name}"] = digest(sparse_product(weights, codes[0], 0))
    for cols in (1, 127, 128, 1000, 6912):
        x = np.random.default_rng(cols).standard_normal(cols).astype(np.float32)
        for kind, name in enumerate(("int8", "int4", "fp4")):
            results[f"quantise {name} {cols}"] = digest(*quantised(x, kind))
    for cols in (16, 144, 2560, 6912):
        x = np.random.default_rng(cols).standard_normal(cols).astype(np.float32)
        results[f"hadamard, largest half {cols}"] = digest(*transformed(x))
    for weight_group in GROUPS:
        for groups in (Groups(weight_group), Groups(weight_group, 64), Groups(weight_group, WHOLE_ROW)):
            results[f"{groups}"] = digest(*by_groups(np.random.default_rng(weight_group), 1280, groups))
    json.dump({"isa": isa.chosen(), "digests": results}, sys.stdout)


main()
