"""Many texts at once: each gets the tokens that it would get alone, whoever joins, leaves, fails or has to give its pages back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import isa
from bitnet_kernels.kv_cache import CACHE_TYPES

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.generate import Text, TextPlan, Timings, generate
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence

from .builder import Sizes, random_model, write_model

pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="NumPy adds in another order for other numbers of tokens")
Make = Callable[..., Sequence]
PREFIX = [int(i) for i in np.random.default_rng(3).integers(0, 256, 60)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of its own, so that texts do not go in circles."""
    return write_model(tmp_path_factory.mktemp("many") / "m.gguf", random_model(Sizes(layers=2, context=400), seed=7, tied=False))


class Wish:
    """A text that is wanted: half of them begin alike."""

    def __init__(self, rng: np.random.Generator, number: int):
        begin = PREFIX[: int(rng.integers(0, len(PREFIX)))] if rng.random() < 0.5 else []
        self.prompt = begin + [int(i) for i in rng.integers(0, 256, rng.integers(1, 90))]
        greedy = rng.random() < 0.4
        self.sampling = Sampling(0.0) if greedy else Sampling(1.0, seed=number, repeat_penalty=1.1 if rng.random() < 0.3 else 1.0)
        self.plan = TextPlan(int(rng.integers(1, 40)), draft=int(rng.choice([0, 0, 4])))

    def text(self) -> Text:
        """It, to be written."""
        return Text(self.prompt, Sampler(self.sampling), self.plan)

    def alone(self, scheduler: Scheduler) -> list[int]:
        """Its tokens, from an engine that has nothing else to do and knows nothing of it."""
        scheduler.engine.pages.forget()
        return list(generate(scheduler, self.prompt, Sampler(self.sampling), self.plan))


def finished(scheduler: Scheduler) -> None:
    """Nothing is held by texts that are gone."""
    assert not scheduler.step()
    assert scheduler.engine.pages.used == 0
    scheduler.engine.pages.forget()
    assert scheduler.engine.pages.unused == scheduler.engine.pages.count


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in ("f32", "q3") else [pytest.mark.slow]) for kind in CACHE_TYPES])
@pytest.mark.parametrize("seed", range(2))
def test_each_as_alone(path: Path, text_of: Make, kind: str, seed: int) -> None:
    """Pages of 16 positions, of which there are too few: texts join and leave at random, some are cancelled and some fail."""
    rng = np.random.default_rng(seed)
    wishes = [Wish(rng, number) for number in range(24)]
    alone = Scheduler(text_of(path, context=200, cache_type=kind).engine)
    many = Scheduler(text_of(path, context=200, cache_type=kind, page=16, cache_tokens=224, threads=1 + seed).engine)
    expected = [wish.alone(alone) for wish in wishes]
    jobs: list[tuple[int, Text]] = []
    cancelled, failing = set[int](), set[int]()
    while len(jobs) < len(wishes) or not all(job.done for _, job in jobs):
        while len(jobs) < len(wishes) and rng.random() < 0.4:
            number = len(jobs)
            text = wishes[number].text()
            if rng.random() < 0.1:
                failing.add(number)
                text._sampler.choose = lambda *_: (_ for _ in ()).throw(BitnetError("no"))  # type: ignore[method-assign]
            jobs.append((number, text))
            many.submit(text)
        if jobs and rng.random() < 0.05:
            number, job = jobs[int(rng.integers(len(jobs)))]
            if not job.done:
                cancelled.add(number)
                many.cancel([job])
        many.step()
    for number, job in jobs:
        if number in failing and number not in cancelled:
            assert str(job.error) == "no"
        elif number in cancelled:
            assert list(job.ready) == expected[number][: len(job.ready)]
        else:
            assert job.error is None and list(job.ready) == expected[number], number
    assert many.given_back > 0
    finished(many)


def test_what_begins_alike_is_computed_once(path: Path, text_of: Make) -> None:
    """Eight texts with one prompt: one prefill, and copies of its last page when they go on in different ways."""
    engine = text_of(path, context=200, cache_tokens=1600).engine
    scheduler, timings = Scheduler(engine), [Timings() for _ in range(8)]
    jobs = [Text(PREFIX, Sampler(Sampling(seed=seed)), TextPlan(20), timings[seed]) for seed in range(8)]
    scheduler.finish(jobs)
    assert [t.cached_tokens for t in timings] == [0] + [len(PREFIX) - 1] * 7
    alone = Scheduler(text_of(path, context=200).engine)
    for seed, job in enumerate(jobs):
        alone.engine.pages.forget()
        assert list(job.ready) == list(generate(alone, PREFIX, Sampler(Sampling(seed=seed)), TextPlan(20)))
    assert len({tuple(job.ready) for job in jobs}) > 4
    finished(scheduler)


def test_a_full_cache_forgets_the_oldest(path: Path, text_of: Make) -> None:
    """A text that begins like another one, in a cache without empty pages, takes the room of the text that was left first."""
    scheduler = Scheduler(text_of(path, context=128, page=16, cache_tokens=256).engine)
    bodies = np.random.default_rng(5).integers(20, 256, (8, 60)).tolist()

    def known(number: int) -> int:
        text = Text([1, 2, 3, *bodies[number]], Sampler(Sampling(0.0)), TextPlan(1))
        list(scheduler.run(text))
        return text.timings.cached_tokens

    for number in range(6):
        known(number)
    assert scheduler.engine.pages.unused == 0
    assert known(5) == 62
    assert known(6) == 3
    assert known(5) == 62
    assert known(0) < 62


def test_salts_share_nothing(path: Path, text_of: Make) -> None:
    engine = text_of(path, context=200, cache_tokens=1600).engine
    timings = [Timings() for _ in range(3)]
    for t, salt in zip(timings, ("a", "b", "a"), strict=True):
        Scheduler(engine).finish([Text(PREFIX, Sampler(Sampling(0.0)), TextPlan(1), t, salt)])
    assert [t.cached_tokens for t in timings] == [0, 0, len(PREFIX) - 1]


@pytest.mark.parametrize(("patience", "expected"), [(None, 4), (1e-9, 49)])
def test_a_prompt_does_not_keep_others_waiting(path: Path, text_of: Make, patience: float | None, expected: int) -> None:
    """While a long prompt is read, a text that is being written gets a token in every step, and steps are as small as its patience."""
    engine = text_of(path, context=400, cache_tokens=1600).engine
    scheduler = Scheduler(engine, patience)
    writes = Text([1, 2, 3], Sampler(Sampling(0.0)), TextPlan(60))
    scheduler.submit(writes)
    scheduler.step()
    reads = Text([int(i) for i in np.random.default_rng(1).integers(0, 256, 390)], Sampler(Sampling(0.0)), TextPlan(1))
    scheduler.submit(reads)
    steps = 0
    while not reads.done:
        before = len(writes.ready)
        scheduler.step()
        steps += 1
        assert len(writes.ready) == before + 1
    assert steps == expected  # 127, 127, 127, 9 of its tokens, or 48 times 8 and 6
    scheduler.cancel([writes])
    finished(scheduler)


def test_one_that_fails_is_alone_in_that(path: Path, text_of: Make) -> None:
    scheduler = Scheduler(text_of(path, context=200, cache_tokens=400).engine)
    good, bad = Text(PREFIX, Sampler(Sampling(0.0)), TextPlan(5)), Text([999], Sampler(Sampling(0.0)), TextPlan(5))
    scheduler.submit(bad)
    scheduler.submit(good)
    while scheduler.step():
        pass
    assert bad.done and "token ids" in str(bad.error)
    assert good.error is None and len(good.ready) == 5


def test_reading_beside_writing(path: Path, text_of: Make) -> None:
    """Logits and states of texts that share steps are those of each alone."""
    engine: Engine = text_of(path, context=200, cache_tokens=1600, threads=2).engine
    rng, found = np.random.default_rng(5), dict[int, list[Any]]()
    texts = [[int(i) for i in rng.integers(0, 256, count)] for count in (1, 7, 130, 31, 2)]
    jobs = []
    for number, ids in enumerate(texts):
        found[number] = []
        jobs.append(Reading(ids, lambda _, rows, number=number: found[number].append(rows.copy()), states=number % 2 == 1))
    scheduler = Scheduler(engine)
    scheduler.submit(Text(PREFIX, Sampler(Sampling(seed=1)), TextPlan(3)))
    scheduler.finish(jobs)
    alone = text_of(path, context=200)
    for number, ids in enumerate(texts):
        alone.rewind(0)
        expected = alone.states(ids) if number % 2 else alone.feed_all(ids)
        assert np.array_equal(np.concatenate(found[number]), expected)


def test_ctrl_c_in_the_middle_of_a_step(path: Path, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the kernels, or while tokens are handed out: others go on as if there had been none, and who was in it ends with an error."""
    engine = text_of(path, context=200, cache_tokens=400).engine
    alone = Scheduler(engine)
    wanted = [(PREFIX, seed) for seed in range(3)]
    expected = [list(generate(alone, prompt, Sampler(Sampling(1.0, seed=seed)), TextPlan(12))) for prompt, seed in wanted]
    engine.pages.forget()
    scheduler = Scheduler(engine)
    jobs = [Text(prompt, Sampler(Sampling(1.0, seed=seed)), TextPlan(12)) for prompt, seed in wanted]
    for job in jobs:
        scheduler.submit(job)
    for _ in range(4):
        scheduler.step()
    whole = engine.step
    monkeypatch.setattr(engine, "step", lambda rows: (whole(rows), (_ for _ in ()).throw(KeyboardInterrupt))[1].__next__())
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    monkeypatch.setattr(engine, "step", whole)
    scheduler.step()
    monkeypatch.setattr(jobs[1], "took", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    while scheduler.step():
        pass
    assert str(jobs[1].error) == "interrupted by another thread"
    assert [list(jobs[i].ready) for i in (0, 2)] == [expected[0], expected[2]]
    finished(scheduler)
