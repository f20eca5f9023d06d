"""Whole steps of small decoders on one thread: near the twin, and the same bits however a sequence is cut. test_team.py has more threads.

The models have both activations, sub-norms or none, every kind of head, and 1 to 4 query heads a KV head (SHAPES in tiny_model.py).
"""

from collections.abc import Callable
from typing import Any

import pytest


def assert_near(result: dict[str, Any], step: float = 1 / 127) -> None:
    """What whole_steps.py found.

    A layer of the twin starts from the same numbers and ends within 2e-5, relative to the largest: float32 sums of hundreds of values in
    another order. Where such a sum is next to a half, one int8 code differs by 1 of 127, or one key or value by `step`, a step of the KV
    cache's codes relative to the largest; that may happen, seldom.
    """
    most = max(0.05, 1.01 * step)
    assert result["compiled"]
    for name, errors in result["errors"].items():
        # Second digits flip in every step, by 1 of 127 * 254.
        assert sum(error < (1e-4 if name in ("two digits", "groups of 64") else 2e-5) for error in errors) >= 0.9 * len(errors), name
        assert max(errors) < most, name
    assert max(result["chained"].values()) < 2 * most
    assert set(result["one by one"].values()) == {True}
    assert set(result["split"].values()) == {True}
    assert set(result["pages"].values()) == {True}
    assert set(result["self-test"].values()) == {True}


def test_steps_are_near_the_twin_and_the_same_however_cut(run_script: Callable[..., Any]) -> None:
    """Token by token, in chunks, and layer by layer: the same bits of the residual stream, logits, keys and values."""
    result = run_script("whole_steps.py", keep=True)
    assert_near(result)
    assert result["skipped"]["few gates"] > 0  # rows of `up` that were not read, with the same result
    assert result["skipped"]["silu"] == 0


@pytest.mark.slow
def test_steps_with_other_caches(run_script: Callable[..., Any]) -> None:
    """What attention reads is what is stored, also of the tokens of its own chunk: however cut, the same bits.

    Both round to the same float16 but seldom, so there the twin is as near as with float32. Scales of groups, whose steps are code of
    their own, meet float32 in the test above: what they change is not attention.
    """
    steps = {"f16": 1 / 127, "q8": 1 / 127, "q4": 1 / 7.5, "q3": 1 / 3.5}
    results = run_script("whole_steps.py", ",".join(steps), "plain", keep=True, limit=600)
    for kind, step in steps.items():
        assert_near(results[kind], step)
