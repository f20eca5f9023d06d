"""What to measure: lists on the command line -> setups, each an engine of its own, and the tests that run on every setup."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from bitnet_kernels import kv_cache

from bitnet_cli.activations import WANTED
from bitnet_cli.errors import UsageError
from bitnet_cli.model import base3_rows

MOST = 1 << 20  # of any number in a list


class Setup(NamedTuple):
    threads: int
    cache_type: str
    weights: str  # bits a weight that decode reads, one of base3_rows.CHOICES
    activations: str  # one of activations.WANTED


class Trial(NamedTuple):
    """n_prompt tokens at once or n_gen tokens one by one, after `depth` tokens; logits of the last, or of each decoded one."""

    n_prompt: int
    n_gen: int
    depth: int
    top: int  # decode: how many of the largest logits are computed; 0: all of them

    @property
    def tokens(self) -> int:
        return self.n_prompt or self.n_gen

    @property
    def name(self) -> str:
        """As llama-bench names it: pp512, tg128 @ d2048."""
        kind = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{kind} @ d{self.depth}" if self.depth else kind


class BenchPlan(NamedTuple):
    setups: Sequence[Setup]
    tests: Sequence[Trial]
    repeats: int
    warm_up: bool

    @property
    def context(self) -> int:
        """Tokens that the longest test needs."""
        return max(test.depth + test.tokens for test in self.tests)


def numbers(text: str, option: str, least: int = 0, most: int = MOST) -> list[int]:
    """`1,2,4` -> [1, 2, 4], each once. UsageError where one is no number, or not least to most."""
    values = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not least <= int(part) <= most:
            raise UsageError(f"{option} {text}: expected numbers from {least} to {most}, separated by commas")
        values.append(int(part))
    return list(dict.fromkeys(values))


def words(text: str, option: str, known: Sequence[str]) -> list[str]:
    """`f16,q8` -> ["f16", "q8"], each once. UsageError where one is not among `known`."""
    values = [part.strip() for part in text.split(",")]
    for value in values:
        if value not in known:
            raise UsageError(f"{option} {text}: expected {', '.join(known)}, or several of them separated by commas")
    return list(dict.fromkeys(values))


def make_plan(
    *,
    prompt: str,
    gen: str,
    depth: str,
    threads: str,
    cache_type: str,
    weights: str,
    activations: str,
    top: str,
    repeats: int,
    warm_up: bool,
    cores: int,
) -> BenchPlan:
    """Options of `bitnet bench` -> what to measure. threads: 0 stands for `cores`. UsageError: a bad list, or nothing to measure."""
    depths, tops = numbers(depth, "-d"), numbers(top, "--top-k")
    tests = [Trial(n, 0, d, tops[0]) for d in depths for n in numbers(prompt, "-p") if n]
    tests += [Trial(0, n, d, k) for d in depths for n in numbers(gen, "-n") if n for k in tops]
    if not tests:
        raise UsageError("nothing to measure: -p and -n are 0")
    if not 1 <= repeats <= 1000:
        raise UsageError(f"-r {repeats}: expected 1 to 1000")
    counts = list(dict.fromkeys(count or cores for count in numbers(threads, "-t", 0, 256)))
    kinds, bits = words(cache_type, "--cache-type", kv_cache.CACHE_TYPES), words(weights, "--weights", base3_rows.CHOICES)
    schemes = words(activations, "--activations", WANTED)
    setups = [Setup(*choice) for choice in itertools.product(counts, kinds, bits, schemes)]
    return BenchPlan(setups, tests, repeats, warm_up)
