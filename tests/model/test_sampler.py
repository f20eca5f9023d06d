"""Logits -> token: the choice is compared with a slow twin that reads like the definition, and with the probabilities themselves."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling

PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


def logits_of(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def sampling(**values: Any) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1, **values})


def penalised(logits: NDArray[np.float32], s: Sampling, recent: Sequence[int]) -> NDArray[np.float32]:
    """One token after the other, in float32 as the sampler."""
    logits = logits.copy()
    for token, bias in s.logit_bias:
        logits[token] += np.float32(bias)
    window = recent[-s.repeat_last_n :] if s.repeat_last_n > 0 else recent if s.repeat_last_n else []
    for token, count in Counter(window).items():
        value, penalty = logits[token], np.float32(s.repeat_penalty)
        value = value / penalty if value > 0 else value * penalty
        logits[token] = value - np.float32(count) * np.float32(s.frequency_penalty) - np.float32(s.presence_penalty)
    return logits


def twin(logits: NDArray[np.float32], s: Sampling) -> dict[int, float]:
    """Token -> probability: top-k, then top-p, then min-p, then temperature, one at a time over Python lists."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    if s.top_k:
        order = order[: s.top_k]
    weights = [math.exp(float(logits[i]) - float(logits[order[0]])) for i in order]
    kept, total = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if kept and (total >= s.top_p or weight < s.min_p):
            break
        kept.append(token)
        total += weight / sum(weights)
    heated = [math.exp((float(logits[i]) - float(logits[kept[0]])) / s.temperature) for i in kept]
    return {token: weight / sum(heated) for token, weight in zip(kept, heated, strict=True)}


def draws(logits: NDArray[np.float32], s: Sampling, count: int) -> Counter[int]:
    sampler = Sampler(s)
    return Counter(sampler.choose(logits) for _ in range(count))


def chi_square(found: Counter[int], expected: dict[int, float]) -> float:
    """In units of its standard deviation above its mean; tokens expected less than 5 times count as one."""
    n = sum(found.values())
    rare = {token for token, p in expected.items() if p * n < 5}
    cells = [(found[token], p * n) for token, p in expected.items() if token not in rare]
    if rest := n * sum(expected[token] for token in rare):
        cells.append((sum(found[token] for token in rare), rest))
    statistic = sum((got - want) ** 2 / want for got, want in cells if want >= 1)
    freedom = max(len(cells) - 1, 1)
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.7},
        {"top_p": 0.0},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
        {"temperature": 100.0},
    ],
)
def test_draws_follow_the_probabilities(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(4).normal(0, 1.5, 40).astype(np.float32)
    s = sampling(**options)
    expected = twin(logits, s)
    found = draws(logits, s, 4000)
    assert set(found) <= set(expected)
    assert chi_square(found, expected) < 5


def test_the_check_above_can_fail() -> None:
    """Draws at temperature 1 are not those of temperature 0.8, and 4000 of them are enough to see it."""
    logits = np.random.default_rng(4).normal(0, 1.5, 40).astype(np.float32)
    assert chi_square(draws(logits, sampling(), 4000), twin(logits, sampling(temperature=0.8))) > 5


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=30),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3, 0.77, 1.0]),
)
def test_only_kept_tokens_are_drawn_and_all_of_them(values: list[int], top_k: int, top_p: float, min_p: float) -> None:
    """Whole numbers give many ties. At temperature 100 all kept tokens are nearly as likely, so 40 draws of each find them."""
    s = sampling(temperature=100.0, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = logits_of(values)
    expected = twin(logits, s)
    assert set(draws(logits, s, 40 * len(expected))) == set(expected) or close_to_an_edge(logits, s)


def close_to_an_edge(logits: NDArray[np.float32], s: Sampling) -> bool:
    """Whether a sum of probabilities meets top_p to the last digits, where the order of the additions decides."""
    weights = np.sort(np.exp(logits.astype(np.float64) - float(logits.max())))[::-1]
    sums = np.cumsum(weights[: s.top_k or None]) / weights[: s.top_k or None].sum()
    return bool(np.abs(sums - s.top_p).min() < 1e-9)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1, "temperature": 5.0}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_greedy_takes_the_largest(options: dict[str, Any]) -> None:
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 1, 300).astype(np.float32)
        assert Sampler(sampling(**options)).choose(logits) == int(logits.argmax())


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.zeros(50, np.float32)
    logits[[30, 7, 41]] = 2.5
    assert Sampler(sampling(temperature=0.0)).choose(logits) == 7


@pytest.mark.parametrize("temperature", [1e-30, 1e-9, 1e-4])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = logits_of([1.0, 3.0, 2.5, -4.0])
    assert draws(logits, sampling(temperature=temperature), 50) == {1: 50}


def test_top_k_among_equals_keeps_the_lower_ids() -> None:
    logits = np.zeros(100, np.float32)
    logits[90] = 1.0
    assert set(draws(logits, sampling(top_k=4, temperature=100.0), 400)) == {90, 0, 1, 2}


def test_all_equal_logits() -> None:
    logits = np.full(64, -3.0, np.float32)
    found = draws(logits, sampling(), 6400)
    assert chi_square(found, dict.fromkeys(range(64), 1 / 64)) < 5
    assert Sampler(sampling(temperature=0.0)).choose(logits) == 0


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 40])
def test_a_vocabulary_smaller_than_top_k(top_k: int) -> None:
    found = draws(logits_of([0.1, 0.0, 0.2]), sampling(top_k=top_k, temperature=10.0), 300)
    assert len(found) == (min(top_k, 3) or 3)


def test_one_token() -> None:
    assert Sampler(PLAIN).choose(logits_of([-7.0])) == 0


@pytest.mark.parametrize(("bad", "temperature"), [(np.nan, 0.0), (np.nan, 0.8), (np.inf, 0.0), (np.inf, 0.8)])
def test_logits_that_are_not_finite(bad: float, temperature: float) -> None:
    logits = np.zeros(300, np.float32)
    logits[123] = bad
    with pytest.raises(BitnetError, match="not finite") as caught:
        Sampler(sampling(temperature=temperature)).choose(logits)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("choice", [sampling(temperature=0.0), sampling(top_k=2)])
def test_minus_infinity_stands_for_a_logit_that_does_not_matter(choice: Sampling) -> None:
    """Where only the top is looked at, the decoder gives no others."""
    logits = np.full(300, -np.inf, np.float32)
    logits[[5, 9]] = 1.0, 2.0
    assert set(draws(logits, choice, 50)) <= {5, 9}
    with pytest.raises(BitnetError, match="not finite"):
        Sampler(choice).choose(np.full(300, -np.inf, np.float32))


def test_the_largest_finite_logits() -> None:
    logits = logits_of([3e38, -3e38, 2e38, 0])
    assert draws(logits, PLAIN, 20) == {0: 20}


def test_the_same_seed_makes_the_same_choices() -> None:
    rng = np.random.default_rng(0)
    steps = [rng.normal(0, 1, 500).astype(np.float32) for _ in range(50)]

    def text(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed))
        return [sampler.choose(logits) for logits in steps]

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_a_random_seed_is_told_and_makes_the_same_choices() -> None:
    logits = np.zeros(1000, np.float32)
    first, other = Sampler(sampling(seed=-1)), Sampler(sampling(seed=-1))
    assert first.seed >= 0
    assert first.seed != other.seed
    again = Sampler(sampling(seed=first.seed))
    assert [first.choose(logits) for _ in range(30)] == [again.choose(logits) for _ in range(30)]


def test_a_choice_leaves_the_logits_alone() -> None:
    """They are the decoder's own array."""
    logits = np.random.default_rng(1).normal(0, 1, 100).astype(np.float32)
    before = logits.copy()
    sampler = Sampler(Sampling(repeat_penalty=1.3, seed=0))
    sampler.observe(range(100))
    sampler.choose(logits)
    assert np.array_equal(logits, before)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (NAN, INF, -INF, -1.0, -1e-9, 101.0)),
        ("top_k", (-1, -(2**40))),
        ("top_p", (NAN, INF, -0.1, 1.1, 2.0)),
        ("min_p", (NAN, INF, -0.1, 1.1)),
        ("repeat_penalty", (NAN, INF, 0.0, -1.0, 1e9)),
        ("seed", (-2, 2**63, 2**64)),
        ("repeat_last_n", (-2, NAN)),
        ("presence_penalty", (NAN, INF, -101.0)),
        ("frequency_penalty", (NAN, -INF, 101.0)),
        ("mirostat", (1, -1, 3)),
        ("mirostat_tau", (NAN, -1.0, INF)),
        ("mirostat_eta", (NAN, -0.1, 1.5)),
    ],
)
def test_values_out_of_range(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UsageError, match="expected") as caught:
            Sampling(**{name: value})
        assert str(caught.value).startswith(f"{name} is {value}, expected ")


@pytest.mark.parametrize("bias", [((-1, 1.0),), ((3, NAN),), ((3, INF),), ((3, 1.0), (3, 2.0))])
def test_biases_out_of_range(bias: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        Sampling(logit_bias=bias)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", 100.0), ("top_k", 10**9), ("top_p", 0.0), ("top_p", 1.0), ("min_p", 1.0), ("seed", 2**63 - 1)],
)
def test_the_ends_of_the_ranges(name: str, value: float) -> None:
    assert Sampler(Sampling(**{name: value})).choose(logits_of([0.0, 1.0])) in (0, 1)


def test_repeat_penalty() -> None:
    """arXiv 1909.05858, section 4.1: positive logits of recent tokens are divided, negative ones multiplied."""
    greedy = Sampler(sampling(temperature=0.0, repeat_penalty=2.0))
    logits = logits_of([4.0, 3.0, 2.5, -1.0])
    assert [greedy.choose(logits) for _ in range(4)] == [0, 1, 2, 0]  # 4, then 3 against 2, then 2.5 against 2 and 1.5, then 2
    negative = Sampler(sampling(temperature=0.0, repeat_penalty=2.0))
    assert [negative.choose(logits_of([-1.0, -1.5, -9.0])) for _ in range(2)] == [0, 1]


def test_repeat_penalty_sees_the_prompt_and_forgets() -> None:
    logits = logits_of([4.0, 3.0, *[-9.0] * 70])
    s = sampling(temperature=0.0, repeat_penalty=2.0)
    sampler = Sampler(s)
    sampler.observe([0])
    assert sampler.choose(logits) == 1
    sampler = Sampler(s)
    sampler.observe([0, *range(2, 2 + Sampling.repeat_last_n)])
    assert sampler.choose(logits) == 0


def test_no_penalty_changes_nothing() -> None:
    logits = np.random.default_rng(3).normal(0, 1, 50).astype(np.float32)
    with_history, without = Sampler(PLAIN), Sampler(PLAIN)
    with_history.observe(range(50))
    assert [with_history.choose(logits) for _ in range(20)] == [without.choose(logits) for _ in range(20)]


def test_larger_top_p_keeps_no_fewer_tokens() -> None:
    logits = np.random.default_rng(9).normal(0, 1, 64).astype(np.float32)
    kept = [set(draws(logits, sampling(top_p=p, temperature=100.0), 1500)) for p in (0.1, 0.4, 0.7, 1.0)]
    assert all(few <= many for few, many in pairwise(kept))
    assert len(kept[0]) < len(kept[1]) < len(kept[2]) < len(kept[3])


PENALTIES = [
    {"repeat_penalty": 1.3},
    {"presence_penalty": 0.7},
    {"frequency_penalty": 0.4},
    {"repeat_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"presence_penalty": -0.7},
    {"frequency_penalty": -0.4, "repeat_penalty": 1.5},
    {"repeat_penalty": 0.8},
    {"frequency_penalty": 0.5, "repeat_last_n": 5},
    {"frequency_penalty": 0.5, "repeat_last_n": -1},
    {"frequency_penalty": 0.5, "repeat_last_n": 0},
    {"logit_bias": ((5, -3.5), (7, -100.0), (0, -0.25))},
    {"logit_bias": ((59, 1.5), (4, -1.0)), "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("options", PENALTIES, ids=str)
def test_penalties_over_a_text(options: dict[str, Any]) -> None:
    """Greedy choices from logits that hardly change: the penalties decide every one of them."""
    rng = np.random.default_rng(3)
    base = rng.normal(0, 1, 60).astype(np.float32)
    s = sampling(temperature=0.0, **options)
    sampler, text = Sampler(s), [int(i) for i in rng.integers(0, 60, 90)]
    sampler.observe(text)
    for _ in range(150):
        logits = base + rng.normal(0, 0.1, 60).astype(np.float32)
        token = sampler.choose(logits)
        assert token == int(penalised(logits, s, text).argmax())
        text.append(token)


@pytest.mark.parametrize("options", [*PENALTIES, {"mirostat": 2, "mirostat_tau": 2.0}, {}], ids=str)
@pytest.mark.parametrize("choice", [{"temperature": 0.0}, {"top_k": 5, "temperature": 1.5}], ids=str)
@pytest.mark.parametrize("never", [(), (3, 17, 18)])
def test_the_top_decides(options: dict[str, Any], choice: dict[str, Any], never: tuple[int, ...]) -> None:
    """With minus infinity for all but the `top` largest logits, and all that equal them, the same tokens are chosen as with all."""
    rng = np.random.default_rng(8)
    s = sampling(**options, **choice)
    whole, searched = Sampler(s, never), Sampler(s, never)
    prompt = [int(i) for i in rng.integers(0, 300, 40)]
    whole.observe(prompt)
    searched.observe(prompt)
    base = np.round(rng.normal(0, 1.5, 300), 1).astype(np.float32)  # many are equal
    limited = 0
    for _ in range(120):
        logits = base + np.round(rng.normal(0, 0.2, 300), 1).astype(np.float32)
        some, top = logits.copy(), searched.top
        if top:
            limited += 1
            some[some < np.sort(some)[-min(top, 300)]] = -np.inf
        token = whole.choose(logits)
        assert searched.choose(some) == token
        assert token not in never
    raises = min(options.get("presence_penalty", 0), options.get("frequency_penalty", 0)) < 0 or options.get("repeat_penalty", 1) < 1
    raises = raises or any(bias > 0 for _, bias in options.get("logit_bias", ()))
    mirostat = "mirostat" in options and choice["temperature"] > 0
    assert limited == (0 if raises or mirostat else 120)


def test_tokens_that_are_never_chosen() -> None:
    logits = logits_of([5.0, 4.0, 3.0, 2.0])
    assert Sampler(sampling(temperature=0.0), never=[0, 1]).choose(logits) == 2
    found = Counter(Sampler(sampling(temperature=100.0, seed=n), never=[0, 3]).choose(logits) for n in range(60))
    assert set(found) == {1, 2}


def mirostat_twin(logits: NDArray[np.float32], mu: float, temperature: float) -> dict[int, float]:
    """Token -> probability for one mu, and the surprise of each, by the definition."""
    weights = [math.exp(float(value) / temperature) for value in logits]
    p = [weight / sum(weights) for weight in weights]
    kept = [i for i in range(len(p)) if -math.log2(p[i]) <= mu] or [int(np.argmax(p))]
    total = sum(p[i] for i in kept)
    return {i: p[i] / total for i in kept}


@pytest.mark.parametrize(("tau", "temperature"), [(3.0, 1.0), (1.0, 0.7), (0.05, 1.0), (9.0, 1.0)])
def test_mirostat_draws_what_is_not_too_surprising(tau: float, temperature: float) -> None:
    logits = np.random.default_rng(4).normal(0, 1.5, 40).astype(np.float32)
    s = sampling(mirostat=2, mirostat_tau=tau, mirostat_eta=0.0, temperature=temperature)  # eta 0: mu stays 2 tau
    expected = mirostat_twin(logits, 2 * tau, temperature)
    found = draws(logits, s, 4000)
    assert set(found) <= set(expected)
    assert chi_square(found, expected) < 5


@pytest.mark.parametrize("tau", [3.0, 4.0, 6.0])
def test_mirostat_keeps_the_surprise(tau: float) -> None:
    """arXiv 2007.14966: the mean surprise of what is drawn comes to tau, of a distribution that can have it."""
    logits = (3 - 1.2 * np.log(np.arange(1, 5001))).astype(np.float32)  # Zipf, as words are
    p = np.exp(logits.astype(np.float64))
    surprise = -np.log2(p / p.sum())
    sampler = Sampler(sampling(mirostat=2, mirostat_tau=tau, seed=2))
    seen = [surprise[sampler.choose(logits)] for _ in range(1500)]
    assert np.mean(seen[200:]) == pytest.approx(tau, abs=0.1)
