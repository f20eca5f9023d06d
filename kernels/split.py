"""Who does which part of a step: tokens and rows of weights, split between the threads of a team.

With many tokens each thread has some of its own, and what belongs to a token (its residual stream, codes, products) stays in its core's
cache from one attention to the next, without barriers. With few, unpacking all rows in every core would cost more than it saves: threads
share tokens, and split rows. Between the two, crews of neighbouring threads share tokens. Measured: docs/log.md#own-tokens.
"""

from typing import NamedTuple

import numpy as np

from .jit import kernel

OWN = 64  # tokens that are worth unpacking rows for: then that is under 5 % of the arithmetic
UNIT, ONE = np.int64(16), np.int64(1)  # UNIT: tokens that are split; no kernel takes more at once


class Share(NamedTuple):
    """What one thread has of a step. Its bits are the same, whoever has it."""

    tokens: int  # of the whole step
    begin: int  # the first of those that this thread works on between two attentions,
    end: int  # and the first after them
    lane: int  # its number among the threads that work on them,
    lanes: int  # and how many these are, who split rows of weights
    meeting: int  # threads that meet at barriers between two attentions: all, or where nobody shares tokens only this one
    thread: int  # its number in the team
    threads: int


@kernel
def split(count, unit, thread, threads):
    """The part [first, last) of `count` items for one thread, in whole units where possible."""
    units = (count + unit - 1) // unit
    return min(units * thread // threads * unit, count), min(units * (thread + 1) // threads * unit, count)


@kernel
def share_of(tokens, thread, threads):
    """A thread's Share of a step of so many tokens."""
    lanes = 1
    while lanes < threads and (threads % lanes != 0 or tokens < threads // lanes * OWN):
        lanes += 1
    begin, end = split(tokens, UNIT, thread // lanes, threads // lanes)
    return Share(tokens, begin, end, thread % lanes, lanes, threads if lanes > 1 else 1, thread, threads)


@kernel
def tokens_of(mine):
    """Tokens first <= t < last that a thread has to itself, where others of its crew have the others of theirs. mine: its Share."""
    first, last = split(mine.end - mine.begin, ONE, mine.lane, mine.lanes)
    return mine.begin + first, mine.begin + last
