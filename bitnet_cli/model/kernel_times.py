"""How long a part of a step takes, and each kernel in it. For measuring only; bitnet_kernels.timed_step reads the clock."""

import threading
import time
from collections.abc import Sequence as Ids

import numpy as np
from bitnet_kernels import isa
from bitnet_kernels.control import Wanted, new_control
from bitnet_kernels.frame import Frame
from bitnet_kernels.native import Entry
from numpy.typing import NDArray

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.layer_table import PROJECTIONS
from bitnet_cli.machine.threads import split
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import reset_counts

# In the order of timed_step's slots. inputs: norm and rounding of what projections take; norms: of heads and branches, in few models.
KERNELS = (*PROJECTIONS, "attention", "kv_store", "inputs", "glu", "norms", "head", "waiting")
Laps = NDArray[np.int64]  # (WORDS,), of a thread
_TIMED = Entry("timed_step", "timed_steps", large=True)
ROUNDS = 9  # of which the one in the middle counts
SECONDS = 0.05  # of a round


def require_timed_kernels() -> None:
    """UnsupportedError where kernels are not compiled, or there is no clock that a program may read."""
    if isa.chosen() != isa.NAIVE:
        from bitnet_kernels.timed_step import HAS_CLOCK

        if HAS_CLOCK:
            return
    raise UnsupportedError("--kernels needs compiled kernels, on x86-64 or aarch64")


class KernelTimer:
    """Times steps of one text, alone in its engine."""

    def __init__(self, sequence: Sequence):
        """Compiles (some seconds, once on a machine) or loads what is called."""
        self._sequence, self._engine, self._control = sequence, sequence.engine, new_control()
        self._steps(self._engine.embedding_rows([0])[None], 0, [], 0, 0, 1, np.zeros(16, np.int64))

    def _steps(
        self, states: NDArray[np.float32], position: int, wanted: list[Wanted], steps: int, thread: int, threads: int, laps: Laps
    ) -> int:
        from bitnet_kernels.timed_step import TimedScratch, TimedStep

        sizes, weights, cache, scratch = self._engine.arrays
        frame = Frame(TimedStep(sizes, weights, cache, TimedScratch(*scratch, laps), self._control, states))
        tokens = states.shape[1]
        scratch.texts[0] = self._engine.text(0, 0, tokens, position, self._sequence)
        scratch.positions[:tokens, 0], scratch.positions[:tokens, 1] = range(position, position + tokens), 0
        scratch.wanted[: len(wanted)] = np.array(wanted, np.int64).reshape(-1, len(Wanted._fields))
        return _TIMED.over(frame, 5)(1, len(wanted), steps, thread, threads)

    def _round(self, states: NDArray[np.float32], position: int, wanted: list[Wanted], steps: int) -> NDArray[np.float64]:
        """Seconds of a step: of each kernel, the mean of all threads; their sum is the step."""
        from bitnet_kernels.timed_step import SLOTS, WORDS

        threads = self._engine.threads
        laps, ticks = np.zeros((threads, WORDS), np.int64), np.zeros(threads, np.int64)

        def work(thread: int, _: int) -> None:
            ticks[thread] = self._steps(states, position, wanted, steps, thread, threads, laps[thread])

        # Not in the main thread, where Ctrl-C could come between two threads' starts, and leave one waiting for ever.
        team = threading.Thread(target=split, args=(work, threads, threads), daemon=True)
        start = time.perf_counter()
        team.start()
        team.join()
        seconds = time.perf_counter() - start
        mean: NDArray[np.float64] = laps[:, :SLOTS].mean(0) * (seconds / steps / max(float(ticks.mean()), 1.0))
        return mean

    def seconds(self, inputs: Ids[Ids[int]], position: int, top: int) -> dict[str, float]:
        """Kernel -> seconds of a step from `position` on, with logits of its last token.

        inputs: tokens of one step each, as many in all, at most a chunk; taken in turn. top: as Sequence.feed's. The cache from `position`
        on is overwritten, and what is read is counted, as if the tokens were fed.
        """
        d = self._engine
        self._sequence.reserve(max(position + len(inputs[0]) - self._sequence.position, 0))
        states, wanted, steps = np.stack([d.embedding_rows(ids) for ids in inputs]), d.wanted([len(inputs[0]) - 1], top), len(inputs)
        step = float(self._round(states, position, wanted, steps).sum())
        reset_counts(d)
        steps *= max(1, round(SECONDS / step / steps))
        rounds = sorted((self._round(states, position, wanted, steps) for _ in range(ROUNDS)), key=np.sum)
        return dict(zip(KERNELS, rounds[ROUNDS // 2].tolist(), strict=True))


def time_part(sequence: Sequence, tokens: int, position: int, layers: int, logits: int, top: int = 0) -> float:
    """Seconds of the first `layers` layers, and of some logits, over the states that the last step left.

    tokens: how many, at most a step's, from `position` on, which is not past the text's end; they overwrite what the cache holds there and
    are not counted. Weights are read as a step reads them. logits: of so many of the tokens, the last ones; top: as Sequence.feed's.
    """
    engine = sequence.engine
    if not 1 <= tokens <= engine.batch or not 0 <= position <= min(sequence.position, engine.context - tokens):
        raise ValueError(
            f"{tokens} tokens at {position}: expected 1 to {engine.batch}, at 0 to {sequence.position}, inside {engine.context}"
        )
    sequence.reserve(max(position + tokens - sequence.position, 0))
    states = engine.arrays.scratch.x[:tokens]
    before, wanted = states.copy(), engine.wanted(range(tokens - logits, tokens), top)
    start = time.perf_counter()
    engine.team.run([engine.text(0, 0, tokens, position, sequence)], 0, layers, wanted)
    seconds = time.perf_counter() - start
    states[:] = before
    return seconds
