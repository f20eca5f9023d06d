"""Logits and states after the last layer: which kernel has the rows that a step is asked for (control.Wanted)."""

import numpy as np

from .arrays import TOGETHER, Q
from .barrier import barrier
from .control import STATE
from .dense import HeadRows, head_matvec
from .dense_rows import head_rows
from .folds import perhaps_fold
from .grouped import logits_by_groups
from .head_search import top_logits
from .jit import kernel, separate
from .norm import rms_norm
from .split import split

ONE, FOUR = np.int64(1), np.int64(4)


@kernel
def logits_of_rows(z, w, s, wanted, thread, threads, control):
    """This thread's part of the first `wanted` logits that s.wanted lists, from the residual stream after the last layer."""
    listed, places, whole, searched = s.listed[thread], s.head_places[thread], 0, 0
    for i in range(wanted):
        if s.wanted[i, 1] == 0:
            listed[whole], places[whole] = i, s.wanted[i, 2]
            whole += 1
    for i in range(wanted):
        if s.wanted[i, 1] > 0:
            listed[whole + searched] = i
            searched += 1
    first, last = split(wanted, ONE, thread, threads)
    for i in range(first, last):
        rms_norm(s.x[s.wanted[listed[i], 0]], w.norms, w.norm_offsets[z.layers, 0], z.hidden, z.norm_eps, s.normed[i])
        perhaps_fold(w.folds, z.layers, Q, s.normed[i], z.hidden, s.normed[i])
    barrier(control, threads)
    first, last = split(z.vocab, FOUR, thread, threads)
    head = HeadRows(w.head, w.head_offset[0], z.head_kind, z.hidden)
    if whole == 1:
        head_matvec(head, s.normed[0], s.logits[places[0]], first, last)
    elif whole > 1:
        head_rows(head, s.normed, whole, s.logits, places, s.head_values[thread], s.head_sums[thread], first, last)
    for begin in range(whole, wanted, TOGETHER):
        top_logits(w, z, s, listed, begin, min(TOGETHER, wanted - begin), thread, threads, control)


@separate()
@kernel
def wanted_logits(head_groups, z, w, s, wanted, thread, threads, control):
    """The first `wanted` logits that s.wanted lists, or states. head_groups: w.head_groups; None is known when this is compiled."""
    logits = wanted
    while logits > 0 and s.wanted[logits - 1, 1] == STATE:
        logits -= 1
        if logits % threads == thread:
            x = s.x[s.wanted[logits, 0]]
            rms_norm(x, w.norms, w.norm_offsets[z.layers, 0], z.hidden, z.norm_eps, x)
    if head_groups is None:
        logits_of_rows(z, w, s, logits, thread, threads, control)
    else:
        logits_by_groups(head_groups, z, w, s, logits, thread, threads, control)
