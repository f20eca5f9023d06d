"""A choice among some tokens only, from all logits or from the largest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling


@given(
    logits=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 4.0]) | st.floats(-8, 8, width=16), min_size=3, max_size=40),
    share=st.floats(0.05, 1.0),
    asked=st.integers(1, 12),
    values=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
            "top_k": st.integers(1, 12),
            "top_p": st.sampled_from([0.0, 0.3, 0.9, 0.95, 1.0]),
            "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]),
            "repeat_penalty": st.sampled_from([1.0, 1.5]),
            "presence_penalty": st.sampled_from([0.0, 1.0]),
            "logit_bias": st.sampled_from([(), ((3, -2.0),)]),
            "seed": st.integers(0, 99),
        }
    ),
)
def test_a_choice_among_allowed_tokens(logits: list[float], share: float, asked: int, values: dict[str, Any]) -> None:
    """It is the choice where the others cannot be drawn, and where it can be made from the largest logits alone, it is the same."""
    every, s, random = np.array(logits, np.float32), Sampling(**values), np.random.default_rng(len(logits))
    allowed = random.random(len(every)) < share
    allowed[random.integers(len(every))] = True
    if s.penalises:
        asked += 4
    largest = np.where(every >= np.sort(every)[-min(asked, len(every))], every, -np.inf).astype(np.float32)
    nowhere = np.where(allowed, every, -1e30).astype(np.float32)
    whole, part, plain = (Sampler(s) for _ in range(3))
    for _ in range(4):
        token = whole.choose_allowed(every, allowed)
        assert token is not None and allowed[token]
        if s.top_k <= allowed.sum() and s.repeat_penalty == 1.0 and s.min_p > 0:
            expected = plain.choose(nowhere)
            assert token == expected
        found = part.choose_allowed(largest, allowed, min(asked, len(every)))
        if found is None:
            found = part.choose_allowed(every, allowed)
        assert found == token


def test_few_logits_are_mostly_enough_to_choose_among_allowed_tokens() -> None:
    """In a string nearly everything is allowed; where little is, what is likeliest, or nothing."""
    random, s = np.random.default_rng(5), Sampling(seed=3)
    logits = random.normal(0, 2, 5000).astype(np.float32)
    largest = np.where(logits >= np.sort(logits)[-48], logits, -np.inf).astype(np.float32)
    order = np.argsort(-logits)
    allowed = np.ones(5000, bool)
    allowed[order[[0, 3, 20]]] = False
    assert Sampler(s).choose_allowed(largest, allowed, 48) == Sampler(s).choose_allowed(logits, allowed)
    few = np.zeros(5000, bool)
    few[order[[1, 2000]]] = True
    largest[order[1]] = 20.0
    assert Sampler(s).choose_allowed(largest, few, 48) == order[1]
    few[order[1]] = False
    assert Sampler(s).choose_allowed(largest, few, 48) is None
    assert Sampler(s).choose_allowed(logits, few) == order[2000]
    with pytest.raises(BitnetError, match="not finite"):
        Sampler(s).choose_allowed(np.full(5000, np.nan, np.float32), few)
