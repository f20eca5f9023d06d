"""One step of the decoder: some tokens through some layers, by a team of threads. Twin: naive/step.py.

Every thread of the team calls `serve` with its own number and the same arrays; they split tokens, rows or heads (split.py) and meet at
barriers. So a token costs one call from Python, however many layers there are.

A step's parameters stand in `control` (control.py), written before the team starts:

    TOKENS        tokens in this step, of all texts; rows 0 .. tokens - 1 of scratch.x hold their residual stream
    TEXTS         texts that they are of: s.texts and s.positions say which is whose, s.tables where each one's cache lies
    FIRST_LAYER, LAST_LAYER   layers first <= l < last
    WANTED        after the last layer, logits or states of so many tokens, which s.wanted lists (control.Wanted)
"""

import numpy as np

from .arrays import (
    ATTENTION_NORM,
    ATTENTION_OUT_NORM,
    ATTENTION_SUB_NORM,
    DOWN,
    FFN_NORM,
    FFN_OUT_NORM,
    FFN_SUB_NORM,
    GATE,
    GATE_NORM,
    INT8,
    K_HEAD_NORM,
    Q_HEAD_NORM,
    Q_NORM,
    RELU2,
    UP,
    K,
    O,
    Q,
    V,
)
from .barrier import barrier, next_step
from .base3 import base3_matvec, base3_matvec_chosen
from .columns import BLOCK, find_active, matvec_by_columns
from .control import ASLEEP, CREW, DONE, FIRST_LAYER, LAST_LAYER, STEP, STOP, TEXTS, TOKENS, WANTED
from .folds import perhaps_fold
from .glu import gated
from .grouped import perhaps_quantise, project_groups, row_unit
from .heads import attention
from .inputs import hadamard, keep_largest, own_row, quantise_row_4
from .jit import entry, inlined, kernel, separate
from .logits import wanted_logits
from .norm import add_rms_norm, rms_norm
from .parts import AT_ONCE, end_and_scale, left_over, scale_parts
from .quantise import quantise_row
from .simd.atomics import atomic_add
from .split import share_of, split, tokens_of
from .ternary import WIDTH, matmul_scaled, matvec_chosen, matvec_scaled

# As in arrays.py: constants of NumPy types, so that `project` is compiled once.
NONE, START, ONE, FOUR = np.int64(-1), np.int64(0), np.int64(1), np.int64(4)
WRITE, UNIT = np.bool_(False), np.float32(1.0)
COLUMN_SHARE = 0.65  # of `down`'s columns: with more of them needed, reading all rows is as quick (docs/log.md#columns-down-meet-zeros)
COLUMN_SHARE_BASE3 = 0.28  # the same where rows are read in base 3, which is quicker
DENSE_SHARE = 0.6  # of a thread's `up` rows: with more of them needed, reading all in order is as quick (docs/log.md#up-rows-behind-closed)


@kernel
def _kernel_length(cols):
    return (cols + 4 * WIDTH - 1) // (4 * WIDTH) * (4 * WIDTH)


@kernel
def _packed_width(cols):
    return (cols + 127) // 128 * 128


@separate()
@kernel
def prepare(x, cols, w, layer, which, norm_at, then_at, eps, kind, kept, turned, s, mine, control):
    """x: (tokens, >= cols) -> RMSNorm where norm_at >= 0, another where then_at >= 0 -> rows of codes of a kind (arrays.py) in s.codes.

    Between norm and codes, a Hadamard transform where turned is not zero, and all but the `kept` largest become zero where that is not;
    what `which`, the first projection of this input, needs where weights are folded (folds.py).

    One token: every thread makes its own copy, in row `thread`, which costs less than a barrier. More: who shares them splits them.
    """
    alone, thread = mine.tokens == 1, mine.thread
    first, last = (thread, thread + 1) if alone else tokens_of(mine)
    for row in range(first, last):
        source = x[0] if alone else x[row]
        for at in (norm_at, then_at):
            if at >= 0:
                rms_norm(source, w.norms, at, cols, eps, s.normed[row])
                source = s.normed[row]
        if kind != INT8 or kept > 0 or turned > 0:
            own_row(source, cols, s.normed[row])
            source = s.normed[row]
        if turned > 0:
            hadamard(source, cols)
        if kept > 0:
            keep_largest(source, cols, kept)
        if perhaps_fold(w.folds, layer, which, source, cols, s.normed[row]):
            source = s.normed[row]
        if kind != INT8:
            s.factors[row], s.sums[row] = quantise_row_4(source, cols, kind, s.codes[row], _kernel_length(cols))
            continue
        if perhaps_quantise(w.groups, source, cols, s, row, thread):
            continue
        for digit in range(2 if len(s.fine_codes) else 1):
            if digit:
                left_over(source, cols, s.factors[row], s.residue[thread])
                source = s.residue[thread]
            factor, total = quantise_row(source, cols, s.fine_codes[row] if digit else s.codes[row], _kernel_length(cols))
            if digit:
                s.fine_factors[row], s.fine_sums[row] = s.factors[row] * factor, total
            else:
                s.factors[row], s.sums[row] = factor, total
    if not alone:
        barrier(control, mine.meeting)


@inlined
def norm_heads(z, w, q_at, k_at, s, mine, control):
    """RMSNorm of every query and key head in s.qkv, in place, then a barrier."""
    first, last = split((mine.end - mine.begin) * (z.heads + z.kv_heads), ONE, mine.lane, mine.lanes)
    for number in range(first, last):
        t, head = mine.begin + number // (z.heads + z.kv_heads), number % (z.heads + z.kv_heads)
        values = s.qkv[t, head * z.head_dim :]
        rms_norm(values, w.norms, q_at if head < z.heads else k_at, z.head_dim, z.norm_eps, values)
    barrier(control, mine.meeting)


@inlined
def add_branch(z, w, norm_at, s, mine, control):
    """s.x += RMSNorm(s.branch), then a barrier."""
    first, last = tokens_of(mine)
    for t in range(first, last):
        add_rms_norm(s.branch[t], w.norms, norm_at, z.hidden, z.norm_eps, s.x[t])
    barrier(control, mine.meeting)


@inlined
def _multiply(w, s, layer, which, cols, scale, out, place, accumulate, digit, mine, first, last):
    """out[t, place + r] (+)= row r times one digit of activation row t, for first <= r < last, which have one scale."""
    codes, sums, factors = (s.fine_codes, s.fine_sums, s.fine_factors) if digit else (s.codes, s.sums, s.factors)
    thread, begin = mine.thread, mine.begin
    if mine.tokens > 1:
        tile, room, offset = s.tile[thread], s.block_sums[thread], w.offsets[layer, which]
        codes, sums, factors = codes[begin:], sums[begin:], factors[begin:]
        matmul_scaled(
            w.packed,
            offset,
            cols,
            codes,
            sums,
            factors,
            scale,
            mine.end - mine.begin,
            out[begin:],
            place,
            accumulate,
            tile,
            room,
            first,
            last,
        )
        return
    factor, row = scale / factors[thread], out[0, place:]
    if layer < w.base3_built[0]:
        base3_matvec(w.base3, w.base3_offsets[layer, which], cols, codes[thread], sums[thread], factor, row, accumulate, first, last)
    else:
        matvec_scaled(w.packed, w.offsets[layer, which], cols, codes[thread], sums[thread], factor, row, accumulate, first, last)


@kernel
def _project(groups, w, s, layer, which, cols, rows, out, place, accumulate, mine):
    """`project`. groups: w.groups; None is known when this is compiled, and what is not needed left out."""
    first, last = split(rows, row_unit(groups), mine.lane, mine.lanes)
    if groups is not None:
        project_groups(groups, w, s, layer, which, cols, out, place, accumulate, mine, first, last)
        return
    cols, begin, part, digits = _packed_width(cols), START, START, 2 if len(s.fine_codes) else 1
    if digits == 1 and len(w.part_at):
        # Parts may be single rows, which the kernels take four and more of at once: one scale for all, and each part's afterwards.
        # What is added to (O and DOWN, from column 0 on) must not be scaled, so products stand in `branch` first.
        product, at = (s.branch, START) if accumulate else (out, place)
        _multiply(w, s, layer, which, cols, UNIT, product, at, WRITE, START, mine, first, last)
        scale_parts(w, layer, which, rows, product, at, out, place, accumulate, mine, first, last)
        return
    while begin < last:
        end, scale = end_and_scale(w, layer, which, rows, part)
        for start in range(max(first, begin), min(last, end), AT_ONCE if digits == 2 else rows):
            stop = min(start + AT_ONCE, last, end) if digits == 2 else min(last, end)
            for digit in range(digits):
                _multiply(w, s, layer, which, cols, scale, out, place, accumulate or digit > 0, digit, mine, start, stop)
        begin, part = end, part + 1


@separate()
@kernel
def project(w, s, layer, which, cols, rows, out, place, accumulate, mine):
    """out[t, place + r] (+)= row r of projection `which` times activation row t, for this thread's tokens and rows."""
    _project(w.groups, w, s, layer, which, cols, rows, out, place, accumulate, mine)


@kernel
def perhaps_add_bias(biases, groups, out, layer, place, rows, mine):
    """out[t, place + r] += biases[layer, place + r] for the rows r of a projection that this thread has just written.

    biases: Weights.biases; None is known when this is compiled, and nothing is left of it.
    """
    if biases is not None:
        first, last = split(rows, row_unit(groups), mine.lane, mine.lanes)
        for t in range(mine.begin, mine.end):
            for r in range(place + first, place + last):
                out[t, r] += biases[layer, r]


@separate()
@kernel
def up_where_gate_is_open(z, w, s, layer, mine):
    """Rows of `up` for one token, of those hidden units only whose gate is above zero: relu(gate)² makes the others exact zeros.

    The result is the same bit for bit. Rows that are not read save memory traffic; where most are open, reading all is quicker.
    """
    thread = mine.thread
    first, last = split(z.feed_forward, FOUR, mine.lane, mine.lanes)
    gate, chosen, count = s.gate[0], s.chosen[thread], 0
    for r in range(first, last):
        chosen[count] = r
        count += gate[r] > np.float32(0.0)
    s.counts[thread, 0] += last - first
    if count > (last - first) * DENSE_SHARE:
        project(w, s, layer, UP, z.hidden, z.feed_forward, s.up, START, WRITE, mine)
        return
    s.counts[thread, 1] += last - first - count
    for r in range(first, last):
        s.up[0, r] = np.float32(0.0)  # never NaN or infinity from an earlier token: 0 * those is not 0
    factor, cols = w.scales[layer, UP] / s.factors[thread], _packed_width(z.hidden)
    if layer < w.base3_built[0]:
        offset = w.base3_offsets[layer, UP]
        base3_matvec_chosen(w.base3, offset, cols, s.codes[thread], s.sums[thread], factor, s.up[0], chosen, count)
    else:
        matvec_chosen(w.packed, w.offsets[layer, UP], cols, s.codes[thread], s.sums[thread], factor, s.up[0], chosen, count)


@separate("boolean")
@kernel
def down_by_columns(z, w, s, layer, thread, threads):
    """The `down` projection of one token from those columns only that meet a code other than zero: the same integers.

    False, and nothing done, where so many do that reading all rows is as quick. Every thread has the same codes: all say the same.
    """
    blocks = (z.hidden + BLOCK - 1) // BLOCK
    first, last = blocks * thread // threads, blocks * (thread + 1) // threads
    active, words = s.active[thread], s.words[thread]
    count = find_active(s.codes[thread], _kernel_length(z.feed_forward), active, words)
    # The thread with most blocks decides when all are done.
    busiest = (blocks + threads - 1) // threads * threads
    limit = COLUMN_SHARE_BASE3 if layer < w.base3_built[0] else COLUMN_SHARE
    if count * busiest > blocks * z.feed_forward * limit:
        return False
    s.column_counts[thread, 0] += z.feed_forward
    s.column_counts[thread, 1] += z.feed_forward - count
    at = layer * _kernel_length(z.feed_forward) * blocks * WIDTH
    factor = w.scales[layer, DOWN] / s.factors[thread]
    matvec_by_columns(w.columns, at, z.hidden, s.sums[thread], factor, s.x[0], active, words, s.column_sums, count, first, last)
    return True


@kernel
def run_layer(z, w, cache, s, layer, texts, mine, control):
    """This thread's part of one layer: s.x, the residual stream, before -> after.

    One token: five barriers, one more where threads share a KV head. More: two, and seven more for threads that share tokens.

    What only some models have (norms of one projection's input, of heads, of what is added to s.x) costs the others a look at its offset.
    Projections of one input stand in loops: a call that is written once is compiled once.
    """
    at, inner, eps = w.norm_offsets[layer], z.heads * z.head_dim, z.norm_eps
    kv, wide, turned, meeting = z.kv_heads * z.head_dim, z.feed_forward, z.hadamard, mine.meeting
    for which in range(Q, V + 1):
        norm_at = at[Q_NORM + which - Q]
        if which == Q or norm_at >= 0:
            if which > Q and mine.tokens > 1:
                barrier(control, meeting)  # others may still read the codes
            prepare(s.x, z.hidden, w, layer, Q, at[ATTENTION_NORM], norm_at, eps, z.codes, START, START, s, mine, control)
        place, rows = (START, inner) if which == Q else (inner + (which - K) * kv, kv)
        project(w, s, layer, which, z.hidden, rows, s.qkv, place, WRITE, mine)
        perhaps_add_bias(w.biases, w.groups, s.qkv, layer, place, rows, mine)
    barrier(control, meeting)
    if at[Q_HEAD_NORM] >= 0:
        norm_heads(z, w, at[Q_HEAD_NORM], at[K_HEAD_NORM], s, mine, control)
    attention(z, w, cache, s, layer, texts, mine, control)
    barrier(control, mine.threads)
    if mine.thread == 0:
        s.turn[0] = 0
    prepare(s.mixed, inner, w, layer, O, at[ATTENTION_SUB_NORM], NONE, eps, z.codes_o, z.kept, turned, s, mine, control)
    straight = at[ATTENTION_OUT_NORM] < 0
    project(w, s, layer, O, inner, z.hidden, s.x if straight else s.branch, START, straight, mine)
    barrier(control, meeting)
    if not straight:
        add_branch(z, w, at[ATTENTION_OUT_NORM], s, mine, control)
    for which in range(GATE, UP + 1):
        norm_at = at[GATE_NORM + which - GATE]
        if which == GATE or norm_at >= 0:
            if which > GATE and mine.tokens > 1:
                barrier(control, meeting)
            prepare(s.x, z.hidden, w, layer, GATE, at[FFN_NORM], norm_at, eps, z.codes, START, START, s, mine, control)
        if which == UP and mine.tokens == 1 and z.activation == RELU2 and row_unit(w.groups) == FOUR:
            up_where_gate_is_open(z, w, s, layer, mine)
        else:
            out = s.gate if which == GATE else s.up
            project(w, s, layer, which, z.hidden, z.feed_forward, out, START, WRITE, mine)
    first, last = split(z.feed_forward, row_unit(w.groups), mine.lane, mine.lanes)  # the rows that this thread has just written
    for t in range(mine.begin, mine.end):
        gated(s.gate[t], s.up[t], z.activation, first, last)
    barrier(control, meeting)
    prepare(s.gate, wide, w, layer, DOWN, at[FFN_SUB_NORM], NONE, eps, z.codes_down, START, turned, s, mine, control)
    straight = at[FFN_OUT_NORM] < 0
    if not (straight and mine.tokens == 1 and w.columns_built[0] and down_by_columns(z, w, s, layer, mine.thread, mine.threads)):
        project(w, s, layer, DOWN, z.feed_forward, z.hidden, s.x if straight else s.branch, START, straight, mine)
    barrier(control, meeting)
    if not straight:
        add_branch(z, w, at[FFN_OUT_NORM], s, mine, control)


@inlined
def run_step(z, w, cache, s, control, thread, threads):
    """This thread's part of the step that `control` describes. z, w, cache, s: Sizes, Weights, Cache, Scratch (arrays.py)."""
    # All of it now: after the last barrier the caller may already write the next step's.
    tokens, texts, wanted = control[TOKENS], control[TEXTS], control[WANTED]
    mine = share_of(tokens, thread, threads)
    for layer in range(control[FIRST_LAYER], control[LAST_LAYER]):
        run_layer(z, w, cache, s, layer, texts, mine, control)
    if mine.meeting < threads:
        barrier(control, threads)
    if wanted > 0:
        wanted_logits(w.head_groups, z, w, s, wanted, thread, threads, control)
        barrier(control, threads)


@entry
def serve(frame, thread, threads, done, slept):
    """Thread 0: its part of the announced step, once. Others: steps as they are announced, until none comes for a while; returns the last
    one done, or STOP.

    threads: how many take part, for thread 0; others read it from the step's word.
    slept: whether this thread has slept in Python since its last call, and so still counts as asleep.
    One function for both, and what only it calls is copied into it: a function's code is compiled again in each that calls it.
    """
    # One by one: what is unpacked from a tuple Numba does not know as part of an argument, and it drops stores to it as dead.
    z = frame.sizes
    w = frame.weights
    cache = frame.cache
    s = frame.scratch
    control = frame.control
    if slept:
        atomic_add(control, ASLEEP + thread, -1)
    while True:
        step, active = done, threads
        if thread > 0:
            step = next_step(control, thread, done)
            if step in (done, STOP):
                return step
            active = step % CREW
        if thread < active:
            run_step(z, w, cache, s, control, thread, active)
        if thread == 0:
            control[DONE] = control[STEP]
            return done
        done = step
