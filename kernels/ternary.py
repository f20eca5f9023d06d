"""Ternary weights times int8 activations: integers until the end. Twin: naive/ternary.py.

`packed` is a flat byte array; a matrix starts at byte `offset` and has I2_S rows of cols / 4 bytes, cols a multiple of 128.
`codes` holds activations in kernel order (quantise.py). With weight codes 0, 1, 2 for -1, 0, +1,

    sum_c w[r, c] * q[c] = sum_c code[r, c] * q[c] - sum_c q[c].

Decode reads each weight once, so `matvec` works on the packed bytes, four rows a pass, and asks for memory PREFETCH bytes ahead. Prefill
has many tokens, so `matmul` unpacks a few rows to L1 once and uses them for every token. Up to FEW tokens meet the packed bytes.
"""

import numpy as np

from .jit import inlined, kernel
from .row_sums import four_rows, one_row
from .simd import selected, vectors
from .tile import BLOCK, TILE_ROWS, TOKENS, ask_for, scale_sums, sums_4, sums_8, unpack_rows

WIDTH = selected.WIDTH
NEXT_PACKED = 8  # rows ahead that few tokens ask for; more are gone from L1 before they are read
NEXT_ROWS = 6  # chosen rows ahead; 3 and 6 measure alike, 1 is a fifth slower (docs/log.md)
PREFETCH = 2048  # bytes ahead in each of the four streams: 39 GB/s on a Zen 5 core; 1024 gives 35, 4096 gives 39 (docs/log.md)
load, load_half, store = selected.load, selected.load_half, selected.store
dot, fold, add_totals = selected.dot, selected.fold, selected.add_totals
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
flattened, prefetch = vectors.flattened, vectors.prefetch
zero_narrow, zero_wide = selected.zero_narrow, selected.zero_wide
FEW = 4  # tokens that meet packed rows four rows and two tokens at a time; more are worth unpacking rows (docs/log.md)
_FOLD = selected.STEPS_PER_FOLD


@kernel
def _four_streams(packed, at, quarter, stride, codes):  # type: ignore[no-untyped-def]
    """Code sums of the rows at byte `at` and 1, 2 and 3 times `quarter` rows further on.

    Four streams that run through the matrix are prefetched by the hardware too; four neighbouring rows end before it sees them.
    """
    step = quarter * stride
    r1, r2, r3, ahead = at + step, at + 2 * step, at + 3 * step, PREFETCH
    return four_rows(packed, at, r1, r2, r3, at + ahead, r1 + ahead, r2 + ahead, r3 + ahead, stride, codes)


@kernel
def matvec(packed, offset, cols, codes, out, first, last):  # type: ignore[no-untyped-def]
    """out[r] = sum_c code[r, c] * codes[c] for rows first <= r < last. codes: (padded cols,) int8;  out: (rows,) int32."""
    stride, quarter = cols // 4, (last - first) // 4
    for row in range(first, first + quarter):
        sums = _four_streams(packed, offset + row * stride, quarter, stride, codes)
        for i in range(4):
            out[row + i * quarter] = sums[i]
    for row in range(first + 4 * quarter, last):
        out[row] = one_row(packed, offset + row * stride, stride, codes)


@kernel
def matvec_scaled(packed, offset, cols, codes, code_sum, scale, out, accumulate, first, last):  # type: ignore[no-untyped-def]
    """out[r] (+)= (code sum of row r - code_sum) * scale for first <= r < last.

    scale: weight scale / activation factor;  out: (rows,) float32;  accumulate: add to what is there (residual).
    """
    stride, quarter = cols // 4, (last - first) // 4
    for row in range(first, first + quarter):
        sums = _four_streams(packed, offset + row * stride, quarter, stride, codes)
        for i in range(4):
            y, r = np.float32(sums[i] - code_sum) * scale, row + i * quarter
            out[r] = out[r] + y if accumulate else y
    for row in range(first + 4 * quarter, last):
        y = np.float32(one_row(packed, offset + row * stride, stride, codes) - code_sum) * scale
        out[row] = out[row] + y if accumulate else y


@kernel
def matvec_chosen(packed, offset, cols, codes, code_sum, scale, out, chosen, count):  # type: ignore[no-untyped-def]
    """As `matvec_scaled`, for the rows chosen[0] < chosen[1] < ... < chosen[count - 1] only. Other rows are not read.

    Four streams as in `matvec`, each through a quarter of the chosen rows; each asks for the row that it reads NEXT_ROWS later.
    """
    stride, quarter = cols // 4, count // 4
    for i in range(quarter):
        a, b, c, d = chosen[i], chosen[i + quarter], chosen[i + 2 * quarter], chosen[i + 3 * quarter]
        j = min(i + NEXT_ROWS, quarter - 1)
        p0, p1 = offset + chosen[j] * stride, offset + chosen[j + quarter] * stride
        p2, p3 = offset + chosen[j + 2 * quarter] * stride, offset + chosen[j + 3 * quarter] * stride
        r0, r1, r2, r3 = offset + a * stride, offset + b * stride, offset + c * stride, offset + d * stride
        sums = four_rows(packed, r0, r1, r2, r3, p0, p1, p2, p3, stride, codes)
        out[a], out[b] = np.float32(sums[0] - code_sum) * scale, np.float32(sums[1] - code_sum) * scale
        out[c], out[d] = np.float32(sums[2] - code_sum) * scale, np.float32(sums[3] - code_sum) * scale
    i = 4 * quarter
    while i < count:
        out[chosen[i]] = np.float32(one_row(packed, offset + chosen[i] * stride, stride, codes) - code_sum) * scale
        i += 1


@kernel
def unpack(packed, row_at, begin, end, tile, place):  # type: ignore[no-untyped-def]
    """Bytes begin .. end - 1 of the packed row at `row_at` -> codes 0..2, one a byte, in kernel order, at tile[place ...]."""
    for byte in range(begin, end, WIDTH):
        v = load(packed, row_at + byte) if byte + WIDTH <= end else load_half(packed, row_at + byte)
        k = place + (byte - begin) * 4
        store(tile, k, field0(v))
        store(tile, k + WIDTH, field1(v))
        store(tile, k + 2 * WIDTH, field2(v))
        store(tile, k + 3 * WIDTH, field3(v))


@inlined
def _field_4x2(n0, n1, n2, n3, m0, m1, m2, m3, v0, v1, v2, v3, x, y):  # type: ignore[no-untyped-def]
    """Sums of 4 rows with 2 tokens, with one register of codes of each row added."""
    n0, m0, n1, m1 = dot(n0, v0, x), dot(m0, v0, y), dot(n1, v1, x), dot(m1, v1, y)
    n2, m2, n3, m3 = dot(n2, v2, x), dot(m2, v2, y), dot(n3, v3, x), dot(m3, v3, y)
    return n0, n1, n2, n3, m0, m1, m2, m3


@kernel
def _packed_4x2(packed, at, stride, ahead, t0, t1, sums, place, gap):  # type: ignore[no-untyped-def]
    """Code sums of 4 packed rows, the first at byte `at`, with 2 tokens, added to sums[place + i] and sums[place + gap + i].

    For so few tokens that unpacking to a tile costs more. As many bytes, `ahead` bytes further on, are prefetched.
    """
    r1, r2, r3, whole = at + stride, at + 2 * stride, at + 3 * stride, stride // WIDTH * WIDTH
    a0, a1, a2, a3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    b0, b1, b2, b3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    start = 0
    while start < stride:
        stop = min(start + _FOLD // 4 * WIDTH, stride)
        n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        m0, m1, m2, m3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        for byte in range(start, stop, WIDTH):
            if byte < whole:
                prefetch(packed, at + byte + ahead)
                prefetch(packed, r1 + byte + ahead)
                prefetch(packed, r2 + byte + ahead)
                prefetch(packed, r3 + byte + ahead)
                v0, v1, v2, v3 = load(packed, at + byte), load(packed, r1 + byte), load(packed, r2 + byte), load(packed, r3 + byte)
            else:
                v0, v1 = load_half(packed, at + byte), load_half(packed, r1 + byte)
                v2, v3 = load_half(packed, r2 + byte), load_half(packed, r3 + byte)
            k = byte * 4
            n0, n1, n2, n3, m0, m1, m2, m3 = _field_4x2(
                n0, n1, n2, n3, m0, m1, m2, m3, field0(v0), field0(v1), field0(v2), field0(v3), load(t0, k), load(t1, k)
            )
            k += WIDTH
            n0, n1, n2, n3, m0, m1, m2, m3 = _field_4x2(
                n0, n1, n2, n3, m0, m1, m2, m3, field1(v0), field1(v1), field1(v2), field1(v3), load(t0, k), load(t1, k)
            )
            k += WIDTH
            n0, n1, n2, n3, m0, m1, m2, m3 = _field_4x2(
                n0, n1, n2, n3, m0, m1, m2, m3, field2(v0), field2(v1), field2(v2), field2(v3), load(t0, k), load(t1, k)
            )
            k += WIDTH
            n0, n1, n2, n3, m0, m1, m2, m3 = _field_4x2(
                n0, n1, n2, n3, m0, m1, m2, m3, field3(v0), field3(v1), field3(v2), field3(v3), load(t0, k), load(t1, k)
            )
        a0, a1, a2, a3 = fold(a0, n0), fold(a1, n1), fold(a2, n2), fold(a3, n3)
        b0, b1, b2, b3 = fold(b0, m0), fold(b1, m1), fold(b2, m2), fold(b3, m3)
        start = stop
    add_totals(a0, a1, a2, a3, sums, place)
    add_totals(b0, b1, b2, b3, sums, place + gap)


@kernel
def _packed_sums(packed, at, stride, rows, codes, tokens, sums):  # type: ignore[no-untyped-def]
    """sums[(t + 1) * TILE_ROWS + i] = code sum of row i, the first at byte `at`, with token t, for i < rows <= TILE_ROWS, rows % 4 = 0."""
    for i in range(TILE_ROWS, (tokens + 1) * TILE_ROWS):
        sums[i] = 0
    for i in range(0, rows, 4):
        for t in range(0, tokens, 2):
            place, ahead = (t + 1) * TILE_ROWS + i, NEXT_PACKED * stride
            _packed_4x2(packed, at + i * stride, stride, ahead, codes[t], codes[t + 1], sums, place, TILE_ROWS)


@kernel
def matmul_scaled(packed, offset, cols, codes, code_sums, factors, scale, tokens, out, place, add, tile, sums, first, last):  # type: ignore[no-untyped-def]
    """out[t, place + r] (+)= (code sum of row r with token t - code_sums[t]) * (scale / factors[t]) for first <= r < last.

    codes: (>= tokens rounded up to 4, padded cols) int8;  code_sums: (tokens,) int32;  factors: (tokens,) float32;
    out: (tokens, >= place + rows) float32;  add: to what is there;
    tile: (TILE_BYTES,) uint8 and sums: (>= tokens rounded up to 4, and one more, times BLOCK_ROWS) int32, overwritten.
    """
    stride, values, gap = cols // 4, flattened(codes), codes.shape[1]
    length, block = (stride + WIDTH - 1) // WIDTH * WIDTH, BLOCK
    groups = (tokens + TOKENS - 1) // TOKENS
    advance = (TILE_ROWS * stride + length * groups - 1) // (length * groups)  # so that the next tile's bytes are there in time
    for i in range(TILE_ROWS):
        sums[i] = 0  # what all sums begin with
    for row in range(first, last, TILE_ROWS):
        rows, at = min(TILE_ROWS, last - row), offset + row * stride
        if tokens <= FEW and rows % 4 == 0:
            _packed_sums(packed, at, stride, rows, codes, tokens, sums)
            for t in range(tokens):
                scale_sums(sums, (t + 1) * TILE_ROWS, code_sums[t], scale / factors[t], out[t], place + row, rows, add)
            continue
        ask = at + rows * stride
        for begin in range(0, length, block):
            words = min(block, length - begin)
            unpack_rows(packed, at, stride, rows, begin, begin + words, tile)
            before, step = (0, 0) if begin == 0 else (TILE_ROWS, TILE_ROWS)
            for t in range(0, tokens, TOKENS):
                value, start = t * gap + 4 * begin, TILE_ROWS + (t * TILE_ROWS if length > block else 0)
                if begin + words == length:
                    for i in range(t, min(t + TOKENS, tokens)):
                        ask_for(out[i], place + row, rows)
                if TOKENS == 8 and t + 4 < tokens:
                    sums_8(tile, words, values, value, gap, sums, before + t * step, step, start, packed, ask, advance)
                else:
                    sums_4(tile, words, values, value, gap, sums, before + t * step, step, start, packed, ask, advance)
                ask += words * advance
                if begin + words == length:
                    for i in range(t, min(t + TOKENS, tokens)):
                        done = start + (i - t) * TILE_ROWS
                        scale_sums(sums, done, code_sums[i], scale / factors[i], out[i], place + row, rows, add)
