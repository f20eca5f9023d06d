"""Every number of Sampling at its bounds: the last that is taken, and the first that is not."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.sampler import Sampler, largest_of
from bitnet_cli.model.sampling import Sampling

# Name: least and largest value, and a step past them.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "temperature": (0.0, 100.0, 1e-9),
    "top_p": (0.0, 1.0, 1e-9),
    "min_p": (0.0, 1.0, 1e-9),
    "repeat_penalty": (0.01, 100.0, 1e-9),
    "presence_penalty": (-100.0, 100.0, 1e-9),
    "frequency_penalty": (-100.0, 100.0, 1e-9),
    "mirostat_tau": (0.0, 100.0, 1e-9),
    "mirostat_eta": (0.0, 1.0, 1e-9),
    "top_k": (0, math.inf, 1),
    "seed": (-1, 2**63 - 1, 1),
    "repeat_last_n": (-1, 2**31 - 1, 1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    low, high, step = BOUNDS[name]
    good, bad = [low], [low - step, math.nan, True, "1"]
    if high == math.inf:
        good.append(10**20)
    else:
        good.append(high)
        bad.append(high + step if step == 1 else high + 1e-6)
    if step == 1:
        bad.append(1.5)
    for value in good:
        assert getattr(Sampling(**{name: value}), name) == value
    for wrong in bad:
        with pytest.raises(UsageError, match=name):
            Sampling(**{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1, 3, -1, -2])
def test_mirostat_is_off_or_2(wrong: int) -> None:
    Sampling(mirostat=0), Sampling(mirostat=2)
    with pytest.raises(UsageError, match="mirostat"):
        Sampling(mirostat=wrong)


def test_biases() -> None:
    most: Any = ((0, 1.0), (1, -1e30))
    assert Sampling(logit_bias=most).logit_bias == most
    for wrong in (((-1, 1.0),), ((0, math.inf),), ((0, math.nan),), ((3, 1.0), (3, 2.0))):
        with pytest.raises(UsageError, match="logit_bias"):
            Sampling(logit_bias=wrong)


@pytest.mark.parametrize(("bias", "top"), [(-1.0, 2), (0.0, 2), (1.0, 0)])
def test_a_bias_that_raises_asks_for_all_logits(bias: float, top: int) -> None:
    assert Sampler(Sampling(0.0, logit_bias=((3, bias),))).top == top


@pytest.mark.parametrize(
    ("top_p", "min_p", "kept"), [(0.5, 0.0, {0, 1}), (0.75, 0.0, {0, 1, 2}), (0.0, 0.0, {0}), (1.0, 1.0, {0, 1, 2, 3})]
)
def test_equal_probabilities_at_the_edge(top_p: float, min_p: float, kept: set[int]) -> None:
    """A token stays while those before it fall short of top-p, and where it reaches min-p: four of a quarter each."""
    sampler = Sampler(Sampling(1.0, 0, top_p, min_p, seed=3))
    assert {sampler.choose(np.zeros(4, np.float32)) for _ in range(80)} == kept


def test_a_random_number_next_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product with the sum of weights may be rounded to that sum, past the last token's place."""
    sampler = Sampler(Sampling(1.0, 0, 1.0, 0.0))
    monkeypatch.setattr(sampler, "_random", SimpleNamespace(random=lambda: 1.0))
    assert sampler.choose(np.zeros(4, np.float32)) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_mirostat_asks_for_all_logits(temperature: float) -> None:
    assert Sampler(Sampling(temperature, mirostat=2)).top == 0
    assert Sampler(Sampling(0.0, mirostat=2)).top == 1


@pytest.mark.parametrize("penalty", [1.1, 1.25, 0.5])
def test_any_penalty_but_1_counts(penalty: float) -> None:
    sampler = Sampler(Sampling(0.0, repeat_penalty=penalty))
    sampler.observe([1])
    logits = np.array([1.0, 1.0 + 0.05 * (penalty - 1), 0.5], np.float32)
    assert sampler.choose(logits) == (0 if penalty > 1 else 1)


@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=6, max_size=16),
    shift=st.sampled_from([-64.0, 32.0, 64.0]),
    top_p=st.sampled_from([0.3, 0.9, 0.95]),
    asked=st.integers(2, 5),
)
def test_a_choice_among_few_logits_knows_no_shift(logits: list[float], shift: float, top_p: float, asked: int) -> None:
    """Nor whether it can be made: all of them larger by as much are the same probabilities."""
    found = []
    for every in (np.array(logits, np.float32), np.array(logits, np.float32) + np.float32(shift)):
        largest = np.where(every >= np.sort(every)[-asked], every, -np.inf).astype(np.float32)
        allowed = np.arange(len(every)) % 3 > 0
        found.append(Sampler(Sampling(1.0, 8, top_p, 0.3, seed=5)).choose_allowed(largest, allowed, asked))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False),
        ({"repeat_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"frequency_penalty": 0.1, "repeat_last_n": 0}, False),
        ({"frequency_penalty": 0.1, "repeat_last_n": 1}, True),
        ({"frequency_penalty": 0.1, "repeat_last_n": -1}, True),
    ],
)
def test_what_counts_as_a_penalty(options: dict[str, Any], changes: bool) -> None:
    assert Sampling(**options).penalises is changes


def test_small_things() -> None:
    """A seed of 0 is one; without silent tokens all logits are heard; errors name the position, 0 where nobody says."""
    sampler, logits = Sampler(Sampling(0.0, seed=0)), np.array([1.0, np.nan], np.float32)
    assert sampler.seed == 0 and sampler.heard(logits) is logits
    for choose in (lambda **more: sampler.choose(logits, **more), lambda **more: sampler.choose_allowed(logits, logits == 1, **more)):
        for more, position in (({}, 0), ({"position": 7}, 7)):
            with pytest.raises(BitnetError, match=f"at position {position}$"):
                choose(**more)


@pytest.mark.parametrize(
    ("temperature", "top_p", "min_p", "decided"),
    [
        (0.0, 0.5, 0.0, True),
        (1.0, 0.5, 0.0, False),
        (1.0, 0.5, 0.55, False),
        (1.0, 0.3, 0.55, True),
        (-0.0, 0.3, 0.55, True),
        (1.0, 0.3, 0.45, False),
    ],
)
def test_when_few_logits_are_enough(temperature: float, top_p: float, min_p: float, decided: bool) -> None:
    """Allowed are tokens that weigh 1 and 0.6, and three of 0.5 at most, of which two are among the four of top-k: sums of 1.6 to 2.6.

    The second is kept where 1, which is before it, is less than top-p of the sum.
    """
    logits = np.array([0, np.log(0.6), np.log(0.5), -np.inf, -np.inf, -np.inf], np.float32)
    sampler = Sampler(Sampling(temperature, 4, top_p, min_p, seed=1))
    found = sampler.choose_allowed(logits, np.array([True, True, False, True, True, True]), 3)
    assert (found is not None) is decided


def test_few_logits_are_enough_where_no_other_token_is_allowed() -> None:
    """Whatever top-p and min-p are; and for the likeliest one is enough, whoever else is allowed."""
    logits = np.array([0, -0.1, -np.inf, -np.inf], np.float32)
    assert Sampler(Sampling(1.0, 40, 1.0, 0.0, seed=1)).choose_allowed(logits, np.array([True, True, False, False]), 2) in (0, 1)
    assert Sampler(Sampling(0.0)).choose_allowed(logits, np.array([False, True, True, True]), 2) == 1
    assert Sampler(Sampling(1.0, 2, 1.0, 0.0, seed=1)).choose_allowed(logits, np.array([True, True, False, True]), 2) in (0, 1)  # top-k


@pytest.mark.parametrize(("top_p", "decided"), [(0.75, False), (0.7, True)])
def test_what_is_missing_counts_in_the_sum(top_p: float, decided: bool) -> None:
    """Weights 1, 0.5, 0.45, and of a fourth 0.1 at most: sums of 1.95 to 2.05, and the third is kept where 1.5 is less than top-p of it."""
    logits = np.log(np.array([1, 0.5, 0.45, 0.1, 0, 0], np.float32), where=np.arange(6) < 4, out=np.full(6, -np.inf, np.float32))
    sampler = Sampler(Sampling(1.0, 4, top_p, 0.2, seed=1))
    found = sampler.choose_allowed(logits, np.array([True, True, True, False, True, False]), 4)
    assert (found is not None) is decided


def test_nothing_is_missing_where_all_but_the_silent_are_there() -> None:
    """Though nothing else would decide: all tokens that may be chosen have their logits."""
    logits, allowed = np.array([0, -1, -0.5, -np.inf], np.float32), np.array([True, True, False, False])
    sampler = Sampler(Sampling(1.0, 40, 1.0, 0.0, seed=1))
    sampler.silence(np.array([3]))
    assert sampler.choose_allowed(logits, allowed | (np.arange(4) == 3), 2) is not None


@pytest.mark.parametrize("shift", [-1000.0, 300.0, 1000.0])
def test_mirostat_knows_no_shift(shift: float) -> None:
    """Logits whose exponentials float64 does not have."""
    logits = np.random.default_rng(4).integers(-20, 20, 30).astype(np.float32) / 4
    one, other = (Sampler(Sampling(1.0, mirostat=2, mirostat_tau=3.0, seed=5)) for _ in range(2))
    assert [one.choose(logits) for _ in range(40)] == [other.choose(logits + np.float32(shift)) for _ in range(40)]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_mirostat_divides_by_the_temperature(temperature: float) -> None:
    logits = np.random.default_rng(3).normal(0, 2, 30).astype(np.float32)
    one, other = (Sampler(Sampling(t, mirostat=2, mirostat_tau=3.0, seed=5)) for t in (temperature, 1.0))
    assert [one.choose(logits) for _ in range(40)] == [other.choose(logits / np.float32(temperature)) for _ in range(40)]


def test_tokens_past_the_vocabulary_may_be_forbidden() -> None:
    assert Sampler(Sampling(0.0, top_k=0), never=(2, 3, 4)).choose(np.array([0, 1, 2], np.float32)) == 1


@pytest.mark.parametrize("value", [-0.5, -1.5, 0.75])
def test_a_penalty_lowers_negative_logits_too(value: float) -> None:
    """Beside a logit a fifth lower: the recent one was ahead, and is behind it."""
    sampler = Sampler(Sampling(0.0, repeat_penalty=2.0))
    sampler.observe([0])
    assert sampler.choose(np.array([value, value - 0.2 * abs(value)], np.float32)) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 40, 300])
def test_the_largest_of_many(count: int) -> None:
    """More than enough for groups, whose maxima say where to look (_candidates); and fewer, which are parted."""
    for seed, length in itertools.product(range(20), (6 * count, 15 * count, 16 * count, 30 * count + 37)):
        logits = np.random.default_rng(seed).normal(0, 1, length).astype(np.float32)
        assert np.array_equal(largest_of(logits, count), np.argsort(-logits, kind="stable")[:count])


def test_what_nobody_says() -> None:
    """The defaults of llama.cpp and of its command line (docs/cli.md)."""
    s = Sampling()
    assert (s.temperature, s.top_k, s.top_p, s.min_p) == (0.8, 40, 0.95, 0.05)
    assert (s.repeat_penalty, s.repeat_last_n, s.presence_penalty, s.frequency_penalty) == (1.0, 64, 0.0, 0.0)
    assert (s.seed, s.mirostat, s.mirostat_tau, s.mirostat_eta, s.logit_bias) == (-1, 0, 5.0, 0.1, ())
