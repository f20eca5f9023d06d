"""The head's planes in the decoder: the same tokens as from the whole head, fewer bytes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitnet_kernels import arrays, isa

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.model import head
from bitnet_cli.model.generate import TextPlan, generate
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import bytes_a_token, head_rows

Make = Callable[..., Sequence]
PROMPT = [3, 100, 200, 300]
pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels read every row")

SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "greedy, penalty": Sampling(temperature=0, repeat_penalty=1.3),
    "top 40": Sampling(seed=1),
    "top 40, penalty, hot": Sampling(temperature=3.0, repeat_penalty=1.2, min_p=0.0, top_p=1.0, seed=2),
    "all": Sampling(top_k=0, seed=3),
    "reward": Sampling(temperature=0, repeat_penalty=0.9),
}


def tokens(decoder: Sequence, sampling: Sampling) -> list[int]:
    decoder.rewind(0)
    return list(generate(Scheduler(decoder.engine), PROMPT, Sampler(sampling), TextPlan(100)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_tokens_with_and_without_planes(text_of: Make, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    whole = text_of(EMBEDDED_MODEL, threads=threads)
    monkeypatch.setattr(head, "SMALLEST_HEAD", 0)
    searched = text_of(EMBEDDED_MODEL, threads=threads)
    for name, sampling in SAMPLINGS.items():
        assert tokens(searched, sampling) == tokens(whole, sampling), name
    six, eight, exact = (int(n) for n in head_rows(searched.engine))
    # The trained model's logits: 6 bits leave under a tenth of its 4,096 rows, few are exact.
    assert six % 4096 == 0
    assert exact < 300 * six / 4096
    assert eight < six / 10
    assert not head_rows(whole.engine).any()
    assert bytes_a_token(searched.engine) < bytes_a_token(whole.engine)


def test_logits_that_are_given_are_those_of_the_whole_head(text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_of(EMBEDDED_MODEL)
    monkeypatch.setattr(head, "SMALLEST_HEAD", 0)
    searched = text_of(EMBEDDED_MODEL)
    expected, found = whole.feed(PROMPT), searched.feed(PROMPT, top=10)
    given = found != -np.inf
    assert 10 <= given.sum() < 1000
    assert np.array_equal(found[given], expected[given])
    assert np.array_equal(searched.feed([5]), whole.feed([5]))  # all of them again


@pytest.mark.parametrize(
    ("sampling", "top"),
    [
        (Sampling(), 40),
        (Sampling(top_k=7), 7),
        (Sampling(top_k=0), 0),
        (Sampling(temperature=0), 1),
        (Sampling(temperature=0, top_k=0), 1),
        (Sampling(repeat_penalty=1.1), 40 + Sampling.repeat_last_n),
        (Sampling(repeat_penalty=1.1, repeat_last_n=10), 50),
        (Sampling(repeat_penalty=1.1, repeat_last_n=-1), 140),
        (Sampling(repeat_penalty=1.1, repeat_last_n=0), 40),
        (Sampling(presence_penalty=0.5), 40 + Sampling.repeat_last_n),
        (Sampling(temperature=0, frequency_penalty=0.5), 1 + Sampling.repeat_last_n),
        (Sampling(frequency_penalty=-0.5), 0),
        (Sampling(presence_penalty=-0.5, repeat_penalty=1.1), 0),
        (Sampling(temperature=0, repeat_penalty=0.5), 0),
        (Sampling(mirostat=2), 0),
        (Sampling(mirostat=2, temperature=0), 1),
    ],
)
def test_how_many_logits_a_sampler_looks_at(sampling: Sampling, top: int) -> None:
    """After a prompt of a hundred different tokens. Tokens that are never chosen may stand before those that are."""
    sampler, without = Sampler(sampling), Sampler(sampling, never=[5, 6, 7])
    sampler.observe(range(100))
    without.observe(range(100))
    assert sampler.top == top
    assert without.top == (top + 3 if top else 0)


def test_small_heads_and_those_with_few_bits_have_no_planes(small_file: Path, text_of: Make) -> None:
    assert not len(head.planes_for(arrays.HEAD_Q4_0, 128256, 2560).scales)
    assert not len(head.planes_for(arrays.HEAD_F16, 1000, 256).scales)
    assert not len(head.planes_for(None, 128256, 2560).scales)  # a head that is re-coded
    for kind in (arrays.HEAD_F16, arrays.HEAD_BF16, arrays.HEAD_Q6_K, arrays.HEAD_Q4_K):
        assert len(head.planes_for(kind, 32000, 768).scales)
    decoder = text_of(small_file)
    assert np.isfinite(decoder.feed([1], top=1)).all()
