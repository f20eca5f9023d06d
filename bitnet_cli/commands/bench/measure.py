"""One text of an engine -> samples: how long a prompt, or tokens one by one, took; how long the parts of a token take.

Tests of a setup take turns, so that a change in the machine's mood meets all of them. What is not timed: opening, compiling, warm-up,
tokenising, sampling, and filling the context up to a test's depth.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bitnet_cli.commands.bench.kernels import Kernel, middle, time_kernels
from bitnet_cli.commands.bench.plan import BenchPlan, Trial
from bitnet_cli.commands.bench.project import Layers, layer_seconds
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.machine.energy import Meter
from bitnet_cli.model.engine import CHUNK_TOKENS
from bitnet_cli.model.kernel_times import KernelTimer, time_part
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import (
    Operations,
    Traffic,
    decode_traffic,
    operations,
    prefill_traffic,
    reset_counts,
    skipped_columns_share,
    skipped_share,
)
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

# English, because how many hidden units are zero, and how much of the head must be read, depends on the text. Repeated as needed.
TEXT = """A river begins as rain on the hills. The water finds the lowest way between stones, joins other water, and after some
miles it has a name. People build mills on it, then bridges, and at last a town; they quarrel about who may fish, and agree in spring
when the ice breaks and the flood comes. In the year 1862 the level rose by 14 feet, and the old bridge went down with two carts and a
dog, which swam ashore. What does a river know of this? It carries sand to the sea, grain by grain, and builds new land there. """
WARM_UP = 16  # decoded tokens: after 8 the engine decides which layouts pay, and builds them
LEAST_SECONDS = 0.2  # of a sample: shorter ones catch single interruptions
PART_TOKENS = 24  # tokens whose parts are timed


class Sample(NamedTuple):
    """Of one repeat of a test: the mean of its runs."""

    ns: int
    cpu_ns: int  # of all threads of this process


@dataclass
class Result:
    """All repeats of one test."""

    trial: Trial
    samples: list[Sample] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)  # gross, by a power counter, one a sample; empty where there is none
    runs: int = 0  # of the test in one sample: a short one is repeated
    seconds: float = 0.0  # of all samples, and of all their runs
    traffic: Traffic | None = None  # of a token
    operations: Operations | None = None
    parts: dict[str, float] = field(default_factory=dict)  # seconds of a decoded token: layers, attention, head, rest
    kernels: list[Kernel] = field(default_factory=list)  # where they were wanted
    skipped_up: float = 0.0  # share of `up` rows and `down` columns that were not read
    skipped_down: float = 0.0


def token_ids(file: GGUFFile, vocab: int, count: int) -> tuple[list[int], str]:
    """`count` token ids to feed, and what they are: "text" where the file has a tokenizer, else "random"."""
    try:
        ids = tokenizer_from_metadata(file.metadata, str(file.path), vocab).encode(TEXT)
        return (ids * (count // len(ids) + 1))[:count], "text"
    except BitnetError:
        return np.random.default_rng(1).integers(0, vocab, count).tolist(), "random"


class Runner:
    """Runs tests on one text, alone in its engine. ids: at least the plan's context of token ids; layers: more than the engine has where we
    project.

    timer: of kernels, if they are wanted.
    """

    def __init__(self, text: Sequence, ids: list[int], meter: Meter, layers: Layers, timer: KernelTimer | None = None):
        self.text, self._ids, self._meter, self._layers, self._timer = text, ids, meter, layers, timer

    def warm_up(self, plan: BenchPlan) -> None:
        """Run a little of every kind of work, so that the first sample is like the others."""
        text = self.text
        length = min(CHUNK_TOKENS, text.engine.context)
        tops = {test.top for test in plan.tests}
        for top in sorted(tops, reverse=True):
            text.rewind(0)
            text.feed(self._ids[: max(length - WARM_UP, 1)], top)
            for i in range(min(WARM_UP, text.engine.context - text.position)):
                text.feed([self._ids[i]], top)
        text.engine.derived.finish()

    def run(self, plan: BenchPlan, results: list[Result], done: Callable[[Trial], None]) -> None:
        """Fill `results`, one a test, which on Ctrl-C hold the repeats there are. done: called after each sample."""
        results += [Result(test) for test in plan.tests]
        for _ in range(plan.repeats):
            for result in results:
                self.sample(result)
                done(result.trial)
        for result in results:
            self._account(result)

    def _seek(self, position: int) -> None:
        text = self.text
        if text.position < position:
            text.feed(self._ids[text.position : position])
        text.rewind(position)

    def _once(self, test: Trial, tokens: int) -> None:
        ids = self._ids[test.depth : test.depth + tokens]
        if test.n_prompt:
            self.text.feed(ids, test.top)
        else:
            for token in ids:
                self.text.feed([token], test.top)

    def sample(self, result: Result) -> None:
        """Add one sample to a result: the test as often as it takes to fill LEAST_SECONDS, each time from its depth on."""
        test, text = result.trial, self.text
        self._seek(test.depth)
        if not result.runs:
            tokens = min(test.tokens, 64)
            start = time.perf_counter()
            self._once(test, tokens)
            seconds = (time.perf_counter() - start) * test.tokens / tokens
            result.runs = max(1, round(LEAST_SECONDS / seconds))
        self._meter.start()
        cpu, start_ns = time.process_time_ns(), time.perf_counter_ns()
        for _ in range(result.runs):
            text.rewind(test.depth)
            self._once(test, test.tokens)
        ns, cpu_ns = time.perf_counter_ns() - start_ns, time.process_time_ns() - cpu
        joules = self._meter.stop()
        ratio = self._longer(test, ns / result.runs)
        result.samples.append(Sample(round(ns / result.runs * ratio), round(cpu_ns / result.runs * ratio)))
        result.seconds += ns / 1e9 * ratio
        if joules is not None:
            result.joules.append(joules * ratio)

    def _longer(self, test: Trial, ns: float) -> float:
        """How much longer all layers take than those that were run in `ns`; 1.0 where these are all."""
        missing = self._layers.whole - self._layers.measured
        if not missing:
            return 1.0
        each = layer_seconds(self.text, test.n_prompt > 0, test.tokens, test.depth, test.top) * (test.n_gen or 1)
        return 1 + missing * each * 1e9 / ns

    def _account(self, result: Result) -> None:
        """What the tokens read and computed, from a run of its own in decode; and the seconds of a decoded token's parts."""
        test, text = result.trial, self.text
        self._seek(test.depth)
        reset_counts(text.engine)
        if test.n_prompt:
            result.traffic = prefill_traffic(text.engine, test.depth, test.n_prompt)
        else:
            for token in self._ids[test.depth : test.depth + min(test.n_gen, PART_TOKENS)]:
                text.feed([token], test.top)
            result.traffic = decode_traffic(text.engine, test.depth, test.n_gen, test.top > 0)
            scratch = text.engine.arrays.scratch
            result.skipped_up, result.skipped_down = skipped_share(scratch), skipped_columns_share(scratch)
            result.parts = self._parts(test)
        result.operations = operations(text.engine.config, test.depth, test.tokens, 1 if test.n_prompt else test.n_gen)
        self._scale(result)
        if self._timer is not None:
            self._seek(middle(test)[0])
            result.kernels = time_kernels(self._timer, text.engine, self._ids, test, self._layers)

    def _scale(self, result: Result) -> None:
        """From the measured layers to all of them."""
        ratio = self._layers.ratio
        if result.traffic is not None and result.operations is not None:
            result.traffic = result.traffic._replace(ternary=result.traffic.ternary * ratio, kv=result.traffic.kv * ratio)
            o = result.operations
            result.operations = o._replace(ternary=o.ternary * ratio, attention=o.attention * ratio)
        for part in ("layers", "attention"):
            if part in result.parts:
                result.parts[part] *= ratio

    def _parts(self, test: Trial) -> dict[str, float]:
        """Medians of the parts of a token in the middle of the test, taken in turns; attention: what more layers take there than at 0."""
        text, layers, middle = self.text, self.text.engine.config.layers, test.depth + (test.n_gen - 1) // 2
        self._seek(middle)
        times = []
        for i in range(PART_TOKENS):
            text.rewind(middle)
            start = time.perf_counter()
            text.feed([self._ids[middle + i % 8]], test.top)
            token = time.perf_counter() - start
            there, first = time_part(text, 1, middle, layers, 0), time_part(text, 1, 0, layers, 0)
            times.append((token, there, first, time_part(text, 1, middle, 0, 1, test.top)))
        token, there, first, head = np.median(np.array(times), 0).tolist()
        first = min(first, there)
        return {"layers": first, "attention": there - first, "head": head, "rest": max(token - there - head, 0.0)}
