"""One step of the decoder: some tokens through some layers, by a team of threads. Twin: naive/step.py.

Every thread of the team calls `serve` with its own number and the same arrays; they split tokens, rows or heads (split.py) and meet at
barriers. So a token costs one call from Python, however many layers there are.

A step's parameters, control.Task, stand in `control`, written before the team starts.
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
    packed_width,
)
from .barrier import barrier, next_step
from .base3 import base3_matvec, base3_matvec_chosen
from .columns import BLOCK, Active, find_active, matvec_by_columns
from .control import ASLEEP, CREW, DONE, FIRST_LAYER, LAST_LAYER, STEP, STOP, TEXTS, TOKENS, WANTED, Task
from .folds import perhaps_fold
from .glu import gated
from .grouped import perhaps_quantise, project_groups, row_unit
from .heads import attention
from .inputs import Preparation, hadamard, keep_largest, own_row, quantise_row_4
from .jit import entry, inlined, kernel, separate
from .logits import wanted_logits
from .norm import rms_norm
from .operands import Destination, Inputs, Matrix, Product
from .parts import AT_ONCE, end_and_scale, left_over, scale_parts
from .quantise import kernel_length, quantise_row
from .simd.atomics import atomic_add
from .split import share_of, split, tokens_of
from .ternary import WIDTH, matmul_scaled, matvec_chosen, matvec_scaled

# As in arrays.py: constants of NumPy types, so that what they are given to is compiled once.
START, ONE, FOUR, UNIT = np.int64(0), np.int64(1), np.int64(4), np.float32(1.0)
_packed_width = kernel(packed_width)
COLUMN_SHARE = 0.65  # of `down`'s columns: with more of them needed, reading all rows is as quick (docs/log.md#columns-down-meet-zeros)
COLUMN_SHARE_BASE3 = 0.28  # the same where rows are read in base 3, which is quicker
DENSE_SHARE = 0.6  # of a thread's `up` rows: with more of them needed, reading all in order is as quick (docs/log.md#up-rows-behind-closed)


@separate()
@kernel
def prepare(z, w, s, x, product, how, mine, control):
    """x: (tokens, >= cols), input of a product and of others that share it -> rows of codes in s.codes. how: inputs.Preparation.

    Where weights are folded, for what this product needs (folds.py).

    One token: every thread makes its own copy, in row `thread`, which costs less than a barrier. More: who shares them splits them.
    """
    alone, thread, cols, kind = mine.tokens == 1, mine.thread, product.cols, how.kind
    first, last = (thread, thread + 1) if alone else tokens_of(mine)
    for row in range(first, last):
        source = x[0] if alone else x[row]
        for at in (how.norm, how.then):
            if at >= 0:
                rms_norm(source, w.norms, at, cols, z.norm_eps, s.normed[row])
                source = s.normed[row]
        if kind != INT8 or how.kept > 0 or how.turned > 0:
            own_row(source, cols, s.normed[row])
            source = s.normed[row]
        if how.turned > 0:
            hadamard(source, cols)
        if how.kept > 0:
            keep_largest(source, cols, how.kept)
        if perhaps_fold(w.folds, product.layer, product.which, source, cols, s.normed[row]):
            source = s.normed[row]
        if kind != INT8:
            s.factors[row], s.sums[row] = quantise_row_4(source, cols, kind, s.codes[row], kernel_length(cols))
            continue
        if perhaps_quantise(w.groups, source, cols, s, row, thread):
            continue
        for digit in range(2 if len(s.fine_codes) else 1):
            if digit:
                left_over(source, cols, s.factors[row], s.residue[thread])
                source = s.residue[thread]
            factor, total = quantise_row(source, cols, s.fine_codes[row] if digit else s.codes[row], kernel_length(cols))
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
        rms_norm(s.branch[t], w.norms, norm_at, z.hidden, z.norm_eps, s.branch[t])
        for i in range(z.hidden):
            s.x[t, i] += s.branch[t, i]
    barrier(control, mine.meeting)


@inlined
def _multiply(w, s, product, scale, to, digit, mine, first, last):
    """out[t, place + r] (+)= row r times one digit of activation row t, for first <= r < last, which have one scale."""
    codes, sums, factors = (s.fine_codes, s.fine_sums, s.fine_factors) if digit else (s.codes, s.sums, s.factors)
    thread, begin, layer, which, cols = mine.thread, mine.begin, product.layer, product.which, _packed_width(product.cols)
    packed = Matrix(w.packed, w.offsets[layer, which], cols, scale)
    if mine.tokens > 1:
        x = Inputs(codes[begin:], sums[begin:], factors[begin:], mine.end - begin)
        matmul_scaled(packed, x, Destination(to.out[begin:], to.place, to.add), s.tile[thread], s.block_sums[thread], first, last)
        return
    row = to.out[0, to.place :]
    if layer < w.base3_built[0]:
        base3 = Matrix(w.base3, w.base3_offsets[layer, which], cols, scale)
        base3_matvec(base3, codes[thread], sums[thread], factors[thread], row, to.add, first, last)
    else:
        matvec_scaled(packed, codes[thread], sums[thread], factors[thread], row, to.add, first, last)


@kernel
def _project(groups, w, s, product, to, mine):
    """`project`. groups: w.groups; None is known when this is compiled, and what is not needed left out."""
    first, last = split(product.rows, row_unit(groups), mine.lane, mine.lanes)
    if groups is not None:
        project_groups(groups, w, s, product, to, mine, first, last)
        return
    begin, part, digits = START, START, 2 if len(s.fine_codes) else 1
    if digits == 1 and len(w.part_at):
        # Parts may be single rows, which the kernels take four and more of at once: one scale for all, and each part's afterwards.
        # What is added to (O and DOWN, from column 0 on) must not be scaled, so products stand in `branch` first.
        source = Destination(s.branch if to.add else to.out, to.place, False)
        _multiply(w, s, product, UNIT, source, START, mine, first, last)
        scale_parts(w, product, source, to, mine, first, last)
        return
    while begin < last:
        end, scale = end_and_scale(w, product, part)
        for start in range(max(first, begin), min(last, end), AT_ONCE if digits == 2 else product.rows):
            stop = min(start + AT_ONCE, last, end) if digits == 2 else min(last, end)
            for digit in range(digits):
                _multiply(w, s, product, scale, Destination(to.out, to.place, to.add or digit > 0), digit, mine, start, stop)
        begin, part = end, part + 1


@separate()
@kernel
def project(w, s, product, to, mine):
    """out[t, place + r] (+)= row r of a projection times activation row t, for this thread's tokens and rows.

    product, to, mine: operands.py's Product and Destination, split.Share.
    """
    _project(w.groups, w, s, product, to, mine)


@kernel
def perhaps_add_bias(biases, groups, product, to, mine):
    """out[t, place + r] += biases[layer, place + r] for the rows r of a projection that this thread has just written.

    biases: Weights.biases; None is known when this is compiled, and nothing is left of it.
    """
    if biases is not None:
        first, last = split(product.rows, row_unit(groups), mine.lane, mine.lanes)
        for t in range(mine.begin, mine.end):
            for r in range(to.place + first, to.place + last):
                to.out[t, r] += biases[product.layer, r]


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
        project(w, s, Product(layer, UP, z.feed_forward, z.hidden), Destination(s.up, 0, False), mine)
        return
    s.counts[thread, 1] += last - first - count
    for r in range(first, last):
        s.up[0, r] = np.float32(0.0)  # never NaN or infinity from an earlier token: 0 * those is not 0
    codes, total, factor, cols, scale = s.codes[thread], s.sums[thread], s.factors[thread], _packed_width(z.hidden), w.scales[layer, UP]
    if layer < w.base3_built[0]:
        base3 = Matrix(w.base3, w.base3_offsets[layer, UP], cols, scale)
        base3_matvec_chosen(base3, codes, total, factor, s.up[0], chosen, count)
    else:
        matvec_chosen(Matrix(w.packed, w.offsets[layer, UP], cols, scale), codes, total, factor, s.up[0], chosen, count)


@separate("boolean")
@kernel
def down_by_columns(z, w, s, layer, thread, threads):
    """The `down` projection of one token from those columns only that meet a code other than zero: the same integers.

    False, and nothing done, where so many do that reading all rows is as quick. Every thread has the same codes: all say the same.
    """
    blocks = (z.hidden + BLOCK - 1) // BLOCK
    first, last = blocks * thread // threads, blocks * (thread + 1) // threads
    active, words = s.active[thread], s.words[thread]
    count = find_active(s.codes[thread], kernel_length(z.feed_forward), active, words)
    # The thread with most blocks decides when all are done.
    busiest = (blocks + threads - 1) // threads * threads
    limit = COLUMN_SHARE_BASE3 if layer < w.base3_built[0] else COLUMN_SHARE
    if count * busiest > blocks * z.feed_forward * limit:
        return False
    s.column_counts[thread, 0] += z.feed_forward
    s.column_counts[thread, 1] += z.feed_forward - count
    at = layer * kernel_length(z.feed_forward) * blocks * WIDTH
    columns, found = Matrix(w.columns, at, z.hidden, w.scales[layer, DOWN]), Active(active, words, count)
    matvec_by_columns(columns, found, s.sums[thread], s.factors[thread], s.x[0], s.column_sums, first, last)
    return True


@kernel
def run_layer(z, w, cache, s, layer, texts, mine, control):
    """This thread's part of one layer: s.x, the residual stream, before -> after.

    One token: five barriers, one more where threads share a KV head. More: two, and seven more for threads that share tokens.

    What only some models have (norms of one projection's input, of heads, of what is added to s.x) costs the others a look at its offset.
    Projections of one input stand in loops: a call that is written once is compiled once.
    """
    at, inner, kv, wide = w.norm_offsets[layer], z.heads * z.head_dim, z.kv_heads * z.head_dim, z.feed_forward
    meeting, alone = mine.meeting, mine.tokens == 1
    for which in range(Q, V + 1):
        norm_at = at[Q_NORM + which - Q]
        if which == Q or norm_at >= 0:
            if which > Q and not alone:
                barrier(control, meeting)  # others may still read the codes
            how = Preparation(at[ATTENTION_NORM], norm_at, 0, 0, z.codes)
            prepare(z, w, s, s.x, Product(layer, Q, inner, z.hidden), how, mine, control)
        place, rows = 0 if which == Q else inner + (which - K) * kv, inner if which == Q else kv
        product, to = Product(layer, which, rows, z.hidden), Destination(s.qkv, place, False)
        project(w, s, product, to, mine)
        perhaps_add_bias(w.biases, w.groups, product, to, mine)
    barrier(control, meeting)
    if at[Q_HEAD_NORM] >= 0:
        norm_heads(z, w, at[Q_HEAD_NORM], at[K_HEAD_NORM], s, mine, control)
    attention(z, w, cache, s, layer, texts, mine, control)
    barrier(control, mine.threads)
    if mine.thread == 0:
        s.turn[0] = 0
    product, straight = Product(layer, O, z.hidden, inner), at[ATTENTION_OUT_NORM] < 0
    prepare(z, w, s, s.mixed, product, Preparation(at[ATTENTION_SUB_NORM], -1, z.hadamard, z.kept, z.codes_o), mine, control)
    project(w, s, product, Destination(s.x if straight else s.branch, 0, straight), mine)
    barrier(control, meeting)
    if not straight:
        add_branch(z, w, at[ATTENTION_OUT_NORM], s, mine, control)
    for which in range(GATE, UP + 1):
        norm_at = at[GATE_NORM + which - GATE]
        if which == GATE or norm_at >= 0:
            if which > GATE and not alone:
                barrier(control, meeting)
            how = Preparation(at[FFN_NORM], norm_at, 0, 0, z.codes)
            prepare(z, w, s, s.x, Product(layer, GATE, wide, z.hidden), how, mine, control)
        if which == UP and alone and z.activation == RELU2 and row_unit(w.groups) == FOUR:
            up_where_gate_is_open(z, w, s, layer, mine)
        else:
            to = Destination(s.gate if which == GATE else s.up, 0, False)
            project(w, s, Product(layer, which, wide, z.hidden), to, mine)
    first, last = split(wide, row_unit(w.groups), mine.lane, mine.lanes)  # the rows that this thread has just written
    for t in range(mine.begin, mine.end):
        gated(s.gate[t], s.up[t], z.activation, first, last)
    barrier(control, meeting)
    product, straight = Product(layer, DOWN, z.hidden, wide), at[FFN_OUT_NORM] < 0
    prepare(z, w, s, s.gate, product, Preparation(at[FFN_SUB_NORM], -1, z.hadamard, 0, z.codes_down), mine, control)
    if not (straight and alone and w.columns_built[0] and down_by_columns(z, w, s, layer, mine.thread, mine.threads)):
        project(w, s, product, Destination(s.x if straight else s.branch, 0, straight), mine)
    barrier(control, meeting)
    if not straight:
        add_branch(z, w, at[FFN_OUT_NORM], s, mine, control)


@inlined
def run_step(z, w, cache, s, task, control, thread, threads):
    """This thread's part of a step. z, w, cache, s, task: Sizes, Weights, Cache, Scratch (arrays.py), control.Task."""
    mine = share_of(task.tokens, thread, threads)
    for layer in range(task.first_layer, task.last_layer):
        run_layer(z, w, cache, s, layer, task.texts, mine, control)
    if mine.meeting < threads:
        barrier(control, threads)
    if task.wanted > 0:
        wanted_logits(w.head_groups, z, w, s, task.wanted, thread, threads, control)
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
            # All of it now: after the last barrier the caller may already write the next step's.
            task = Task(control[TOKENS], control[TEXTS], control[FIRST_LAYER], control[LAST_LAYER], control[WANTED])
            run_step(z, w, cache, s, task, control, thread, active)
        if thread == 0:
            control[DONE] = control[STEP]
            return done
        done = step
