"""The sampler under any options: draws follow the definition, and a logit of minus infinity is a token that is not there."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling

from .test_sampler import chi_square, draws, logits_of, penalised, sampling, twin

ANY = {
    "temperature": st.sampled_from([0.3, 0.8, 1.0, 1.7, 5.0]),
    "top_k": st.sampled_from([0, 1, 3, 9, 40]),
    "top_p": st.sampled_from([0.0, 0.413, 0.8017, 0.9503, 1.0]),
    "min_p": st.sampled_from([0.0, 0.0503, 0.307]),
}
PENALTIES = {
    "repeat_penalty": st.sampled_from([0.7, 1.0, 1.3]),
    "presence_penalty": st.sampled_from([-0.5, 0.0, 0.6]),
    "frequency_penalty": st.sampled_from([-0.2, 0.0, 0.3]),
    "repeat_last_n": st.sampled_from([-1, 0, 3, 64]),
}
MIROSTAT = {"mirostat": st.sampled_from([0, 2]), "mirostat_tau": st.sampled_from([0.5, 3.0])}
NONE = -np.inf


@settings(max_examples=40, derandomize=True)
@given(options=st.fixed_dictionaries(ANY), size=st.integers(1, 60), spread=st.sampled_from([0.1, 1.0, 4.0]), seed=st.integers(0, 999))
def test_draws_follow_the_definition(options: dict[str, Any], size: int, spread: float, seed: int) -> None:
    """Chi-squared against probabilities that a loop over lists gives: six standard deviations, so that 40 examples may all be good."""
    logits = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    s = sampling(**options, seed=seed)
    expected, found = twin(logits, s), draws(logits, s, 1500)
    assert set(found) <= set(expected)
    assert chi_square(found, expected) < 6


@settings(max_examples=25, derandomize=True)
@given(options=st.fixed_dictionaries(PENALTIES), recent=st.lists(st.integers(0, 11), max_size=20), seed=st.integers(0, 999))
def test_draws_after_penalties_follow_the_definition(options: dict[str, Any], recent: list[int], seed: int) -> None:
    """The first choice after a text, by 800 samplers that have seen it."""
    logits = np.random.default_rng(seed).normal(0, 1, 12).astype(np.float32)
    s = sampling(**options)
    expected: dict[int, float] = twin(penalised(logits, s, recent), s)
    found = []
    for number in range(800):
        sampler = Sampler(sampling(**options, seed=1000 * seed + number))
        sampler.observe(recent)
        found.append(sampler.choose(logits))
    assert chi_square(Counter(found), expected) < 6


@settings(max_examples=300)
@given(
    values=st.lists(st.one_of(st.just(NONE), st.integers(-40, 40).map(lambda n: 0.37 * n)), min_size=1, max_size=40),
    options=st.fixed_dictionaries({**ANY, **PENALTIES, **MIROSTAT, "temperature": st.sampled_from([0.0, 0.8, 3.0])}),
)
def test_minus_infinity_is_a_token_that_is_not_there(values: list[float], options: dict[str, Any]) -> None:
    """In every mode: the same seed chooses as among the other tokens alone."""
    there = np.flatnonzero(np.array(values) != NONE)
    assume(len(there))
    s = Sampling(**options, seed=5)
    all_of_them, few = Sampler(s), Sampler(s)
    logits = logits_of(values)
    chosen = [all_of_them.choose(logits) for _ in range(8)]
    assert chosen == [int(there[few.choose(logits[there])]) for _ in range(8)]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"mirostat": 2}, {"presence_penalty": 1.0}], ids=str
)
@pytest.mark.parametrize("values", [[np.nan, 1.0], [1.0, np.inf], [NONE, NONE], [NONE, np.nan], [np.inf, NONE, 0.0]])
def test_what_no_probabilities_come_of(options: dict[str, Any], values: list[float]) -> None:
    """NaN, infinity, and no token at all, in every mode and where only some tokens are allowed."""
    logits = logits_of([*values, *[0.0 if NONE not in values[:2] else NONE] * 20])
    with pytest.raises(BitnetError, match="not finite, at position 7"):
        Sampler(sampling(**options)).choose(logits, 7)
    with pytest.raises(BitnetError, match="not finite, at position 7"):
        Sampler(sampling(**options)).choose_allowed(logits, np.ones(len(logits), np.bool_), 0, 7)


def allowed_of(count: int, where: list[int]) -> NDArray[np.bool_]:
    allowed = np.zeros(count, np.bool_)
    allowed[where] = True
    return allowed


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 3}, {"mirostat": 2}], ids=str)
def test_a_form_that_allows_what_is_not_there(options: dict[str, Any]) -> None:
    logits = logits_of([NONE, 1.0, 2.0, NONE, 0.5])
    assert {Sampler(sampling(**options)).choose_allowed(logits, allowed_of(5, [0, 1, 3])) for _ in range(20)} == {1}


@pytest.mark.parametrize("never", [(), (3,), (3, 17, 18)])
@pytest.mark.parametrize(("options", "count"), [({"temperature": 0.0}, 1), ({"top_k": 5}, 5), ({"top_k": 0}, 0), ({"mirostat": 2}, 0)])
def test_how_many_logits_are_asked_for(options: dict[str, Any], count: int, never: tuple[int, ...]) -> None:
    """Those that may be chosen, and as many more as are never chosen and might be the largest."""
    sampler = Sampler(sampling(**options), never)
    assert sampler.top == (count + len(never) if count else 0)
    logits = logits_of([float(n == 3) + 0.5 * (n in (17, 18)) + 0.01 * n for n in range(30)])
    if count == 1:
        logits[logits < np.sort(logits)[-sampler.top]] = NONE
        assert sampler.choose(logits) not in never
