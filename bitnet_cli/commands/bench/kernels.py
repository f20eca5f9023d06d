"""Time per kernel (`--kernels`): an engine and a test -> seconds, bytes and operations of each kernel in a token of it."""

from typing import NamedTuple

from bitnet_cli.commands.bench.plan import Trial
from bitnet_cli.commands.bench.project import Layers
from bitnet_cli.model.engine import CHUNK_TOKENS, Engine
from bitnet_cli.model.kernel_times import KernelTimer
from bitnet_cli.model.traffic import Work, kernel_work

INPUTS = 8  # tokens whose decoding is timed in turn: each reads other rows
NO_WORK = Work(0.0, 0.0)


class Kernel(NamedTuple):
    """Of one token, in all layers."""

    name: str  # of kernel_times.KERNELS
    seconds: float
    bytes: float  # of weights or of the KV cache; 0: of neither
    operations: float


def middle(test: Trial) -> tuple[int, int]:
    """Position and tokens of the step that stands for all of a test."""
    count = min(CHUNK_TOKENS, test.n_prompt) or 1
    return test.depth + (test.tokens - count) // 2, count


def time_kernels(timer: KernelTimer, engine: Engine, ids: list[int], test: Trial, layers: Layers) -> list[Kernel]:
    """Each kernel that takes time, in the middle of the test. ids: what the test feeds; the cache holds what comes before the middle.

    layers: which the engine has, and the model has; what layers do counts as often as there are layers.
    """
    position, count = middle(test)
    inputs = [ids[position : position + count]] if test.n_prompt else [[token] for token in ids[position : position + INPUTS]]
    seconds = timer.seconds(inputs, position, test.top)
    logits = 1 / test.n_prompt if test.n_prompt else 1.0
    work = kernel_work(engine, position, count, logits, test.top > 0)
    kernels = []
    for name, taken in seconds.items():
        each = taken * logits if name == "head" else taken / count
        size, operations = work.get(name, NO_WORK)
        ratio = 1.0 if name == "head" else layers.ratio
        if taken:
            kernels.append(Kernel(name, each * ratio, size * ratio, operations * ratio))
    return kernels
