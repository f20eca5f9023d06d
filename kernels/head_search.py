"""The largest logits of one token or several, exactly, from few of the head's bytes. Twin: naive/head_planes.py, from all logits.

Logits that a sampler with top-k looks at are the k largest. Rows of the head are ruled out by their planes (head_planes.py), which are
read once for all tokens of a step:

    1. upper six bits of every row               -> a logit that is at most E6 off; of many tokens, all eight, and step 3 is done
    2. exact logits of at least k rows with large ones; T, the k-th largest of these, is at most the k-th largest of all
    3. rows with logit + E6 >= T: last two bits  -> at most E8 off
    4. those with logit + E8 >= T: exact logits, by the same kernel as without planes

Proof that no row of the k largest is lost. Let w be a row, x the activations, y the float32 logit that the head's kernel computes. x is
taken in one digit or two, x = x' + d1 = x' + x'' + d2 with int8 codes for x' and x''; d1 and d2 are known, and so are their lengths. After
6 bits, with w = w6 + e6, z = x' or x' + x'', and d what it leaves,

    |w.x - w6.z| = |e6.x + w6.d| <= |e6| |x| + (|w| + |e6|) |d|

and after 8 bits likewise. Planes keep |e6|, |e8| and |w|. The second digit is for activations with outliers, whose first digit is coarse
for all the others; with one token, which waits for memory, it costs nothing, and with more it is multiplied where it matters, else for
the few rows of step 4, before any is computed. Last, |y - w.x| <= g |w| |x| with g = n 2^-24 for float32 sums of n terms one after the
other (Higham 2002, section 3.1), and what is kept of logits between steps is rounded to float32, under ten times: 1e-6 (|w| + |e|) |x|. E
is the sum of these bounds. A row that is not ruled out is computed exactly, and one that is has y <= logit + E < T. Float64 sums here err
by 1e-13, and E is taken larger by 1e-5 of itself.

Rows are numbered as in the planes, which leave out those that may not be chosen; `planes.ids` says which row of the head each is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import TERMS
from .barrier import barrier
from .dense import HeadRows, head_matvec, row_bytes
from .head_sums import add_six_bits, add_two_bits, bits_of_all, by_tiles, whole_codes
from .jit import inlined, kernel, separate
from .quantise import kernel_length, quantise_row
from .simd import doubles, floats, selected
from .simd.files import read_at

fma = selected.fma
load_f32, splat = floats.load_f32, floats.splat_f32
lanes_not_below, lowest_bit = floats.lanes_not_below, floats.lowest_bit
wide, zero, add, sub, mul, total = doubles.wide, doubles.zero_f64, doubles.add_f64, doubles.sub_f64, doubles.mul_f64, doubles.total_f64
L2_ROWS = 1024  # rows of a 2-bit plane that stay in the L2 cache for the second digit: 640 KB at 2,560 columns
START, ONE = np.int64(0), np.int64(1)
FELT = 0.4  # of what 6 bits leave of a row: where less would be felt of the first digit's error, the second waits until few rows are left
# What is known of a token, Scratch.terms: of x' and x'', a step of their codes times 4 and their sums; lengths of x, d1 and d2.
COARSE, FINE, TOTAL, FINE_TOTAL, SIZE, REST, REST_2 = range(TERMS)
LENGTH = 2  # row of Planes.errors


@inlined
def largest_of(nearly, first, last, top, best):
    """The rows with the `top` largest values of nearly[first:last] -> best; returns how many there are."""
    found, place, r = 0, 0, first  # place: of the smallest in the list
    least = np.float32(-np.inf)
    while r < last:
        # Sixteen at a time, most of which are less than any in the list.
        stop = r + 1
        if found == top and r + 16 <= last:
            bits = lanes_not_below(load_f32(nearly, r), least)
            if bits == 0:
                r += 16
                continue
            r, stop = r + lowest_bit(bits), r + 16
        while r < stop:
            if found < top:
                best[found] = r
                found += 1
            elif nearly[r] > least:
                best[place] = r
            else:
                r += 1
                continue
            if found == top:
                place = 0
                for k in range(1, found):
                    if nearly[best[k]] < nearly[best[place]]:
                        place = k
                least = nearly[best[place]]
            r += 1
    return found


@kernel
def kth_largest(values, threads, top):
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
def _still_in(nearly, planes, of_error, of_length, threshold, rows):
    """Keep those of a list of rows whose logit, of which all eight bits are in `nearly`, may reach the threshold; returns how many."""
    kept = 0
    for i in range(len(rows)):
        r = rows[i]
        bound = (planes.errors[1, r] * of_error + planes.errors[LENGTH, r] * of_length) * 1.00001
        rows[kept] = r
        kept += not nearly[r] + bound < threshold  # written so that NaN stays in
    return kept


@inlined
def _first_in(nearly, errors, lengths, of_error, of_length, threshold, rows, first, last):
    """As _still_in, of all rows from `first` to `last` - 1, with the errors of what is known of them: a list from rows[first] on."""
    kept, r = first, first
    a, b, least = np.float32(of_error * 1.00001), np.float32(of_length * 1.00001), np.float32(threshold)
    while r + 16 <= last:
        most = fma(load_f32(errors, r), splat(a), fma(load_f32(lengths, r), splat(b), load_f32(nearly, r)))
        bits = lanes_not_below(most, least)
        while bits != 0:
            rows[kept] = r + lowest_bit(bits)
            kept += 1
            bits &= bits - np.int32(1)
        r += 16
    while r < last:
        rows[kept] = r
        kept += not nearly[r] + errors[r] * a + lengths[r] * b < least
        r += 1
    return kept - first


@inlined
def _lengths(x, rest, fine_factor, cols):
    """Squared lengths of x, of rest, and of what the second digit leaves of it. Float64. cols: a multiple of 16."""
    xx, dd, ff, step = zero(), zero(), zero(), doubles.splat_f64(1.0 / np.float64(fine_factor))
    for i in range(0, cols, 16):
        v, some = wide(load_f32(x, i)), load_f32(rest, i)
        d = wide(some)
        left = sub(d, mul(wide(floats.nearest_f32(floats.mul_f32(some, splat(fine_factor)))), step))
        xx, dd, ff = add(xx, mul(v, v)), add(dd, mul(d, d)), add(ff, mul(left, left))
    return total(xx), total(dd), total(ff)


@inlined
def _two_digits(x, cols, length, coarse, fine, rest, terms):
    """x = x' + x'' + d2: codes of x' -> coarse, of x'' -> fine, x - x' -> rest, and what is to be known of them -> terms."""
    factor, total = quantise_row(x, cols, coarse, length)
    for i in range(cols):
        rest[i] = np.float32(np.float64(x[i]) - np.rint(x[i] * factor) / np.float64(factor))
    fine_factor, fine_total = quantise_row(rest, cols, fine, length)
    xx, dd, ff = _lengths(x, rest, fine_factor, cols)
    terms[COARSE], terms[FINE] = 4 / np.float64(factor), 4 / np.float64(fine_factor)
    terms[TOTAL], terms[FINE_TOTAL] = np.float64(total) / factor, np.float64(fine_total) / fine_factor
    # 1e-6: rest is rounded to float32.
    terms[SIZE], terms[REST], terms[REST_2] = np.sqrt(xx), np.sqrt(dd) * 1.000001, np.sqrt(ff) + 1e-6 * np.sqrt(dd)


@inlined
def _digits(z, planes, s, begin, count, thread, threads, control):
    """Digits and terms of tokens begin .. begin + count - 1 of s.normed. Returns whether second digits matter from the start."""
    cols, length = z.hidden, kernel_length(z.hidden)
    for t in range(count * thread // threads, count * (thread + 1) // threads):
        _two_digits(s.normed[begin + t], cols, length, s.digits[t], s.digits[count + t], s.rest[thread], s.terms[t])
    barrier(control, threads)
    both = count == 1 or by_tiles(count)
    for t in range(count):
        both = both or planes.errors[LENGTH, 0] * s.terms[t, REST] > FELT * planes.errors[0, 0] * s.terms[t, SIZE]
    return both


@inlined
def _clear(z, ids, logits, first, last):
    """Minus infinity for a thread's rows. Of the head's rows that have no planes, a thread clears those before each of its own, and the
    last one those at the end."""
    begin = ids[first - 1] + 1 if first > 0 else START
    end = z.vocab if last == len(ids) else ids[last - 1] + 1 if last > 0 else START
    for r in range(begin, end):
        logits[r] = -np.inf


class Candidate(NamedTuple):
    """One of several tokens whose largest logits are searched together."""

    number: int  # among them: row of Scratch.nearly, terms, and of digits with its first ones
    fine: int  # row of digits with its second ones
    top: int
    both: bool  # both digits have met all rows
    whole: bool  # and all eight bits of them, not six
    x: NDArray[np.float32]  # (hidden,) activations
    logits: NDArray[np.float32]  # (vocab,) result


@inlined
def _seeds(w, z, s, token, first, last, thread, threads):
    """Exact logits of this thread's rows that look largest so far, of all threads together at least `top` if there are -> s.best_logits."""
    best, top, t = s.best[thread], token.top, token.number
    found = largest_of(s.nearly[t], first, last, min(top, top // threads + 8), best)
    exact_logits(w, z, token.x, s.head_row[thread], token.logits, best[:found])
    for i in range(top):
        s.best_logits[t, thread, i] = token.logits[w.planes.ids[best[i]]] if i < found else np.float32(-np.inf)
    return found


@inlined
def _refined(w, z, s, token, threshold, first, last, thread):
    """Exact logits of this thread's rows that may reach the threshold. Counts the rows that are read."""
    planes, nearly, terms, counts = w.planes, s.nearly[token.number], s.terms[token.number], s.head_counts[thread]
    cols, coarse, fine = z.hidden, s.digits[token.number], s.digits[token.fine]
    length, size = kernel_length(cols), terms[SIZE]
    rounding = (cols / 16 + 32) * 2.0**-24 + 1e-6  # sums of the head's kernel: 16 lanes, their total, scales; and those here
    left = terms[REST_2] if token.both else terms[REST]
    of_error, of_length = size * 1.000001 + left, left + rounding * size
    errors = planes.errors[1 if token.whole else 0]
    count = _first_in(nearly, errors, planes.errors[LENGTH], of_error, of_length, threshold, s.candidates, first, last)
    rows = s.candidates[first : first + count]
    c0, c1, f0, f1 = terms[COARSE] / 4, 1.5 * terms[TOTAL], terms[FINE] / 4, 1.5 * terms[FINE_TOTAL]
    if not token.whole:
        counts[1] += count
        for begin in range(0, count, L2_ROWS):
            add_two_bits(planes, length, coarse, c0, c1, nearly, rows[begin : begin + L2_ROWS])
            if token.both:
                add_two_bits(planes, length, fine, f0, f1, nearly, rows[begin : begin + L2_ROWS])
        rows = rows[: _still_in(nearly, planes, of_error, of_length, threshold, rows)]
    if not token.both:
        add_six_bits(planes, length, s.digits, token.fine, terms[FINE], 84 * f1, nearly, rows, s.plane_sums[thread])
        add_two_bits(planes, length, fine, f0, f1, nearly, rows)
        of_error, of_length = size * 1.000001 + terms[REST_2], terms[REST_2] + rounding * size
        rows = rows[: _still_in(nearly, planes, of_error, of_length, threshold, rows)]
    kept = 0
    for i in range(len(rows)):  # those that are there already
        rows[kept] = rows[i]
        kept += not token.logits[planes.ids[rows[i]]] > -np.inf
    counts[2] += kept
    exact_logits(w, z, token.x, s.head_row[thread], token.logits, rows[:kept])


@separate()
@kernel
def top_logits(w, z, s, listed, begin, count, thread, threads, control):
    """s.logits of tokens: of rows that may be chosen, the largest and all that equal them, exactly; others too, or minus infinity.

    The tokens: places begin .. begin + count - 1 of s.normed, (hidden,) float32 after the output norm; listed: which row of s.wanted
    (control.Wanted) each place is of. w, z, s: Weights, Sizes, Scratch (arrays.py), w.planes built; count <= TOGETHER, 1 <= top <= MAX_TOP.
    """
    planes, length = w.planes, kernel_length(z.hidden)
    ids = planes.ids
    first, last = len(ids) * thread // threads, len(ids) * (thread + 1) // threads
    both = _digits(z, planes, s, begin, count, thread, threads, control)
    whole = by_tiles(count) or whole_codes(2 * count if both else count)
    if last > first:
        bits_of_all(planes, length, s, count, both, s.plane_sums[thread], s.tile[thread], first, last)
    s.head_counts[thread, 0] += last - first
    s.head_counts[thread, 1] += last - first if whole else 0
    for t in range(count):
        asked = s.wanted[listed[begin + t]]
        token = Candidate(t, count + t, asked[1], both, whole, s.normed[begin + t], s.logits[asked[2]])
        _clear(z, ids, token.logits, first, last)
        s.head_counts[thread, 2] += _seeds(w, z, s, token, first, last, thread, threads)
    barrier(control, threads)
    for t in range(count):
        asked = s.wanted[listed[begin + t]]
        token = Candidate(t, count + t, asked[1], both, whole, s.normed[begin + t], s.logits[asked[2]])
        threshold = np.float64(kth_largest(s.best_logits[t], threads, token.top))
        _refined(w, z, s, token, threshold, first, last, thread)
    barrier(control, threads)  # digits and bests are read: others may follow


@separate()
@kernel
def exact_logits(w, z, x, buffer, logits, rows):
    """Logits of some rows of the planes, as the whole head gives them, in their places.

    Rows are read from the file into `buffer`, not from its memory map: rows from all over would leave the whole head mapped, 16 pages for
    each. w.head_file: descriptor, or -1.
    """
    head, file = HeadRows(w.head, w.head_offset[0], z.head_kind, z.hidden), w.head_file[0]
    stride = row_bytes(head.kind, head.cols)
    for i in range(len(rows)):
        row = w.planes.ids[rows[i]]
        if file >= 0 and read_at(file, buffer, 0, stride, head.offset + row * stride) == stride:
            head_matvec(HeadRows(buffer, 0, head.kind, head.cols), x, logits[row : row + 1], START, ONE)
        else:
            head_matvec(head, x, logits, row, row + 1)
