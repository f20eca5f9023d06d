"""Threads that run steps together. Each scenario has a process of its own and a time limit: what waits for the other waits forever."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.arrays import Scratch, Sizes, Weights
from bitnet_kernels.control import MAX_THREADS
from bitnet_kernels.kv_cache import Cache
from bitnet_kernels.team import Team

SCENARIOS = [
    "same_bits",
    "own_tokens",
    "split_layers",
    "after_pauses",
    "reuse",
    "two_callers",
    "many_teams",
    "more_threads_than_cores",
    "stress",
    "empty_steps",
    "interrupted",
    "never_closed",
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(run_script: Callable[..., Any], name: str) -> None:
    assert run_script("team_scenarios.py", name, keep=True) is True


@pytest.mark.parametrize("threads", [-1, 0, MAX_THREADS + 1])
def test_impossible_numbers_of_threads(threads: int) -> None:
    nothing: Any = np.zeros(0)
    empty = [kind(*[nothing] * len(kind._fields)) for kind in (Weights, Cache, Scratch)]
    with pytest.raises(ValueError, match=f"threads must be 1 to {MAX_THREADS}, not {threads}"):
        Team(Sizes(*[0] * 10), *empty, threads)
