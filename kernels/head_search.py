"""The largest logits, exactly, from few of the head's bytes. Twin: all logits (naive/dense.py), of which these are the largest.

Logits that a sampler with top-k looks at are the k largest. Rows of the head are ruled out by their planes (head_planes.py):

    1. upper four bits of every row                  -> a logit that is at most E4 off
    2. exact logits of at least k rows with large ones; T, the k-th largest of these, is at most the k-th largest of all
    3. rows with logit + E4 >= T: next two bits      -> at most E6 off; then 2 again, with these: T comes nearer
    4. those with logit + E6 >= T: last two bits     -> at most E8 off
    5. those with logit + E8 >= T: exact logits, by the same kernel as without planes

Proof that no row of the k largest is lost. Let w be a row, x the activations, y the float32 logit that the head's kernel computes. x is
taken in two digits, x = x' + x'' + d2 = x' + d1 with int8 codes for x' and x''; d1 and d2 are known, and so are their lengths.
After 4 bits, with w = w4 + e4,

    |w.x - w4.(x' + x'')| = |e4.x + w4.d2| <= |e4| |x| + |w4| |d2|,   |w4| <= 120 s sqrt(cols)

and each later plane p replaces |e4| by |e6| or |e8| and adds |p| |d1| where only the first digit is multiplied, |p| |d2| where both are,
with |p| <= 6 s sqrt(cols) or 1.5 s sqrt(cols). Both are for activations with outliers, whose first digit is coarse for all the others.
Last, |y - w.x| <= g |w| |x| with g = n 2^-24 for float32 sums of n terms one after the other (Higham 2002, section 3.1). E is the sum of
these bounds. A row that is not ruled out is computed exactly, and one that is has y <= logit + E < T. Float64 sums here err by 1e-13, and
E is taken larger by 1e-5 of itself.

Rows are numbered as in the planes, which leave out those that may not be chosen; `planes.ids` says which row of the head each is.
"""

import numpy as np

from .barrier import barrier
from .dense import head_matvec, row_bytes
from .jit import fast_kernel, inlined, kernel
from .quantise import quantise_row
from .row_sums import four_rows, load, one_row
from .simd import selected, vectors
from .simd.files import read_at

WIDTH = selected.WIDTH
prefetch, dot, fold, totals = vectors.prefetch, selected.dot, selected.fold, selected.totals
zero_narrow, zero_wide = selected.zero_narrow, selected.zero_wide
lower, upper = vectors.bit_field(selected.Bytes, 0, 4), vectors.bit_field(selected.Bytes, 4, 4)
# Codes up to 15 instead of 2: an eighth of the steps until int16 sums must be widened. A group makes four steps.
_BYTES_PER_FOLD = max(selected.STEPS_PER_FOLD // 8 // 4, 1) * 2 * WIDTH
AHEAD = 2048  # bytes prefetched in each stream, as in ternary.py
L2_ROWS = 1024  # rows of a 2-bit plane that stay in the L2 cache for the second digit: 640 KB at 2,560 columns
START, ONE = np.int64(0), np.int64(1)
NEAR = np.int64(3)  # rows prefetched in each stream of chosen rows


@inlined
def _dot_group(sums, v0, v1, x0, x1, x2, x3):  # type: ignore[no-untyped-def]
    return dot(dot(dot(dot(sums, lower(v0), x0), upper(v0), x1), lower(v1), x2), upper(v1), x3)


@kernel
def four_rows_of_four_bits(high, r0, r1, r2, r3, length, coarse, fine):  # type: ignore[no-untyped-def]
    """Code sums of the rows at bytes r0 .. r3 of a 4-bit plane with both digits: (4 sums with coarse), (4 with fine).

    length: padded columns, two a byte; coarse, fine: (length,) int8 in kernel order.
    """
    s0, s1, s2, s3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    t0, t1, t2, t3 = zero_wide(), zero_wide(), zero_wide(), zero_wide()
    begin, stride = 0, length // 2
    while begin < stride:
        end = min(begin + _BYTES_PER_FOLD, stride)
        n0, n1, n2, n3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        m0, m1, m2, m3 = zero_narrow(), zero_narrow(), zero_narrow(), zero_narrow()
        for byte in range(begin, end, 2 * WIDTH):
            k = byte * 2
            x0, x1, x2, x3 = load(coarse, k), load(coarse, k + WIDTH), load(coarse, k + 2 * WIDTH), load(coarse, k + 3 * WIDTH)
            y0, y1, y2, y3 = load(fine, k), load(fine, k + WIDTH), load(fine, k + 2 * WIDTH), load(fine, k + 3 * WIDTH)
            for line in range(0, 2 * WIDTH, 64):
                prefetch(high, r0 + byte + line + AHEAD)
                prefetch(high, r1 + byte + line + AHEAD)
                prefetch(high, r2 + byte + line + AHEAD)
                prefetch(high, r3 + byte + line + AHEAD)
            v, w = load(high, r0 + byte), load(high, r0 + byte + WIDTH)
            n0, m0 = _dot_group(n0, v, w, x0, x1, x2, x3), _dot_group(m0, v, w, y0, y1, y2, y3)
            v, w = load(high, r1 + byte), load(high, r1 + byte + WIDTH)
            n1, m1 = _dot_group(n1, v, w, x0, x1, x2, x3), _dot_group(m1, v, w, y0, y1, y2, y3)
            v, w = load(high, r2 + byte), load(high, r2 + byte + WIDTH)
            n2, m2 = _dot_group(n2, v, w, x0, x1, x2, x3), _dot_group(m2, v, w, y0, y1, y2, y3)
            v, w = load(high, r3 + byte), load(high, r3 + byte + WIDTH)
            n3, m3 = _dot_group(n3, v, w, x0, x1, x2, x3), _dot_group(m3, v, w, y0, y1, y2, y3)
        s0, s1, s2, s3 = fold(s0, n0), fold(s1, n1), fold(s2, n2), fold(s3, n3)
        t0, t1, t2, t3 = fold(t0, m0), fold(t1, m1), fold(t2, m2), fold(t3, m3)
        begin = end
    return totals(s0, s1, s2, s3), totals(t0, t1, t2, t3)


@kernel
def nearly_all(planes, length, coarse, fine, c0, c1, c2, nearly, first, last):  # type: ignore[no-untyped-def]
    """nearly[r] = scale of r * (coarse sum * c0 + fine sum * c1 - c2), from the 4-bit plane, for first <= r < last."""
    stride, quarter = length // 2, (last - first + 3) // 4
    for row in range(first, first + quarter):
        # Where rows do not divide by four, the last streams meet rows of the ones before, and write the same again.
        r1, r2, r3 = min(row + quarter, last - 1), min(row + 2 * quarter, last - 1), min(row + 3 * quarter, last - 1)
        a, b = four_rows_of_four_bits(planes.high, row * stride, r1 * stride, r2 * stride, r3 * stride, length, coarse, fine)
        nearly[row] = planes.scales[row] * (a[0] * c0 + b[0] * c1 - c2)
        nearly[r1] = planes.scales[r1] * (a[1] * c0 + b[1] * c1 - c2)
        nearly[r2] = planes.scales[r2] * (a[2] * c0 + b[2] * c1 - c2)
        nearly[r3] = planes.scales[r3] * (a[3] * c0 + b[3] * c1 - c2)


@kernel
def refine(plane, scales, length, codes, c0, c1, nearly, rows, begin, count):  # type: ignore[no-untyped-def]
    """nearly[r] += scale of r * (code sum with a 2-bit plane * c0 - c1) for r in rows[begin : begin + count]."""
    stride, quarter = length // 4, count // 4
    for i in range(begin, begin + quarter):
        a, b, c, d = rows[i], rows[i + quarter], rows[i + 2 * quarter], rows[i + 3 * quarter]
        j = min(i + NEAR, begin + quarter - 1)
        p0, p1, p2, p3 = rows[j], rows[j + quarter], rows[j + 2 * quarter], rows[j + 3 * quarter]
        sums = four_rows(
            plane, a * stride, b * stride, c * stride, d * stride, p0 * stride, p1 * stride, p2 * stride, p3 * stride, stride, codes
        )
        nearly[a] += scales[a] * (sums[0] * c0 - c1)
        nearly[b] += scales[b] * (sums[1] * c0 - c1)
        nearly[c] += scales[c] * (sums[2] * c0 - c1)
        nearly[d] += scales[d] * (sums[3] * c0 - c1)
    for i in range(begin + 4 * quarter, begin + count):
        a = rows[i]
        nearly[a] += scales[a] * (one_row(plane, a * stride, stride, codes) * c0 - c1)


@kernel
def largest_of(nearly, rows, begin, count, top, best):  # type: ignore[no-untyped-def]
    """Those of rows[begin : begin + count] with the `top` largest values of nearly -> best; returns how many there are."""
    found, place = 0, 0  # place: of the smallest in the list
    least = -np.inf
    for i in range(begin, begin + count):
        r = rows[i]
        if found < top:
            best[found] = r
            found += 1
        elif nearly[r] > least:
            best[place] = r
        else:
            continue
        if found == top:
            place = 0
            for k in range(1, found):
                if nearly[best[k]] < nearly[best[place]]:
                    place = k
            least = nearly[best[place]]
    return found


@inlined
def _threshold(w, z, x, s, logits, rows, begin, count, top, thread, threads, control):  # type: ignore[no-untyped-def]
    """The `top`-th largest exact logit of those rows, all threads' together and at least `top` if there are, that look largest so far.

    Returns it and how many logits this thread has computed.
    """
    best = s.best[thread]
    found = largest_of(s.nearly, rows, begin, count, min(top, top // threads + 8), best)
    exact_logits(w, z, x, s.head_row[thread], logits, best, START, found)
    for i in range(top):
        s.best_logits[thread, i] = logits[w.planes.ids[best[i]]] if i < found else np.float32(-np.inf)
    barrier(control, threads)
    threshold = np.float64(kth_largest(s.best_logits, threads, top))
    barrier(control, threads)  # all have read it before anyone writes the next ones
    return threshold, found


@kernel
def kth_largest(values, threads, top):  # type: ignore[no-untyped-def]
    """The `top`-th largest of values[:threads, :top]; minus infinity where there are too few numbers (NaN is none)."""
    limit, seen = np.float32(np.inf), 0
    while True:
        following, equal = np.float32(-np.inf), 0
        for t in range(threads):
            for i in range(top):
                value = values[t, i]
                if value < limit or (seen == 0 and value == limit):
                    if value > following:
                        following, equal = value, 1
                    elif value == following:
                        equal += 1
        seen += equal
        if seen >= top or equal == 0 or following == np.float32(-np.inf):
            return following
        limit = following


@kernel
def _still_in(nearly, planes, step, size, extra, threshold, rows, begin, count):  # type: ignore[no-untyped-def]
    """Keep those of rows[begin : begin + count] whose logit may reach the threshold; returns how many. size: |x|; extra: per scale."""
    kept = begin
    for i in range(begin, begin + count):
        r = rows[i]
        rows[kept] = r
        out = nearly[r] + (planes.errors[r, step] * size + planes.scales[r] * extra) * 1.00001 < threshold
        kept += not out  # written so that NaN stays in
    return kept - begin


@fast_kernel
def _lengths(x, rest, fine_factor, cols):  # type: ignore[no-untyped-def]
    """Squared lengths of x, of rest, and of what the second digit leaves of it. Float64."""
    xx = dd = ff = 0.0
    for i in range(cols):
        left = np.float64(rest[i]) - np.rint(rest[i] * fine_factor) / np.float64(fine_factor)
        xx += np.float64(x[i]) * np.float64(x[i])
        dd += np.float64(rest[i]) * np.float64(rest[i])
        ff += left * left
    return xx, dd, ff


@kernel
def _two_digits(x, cols, length, coarse, fine, rest):  # type: ignore[no-untyped-def]
    """x = x' + x'' + d2: codes of x' -> coarse, of x'' -> fine, x - x' -> rest. Returns both factors and both sums of codes."""
    factor, total = quantise_row(x, cols, coarse, length)
    for i in range(cols):
        rest[i] = np.float32(np.float64(x[i]) - np.rint(x[i] * factor) / np.float64(factor))
    fine_factor, fine_total = quantise_row(rest, cols, fine, length)
    return factor, fine_factor, np.float64(total) / factor, np.float64(fine_total) / fine_factor


@kernel
def top_logits(w, z, x, s, logits, top, thread, threads, control):  # type: ignore[no-untyped-def]
    """logits: of rows that may be chosen, the `top` largest and all that equal them, exactly; others too, or minus infinity.

    logits: (vocab,) float32; x: (hidden,) float32 after the output norm; w, z, s: Weights, Sizes, Scratch (arrays.py), w.planes built;
    1 <= top <= MAX_TOP.
    """
    cols, planes, nearly, rows, counts = z.hidden, w.planes, s.nearly, s.candidates, s.head_counts[thread]
    length = (cols + 4 * WIDTH - 1) // (4 * WIDTH) * (4 * WIDTH)
    ids = planes.ids
    first, last = len(ids) * thread // threads, len(ids) * (thread + 1) // threads
    coarse, fine = s.codes[thread], s.fine[thread]
    factor, fine_factor, total, fine_total = _two_digits(x, cols, length, coarse, fine, s.rest[thread])
    xx, dd, ff = _lengths(x, s.rest[thread], fine_factor, cols)
    root, size = np.sqrt(np.float64(cols)), np.sqrt(xx)
    reorder = (cols / 16 + 32) * 2.0**-24 * 127.5 * size  # sums of the head's kernel: 16 lanes, their total, scales
    extra4 = root * (120 * (np.sqrt(ff) + 1e-6 * np.sqrt(dd)) + reorder)  # 1e-6: rest is rounded to float32
    # Both digits where the first one's error would be felt: 6 % of what 6 bits leave of a row (of any row; all are alike in this).
    both = last > first and root * 6 * np.sqrt(dd) * planes.scales[first] > 0.06 * size * planes.errors[first, 1]
    left = np.sqrt(ff) + 1e-6 * np.sqrt(dd) if both else np.sqrt(dd)
    extra6 = extra4 + root * 6 * left
    extra8 = extra6 + root * 1.5 * left

    if last > first:
        nearly_all(planes, length, coarse, fine, 16 / factor, 16 / fine_factor, 120 * (total + fine_total), nearly, first, last)
    for r in range(first, last):
        rows[r] = r
    threshold, computed = _threshold(w, z, x, s, logits, rows, first, last - first, top, thread, threads, control)
    count = _still_in(nearly, planes, 0, size, extra4, threshold, rows, first, last - first)
    # Of the head's rows that have no planes, a thread clears those before each of its own, and the last one those at the end.
    begin = ids[first - 1] + 1 if first > 0 else START
    end = z.vocab if last == len(ids) else ids[last - 1] + 1 if last > 0 else START
    for r in range(begin, end):
        logits[r] = -np.inf
    counts[0] += last - first
    counts[1] += count
    for begin in range(0, count, L2_ROWS):
        some = min(L2_ROWS, count - begin)
        refine(planes.middle, planes.scales, length, coarse, 4 / factor, 6 * total, nearly, rows, first + begin, some)
        if both:
            refine(planes.middle, planes.scales, length, fine, 4 / fine_factor, 6 * fine_total, nearly, rows, first + begin, some)
    better, more = _threshold(w, z, x, s, logits, rows, first, count, top, thread, threads, control)
    threshold = max(threshold, better)
    count = _still_in(nearly, planes, 1, size, extra6, threshold, rows, first, count)
    counts[2] += count
    for begin in range(0, count, L2_ROWS):
        some = min(L2_ROWS, count - begin)
        refine(planes.low, planes.scales, length, coarse, 1 / factor, 1.5 * total, nearly, rows, first + begin, some)
        if both:
            refine(planes.low, planes.scales, length, fine, 1 / fine_factor, 1.5 * fine_total, nearly, rows, first + begin, some)
    count = _still_in(nearly, planes, 2, size, extra8, threshold, rows, first, count)
    counts[3] += count + computed + more
    exact_logits(w, z, x, s.head_row[thread], logits, rows, first, count)


@kernel
def exact_logits(w, z, x, buffer, logits, rows, begin, count):  # type: ignore[no-untyped-def]
    """Logits of rows[begin : begin + count] of the planes, as the whole head gives them, in their places.

    Rows are read from the file into `buffer`, not from its memory map: rows from all over would leave the whole head mapped, 16 pages for
    each. w.head_file: descriptor, or -1.
    """
    head, offset, file = w.head, w.head_offset[0], w.head_file[0]
    kind, cols = z.head_kind, z.hidden
    stride = row_bytes(kind, cols)
    for i in range(begin, begin + count):
        row = w.planes.ids[rows[i]]
        if file >= 0 and read_at(file, buffer, 0, stride, offset + row * stride) == stride:
            head_matvec(buffer, START, kind, cols, x, logits[row : row + 1], START, ONE)
        else:
            head_matvec(head, offset, kind, cols, x, logits, row, row + 1)
