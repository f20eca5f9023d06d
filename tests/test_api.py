"""`from bitnet_cli import load`: text, tokens, logits, perplexity and embeddings of a model, alone and from several threads."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bitnet_cli import Model, load
from bitnet_cli.errors import BitnetError, UsageError

PROMPT = "And the king said"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load(threads=1) as opened:
        yield opened


def test_the_same_text_as_the_command(model: Model, capfd: pytest.CaptureFixture[str]) -> None:
    from bitnet_cli.options.run import run

    run(prompt=PROMPT, n_predict=24, seed=5, threads=1, quiet=True)
    expected = capfd.readouterr().out
    text = model.generate(PROMPT, max_tokens=24, seed=5)
    pieces = list(text)
    assert "".join(pieces) + "\n" == expected
    assert len(pieces) > 10
    assert model.detokenize(model.tokenize(PROMPT) + text.ids) == PROMPT + "".join(pieces)
    assert (text.seed, text.timings.new_tokens, text.timings.finish) == (5, 24, "length")


def test_a_random_seed_is_told(model: Model) -> None:
    first = model.generate(PROMPT, max_tokens=12)
    text = "".join(first)
    assert text == "".join(model.generate(PROMPT, max_tokens=12, seed=first.seed))


def test_the_prompt_is_computed_once(model: Model) -> None:
    list(model.generate([1, 2, 3, 4], max_tokens=1, temperature=0))
    again = model.generate([1, 2, 3, 4, 5], max_tokens=1, temperature=0)
    list(again)
    assert (again.timings.prompt_tokens, again.timings.cached_tokens) == (5, 4)


def test_logits(model: Model) -> None:
    ids = model.tokenize(PROMPT)
    last, every = model.logits(PROMPT), model.logits(ids, every=True)
    assert (last.shape, every.shape) == ((model.config.vocab,), (len(ids), model.config.vocab))
    assert np.abs(last - every[-1]).max() < 1e-4 * np.abs(last).max()  # kernels and NumPy add in another order
    greedy = model.generate(PROMPT, max_tokens=1, temperature=0)
    list(greedy)
    assert greedy.ids == [int(last.argmax())]
    kept = last.copy()
    model.logits("Another text")
    assert np.array_equal(last, kept)


def test_perplexity(model: Model) -> None:
    text = "And God said, Let there be light: and there was light."
    score = model.perplexity(text)
    assert score.tokens == len(model.tokenize(text)) - 1
    assert 1 < score.perplexity < model.perplexity(" ".join(reversed(text.split()))).perplexity


def test_embed(model: Model) -> None:
    """A model for text has no pooling of its own."""
    with pytest.raises(UsageError, match="pooling"):
        model.embed("a text")
    one, many = model.embed("a text", pooling="mean"), model.embed(["other", "a text"], pooling="mean")
    assert (one.shape, many.shape) == ((model.config.hidden,), (2, model.config.hidden))
    assert np.array_equal(one, many[1])
    assert np.square(one).sum() == pytest.approx(1)


def test_other_work_in_the_middle_of_a_text(model: Model) -> None:
    """Whatever else is asked for meanwhile: each is what it is alone."""
    alone = ["".join(model.generate(PROMPT, max_tokens=20, seed=seed)) for seed in (1, 2)]
    logits = model.logits("Another text")
    one, two = (model.generate(PROMPT, max_tokens=20, seed=seed) for seed in (1, 2))
    first = next(one)
    assert np.array_equal(model.logits("Another text"), logits)
    second = next(two)
    assert [first + "".join(one), second + "".join(two)] == alone


def test_a_text_that_is_left_early(model: Model) -> None:
    text = model.generate(PROMPT)
    next(text)
    text.close()
    assert list(text) == []
    left = model.generate(PROMPT)
    next(left)
    del left
    assert model.logits(PROMPT).shape == (model.config.vocab,)


def test_threads_wait_for_each_other(model: Model) -> None:
    prompts = [f"{PROMPT} {name}" for name in ("Saul", "David", "Solomon", "Ahab")]
    expected = ["".join(model.generate(prompt, max_tokens=16, seed=3)) for prompt in prompts]
    found: dict[int, str] = {}

    def work(number: int) -> None:
        found[number] = "".join(model.generate(prompts[number], max_tokens=16, seed=3))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[number] for number in range(len(prompts))] == expected


def test_a_closed_model() -> None:
    with load(threads=1, context=16) as model:
        text = model.generate(PROMPT)
        next(text)
        text.close()
    model.close()
    with pytest.raises(BitnetError, match="closed"):
        model.logits(PROMPT)


def test_many_texts_at_once(model: Model) -> None:
    prompts = [PROMPT, "In the beginning", PROMPT, "Blessed are the"]
    texts = model.generate_many(prompts, max_tokens=12, seed=4, stop=["\n"])
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        alone = model.generate(prompt, max_tokens=12, seed=4 + number, stop=["\n"])
        assert text.text == "".join(alone) and text.ids == alone.ids and text.seed == 4 + number
        assert text.timings.new_tokens == alone.timings.new_tokens
    assert len({text.text for text in texts}) == 4
    assert model.generate_many([]) == []
    with pytest.raises(UsageError, match="do not fit"):
        model.generate_many([PROMPT, [1] * 5000])


def test_score(model: Model) -> None:
    """Log-probabilities of given texts are those of the logits, also where the context is known already."""
    texts = [" unto David", " unto the people, and all", " xylophone"]
    scores = model.score(PROMPT, texts)
    count = len(model.tokenize(PROMPT))
    for text, one in zip(texts, scores, strict=True):
        ids = model.tokenize(PROMPT + text)
        logits = model.logits(ids, every=True).astype(np.float64)
        logits[:, model._open().engine.silent] = -np.inf
        expected = logits - np.log(np.exp(logits).sum(1))[:, None]
        values = [expected[i - 1, ids[i]] for i in range(count, len(ids))]
        assert one.logprobs.tolist() == pytest.approx(values, abs=1e-5)
        assert one.greedy == all(int(expected[i - 1].argmax()) == ids[i] for i in range(count, len(ids)))
    assert scores[0].logprobs.sum() > scores[2].logprobs.sum()
    assert (
        model.score(model.tokenize(PROMPT), [model.tokenize(PROMPT + texts[0])[count:]])[0].logprobs.tolist() == scores[0].logprobs.tolist()
    )
    likeliest = model.generate(PROMPT, max_tokens=3, temperature=0)
    list(likeliest)
    assert model.score(model.tokenize(PROMPT), [likeliest.ids])[0].greedy
    assert model.score(PROMPT, [""])[0].logprobs.tolist() == []
    with pytest.raises(UsageError, match="context without tokens"):
        model.score([], ["a"])


def test_what_cannot_be_asked(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        load("a-name-that-nobody-has")
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "missing.gguf")
    with pytest.raises(UsageError):
        load(threads=-1)
    with pytest.raises(UsageError, match=r"^temperature is -1"):
        model.generate(PROMPT, temperature=-1)
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate(PROMPT, max_tokens=-2)
    with pytest.raises(UsageError, match="do not fit"):
        list(model.generate([1] * 5000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told(model: Model) -> None:
    """Its copy of the model has no threads: it would wait for ever."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            model.generate("x")
        except BitnetError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(read, 200)
    os.close(read)
