"""The words that a team of threads shares: a step's parameters, its barrier, and the number of the step to do.

`control` is (WORDS,) int64. What threads spin on lies on cache lines of its own (8 words each), away from the parameters.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOKENS, TEXTS, FIRST_LAYER, LAST_LAYER, WANTED, DONE = range(6)  # DONE: number of the last step that thread 0 finished
ARRIVED, GENERATION, STEP = 16, 24, 32
ASLEEP = 40  # one word a thread: 1 while it sleeps in Python
MAX_THREADS = 256
WORDS = ASLEEP + MAX_THREADS
STOP = -1  # value of STEP that ends the team

# STEP holds the number of the step, times CREW, plus how many threads take part: these are read as one.
CREW = MAX_THREADS + 1
SPINS_BEFORE_YIELD = 4096  # about 0.1 ms: longer means that the other thread is not running
SPINS_BEFORE_SLEEP = 65536  # about 2 ms without a next step: stop using the CPU


class Text(NamedTuple):
    """The new tokens that a step has of one text: a row of Scratch.texts. Rows of a text follow each other."""

    row: int  # of the step's tokens, the first of this text's
    tokens: int
    position: int  # of the first of them; keys and values before it are in the cache


class Task(NamedTuple):
    """A step's parameters, as they stand in `control`."""

    tokens: int  # of all texts; rows 0 .. tokens - 1 of scratch.x hold their residual stream
    texts: int  # that they are of: scratch.texts and positions say which is whose, tables where each one's cache lies
    first_layer: int  # layers first <= l < last
    last_layer: int
    wanted: int  # after the last layer: logits or states of so many tokens, which scratch.wanted lists (Wanted)


STATE = -1  # value of Wanted.top


class Wanted(NamedTuple):
    """Logits that a step is asked for: a row of Scratch.wanted. With STATE, the row of Scratch.x after the output norm, in its own place;
    those come last.
    """

    row: int  # of the step's tokens
    top: int = 0  # how many of the largest must be there, where the head has planes (head_search.py); 0: all; STATE: none
    place: int = 0  # in Scratch.logits


class Shared(NamedTuple):
    """The frame of barrier.announce."""

    control: NDArray[np.int64]


def new_control() -> NDArray[np.int64]:
    """All zero: nothing announced, nobody asleep."""
    return np.zeros(WORDS, np.int64)
