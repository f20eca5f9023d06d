"""Code sums of packed ternary rows with one vector of activations: the inner loop of decode. Used by ternary.py.

A register of packed bytes holds four fields of 2 bits a byte. Two ways to meet the activations:

    shifted     each field is shifted down and masked to 0..2; one sum a row
    unshifted   each field is masked where it stands, so products come out 1, 4, 16 or 64 times too large, in four sums a row that are
                shifted down at the end. Exact, with no shifts in the loop and four short chains of additions for one long one; for sets
                that sum into int32 without folding, take codes as unsigned bytes (up to 128), and have 32 registers.

docs/log.md#streams has the rates of both.
"""

from .jit import inlined, kernel
from .simd import selected, vectors

WIDTH = selected.WIDTH
load, load_half, dot, fold = selected.load, selected.load_half, selected.dot, selected.fold
total, totals = selected.total, selected.totals
field0, field1, field2, field3 = selected.field0, selected.field1, selected.field2, selected.field3
zero_narrow, zero_wide = selected.zero_narrow, selected.zero_wide
prefetch = vectors.prefetch
_BYTES_PER_FOLD = selected.STEPS_PER_FOLD // 4 * WIDTH  # packed bytes: each register of them makes 4 steps


@inlined
def four_of(first, gap, last):
    """The number `first`, and one, two and three times `gap` more; `last` instead of what is more than that."""
    return min(first, last), min(first + gap, last), min(first + 2 * gap, last), min(first + 3 * gap, last)


@inlined
def listed(rows, four):
    """Those of a list of rows that have four numbers in it."""
    return rows[four[0]], rows[four[1]], rows[four[2]], rows[four[3]]


@inlined
def bytes_of(rows, offset, stride):
    """Where four rows of `stride` bytes begin, the first of all at byte `offset`."""
    return offset + rows[0] * stride, offset + rows[1] * stride, offset + rows[2] * stride, offset + rows[3] * stride


@inlined
def further(starts, ahead):
    """So many bytes after four others."""
    return starts[0] + ahead, starts[1] + ahead, starts[2] + ahead, starts[3] + ahead


@inlined
def prefetch_four(packed, ahead, byte):
    """A line `byte` bytes after each of four places."""
    prefetch(packed, ahead[0] + byte)
    prefetch(packed, ahead[1] + byte)
    prefetch(packed, ahead[2] + byte)
    prefetch(packed, ahead[3] + byte)


@inlined
def _dot_fields(sums, packed, x0, x1, x2, x3):
    return dot(dot(dot(dot(sums, field0(packed), x0), field1(packed), x1), field2(packed), x2), field3(packed), x3)


if selected.UNSHIFTED:
    standing0, standing1, standing2, standing3 = (vectors.masked(selected.Bytes, 3 << shift) for shift in (6, 4, 2, 0))
    over64, over16, over4 = (vectors.shifted_right(selected.Wide, bits) for bits in (6, 4, 2))

    @inlined
    def _sum_of_fields(a, b, c, d):
        return fold(fold(over64(a), over16(b)), fold(over4(c), d))

    @kernel
    def four_rows(packed, starts, ahead, stride, codes):
        """Code sums of the rows at four bytes; stride = cols / 4. As many bytes from the four of `ahead` on are prefetched meanwhile."""
        a0, a1, a2, a3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        b0, b1, b2, b3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        c0, c1, c2, c3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        d0, d1, d2, d3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        whole = stride // WIDTH * WIDTH
        for byte in range(0, whole, WIDTH):
            k = byte * 4
            prefetch_four(packed, ahead, byte)
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            v = load(packed, starts[0] + byte)
            a0, b0, c0, d0 = dot(a0, standing0(v), x0), dot(b0, standing1(v), x1), dot(c0, standing2(v), x2), dot(d0, standing3(v), x3)
            v = load(packed, starts[1] + byte)
            a1, b1, c1, d1 = dot(a1, standing0(v), x0), dot(b1, standing1(v), x1), dot(c1, standing2(v), x2), dot(d1, standing3(v), x3)
            v = load(packed, starts[2] + byte)
            a2, b2, c2, d2 = dot(a2, standing0(v), x0), dot(b2, standing1(v), x1), dot(c2, standing2(v), x2), dot(d2, standing3(v), x3)
            v = load(packed, starts[3] + byte)
            a3, b3, c3, d3 = dot(a3, standing0(v), x0), dot(b3, standing1(v), x1), dot(c3, standing2(v), x2), dot(d3, standing3(v), x3)
        if whole < stride:  # half a register is left: 128 weights where registers hold 256
            k = whole * 4
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            d0 = _dot_fields(d0, load_half(packed, starts[0] + whole), x0, x1, x2, x3)
            d1 = _dot_fields(d1, load_half(packed, starts[1] + whole), x0, x1, x2, x3)
            d2 = _dot_fields(d2, load_half(packed, starts[2] + whole), x0, x1, x2, x3)
            d3 = _dot_fields(d3, load_half(packed, starts[3] + whole), x0, x1, x2, x3)
        s0, s1 = _sum_of_fields(a0, b0, c0, d0), _sum_of_fields(a1, b1, c1, d1)
        s2, s3 = _sum_of_fields(a2, b2, c2, d2), _sum_of_fields(a3, b3, c3, d3)
        return totals(s0, s1, s2, s3)

else:

    @kernel
    def four_rows(packed, starts, ahead, stride, codes):
        """Code sums of the rows at four bytes; stride = cols / 4. As many bytes from the four of `ahead` on are prefetched meanwhile."""
        s0, s1, s2, s3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
        whole = stride // WIDTH * WIDTH
        begin = 0
        while begin < whole:
            end = min(begin + _BYTES_PER_FOLD, whole)
            n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
            for byte in range(begin, end, WIDTH):
                k = byte * 4
                prefetch_four(packed, ahead, byte)
                x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
                n0 = _dot_fields(n0, load(packed, starts[0] + byte), x0, x1, x2, x3)
                n1 = _dot_fields(n1, load(packed, starts[1] + byte), x0, x1, x2, x3)
                n2 = _dot_fields(n2, load(packed, starts[2] + byte), x0, x1, x2, x3)
                n3 = _dot_fields(n3, load(packed, starts[3] + byte), x0, x1, x2, x3)
            s0, s1, s2, s3 = fold(s0, n0), fold(s1, n1), fold(s2, n2), fold(s3, n3)
            begin = end
        if whole < stride:  # half a register is left: 128 weights where registers hold 256
            k = whole * 4
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            s0 = fold(s0, _dot_fields(zero_narrow(), load_half(packed, starts[0] + whole), x0, x1, x2, x3))
            s1 = fold(s1, _dot_fields(zero_narrow(), load_half(packed, starts[1] + whole), x0, x1, x2, x3))
            s2 = fold(s2, _dot_fields(zero_narrow(), load_half(packed, starts[2] + whole), x0, x1, x2, x3))
            s3 = fold(s3, _dot_fields(zero_narrow(), load_half(packed, starts[3] + whole), x0, x1, x2, x3))
        return totals(s0, s1, s2, s3)


@kernel
def one_row(packed, at, stride, codes):
    """Code sum of the row at byte `at`."""
    sums = zero_wide()
    whole = stride // WIDTH * WIDTH
    begin = 0
    while begin < whole:
        end = min(begin + _BYTES_PER_FOLD, whole)
        narrow = zero_narrow()
        for byte in range(begin, end, WIDTH):
            k = byte * 4
            x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
            narrow = _dot_fields(narrow, load(packed, at + byte), x0, x1, x2, x3)
        sums = fold(sums, narrow)
        begin = end
    if whole < stride:
        k = whole * 4
        x0, x1, x2, x3 = load(codes, k), load(codes, k + WIDTH), load(codes, k + 2 * WIDTH), load(codes, k + 3 * WIDTH)
        sums = fold(sums, _dot_fields(zero_narrow(), load_half(packed, at + whole), x0, x1, x2, x3))
    return total(sums)
