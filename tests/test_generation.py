"""`Generation`: what `generate` and `chat` give, whole or piece by piece, from one thread, several, or an event loop."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bitnet_cli import Generation, Model, load
from bitnet_cli.errors import BitnetError

PROMPT = "And the king said"
USER = [{"role": "user", "content": "Who was it?"}]
Ask = Callable[..., Generation]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load(threads=2) as opened:
        yield opened


@pytest.fixture(params=["generate", "chat"])
def ask(model: Model, request: pytest.FixtureRequest) -> Ask:
    """ask(**options): a text, by one of the two ways."""
    return lambda **options: model.generate(PROMPT, **options) if request.param == "generate" else model.chat(USER, **options)


def test_all_of_it(ask: Ask) -> None:
    """Whatever is asked for first, without a loop; and the pieces are still there."""
    pieces = list(ask(max_tokens=12, seed=3))
    for name in ("text", "ids", "logprobs", "finish", "timings", "stopped_by"):
        text = ask(max_tokens=12, seed=3, logprobs=2)
        getattr(text, name)
        assert (text.text, str(text), f"{text}") == ("".join(pieces),) * 3
        assert (len(text.ids), text.finish, text.stopped_by, text.timings.new_tokens, text.seed) == (12, "length", None, 12, 3)
        assert [one.id for one in text.logprobs] == text.ids and all(len(one.top) == 2 for one in text.logprobs)
        assert list(text) == pieces and list(text) == []


def test_what_is_shown(ask: Ask) -> None:
    """In a debugger what there is, without writing more; in a notebook all of it."""
    text = ask(max_tokens=12, seed=3)
    assert repr(text) == "<Generation '', not finished>"
    first = next(text)
    assert repr(text) == f"<Generation {first!r}, not finished>"

    class Printer:
        def text(self, shown: str) -> None:
            self.shown = shown

    printer = Printer()
    text._repr_pretty_(printer, False)
    assert printer.shown == text.text and repr(text) == f"<Generation {text.text!r}, length>"


def test_stop_strings(ask: Ask) -> None:
    whole = ask(max_tokens=12, temperature=0).text
    text = ask(max_tokens=12, temperature=0, stop=["nowhere", whole[6:9]])
    assert (text.text.strip(), text.finish, text.stopped_by) == (whole[: whole.index(whole[6:9])].strip(), "stop", whole[6:9])


def test_closed(ask: Ask) -> None:
    """Before it begins, in the middle, at the end, twice."""
    none = ask(max_tokens=12)
    none.close()
    assert (none.text, none.ids, none.finish) == ("", [], "interrupted")
    some = ask(max_tokens=12, seed=3)
    first = next(some)
    some.close()
    some.close()
    assert (some.text, some.finish, list(some)) == (first, "interrupted", [])
    whole = ask(max_tokens=12, seed=3)
    assert whole.finish == "length"
    whole.close()
    assert whole.finish == "length"


def test_async_for(ask: Ask) -> None:
    expected = [ask(max_tokens=12, seed=seed).text for seed in range(4)]

    async def whole(seed: int) -> str:
        return "".join([piece async for piece in ask(max_tokens=12, seed=seed)])

    async def together() -> list[str]:
        return await asyncio.gather(*[whole(seed) for seed in range(4)])

    assert asyncio.run(together()) == expected


def test_an_error_in_the_middle(model: Model) -> None:
    """It is raised where the text is read, and what came before stays."""
    text = model.generate(PROMPT, max_tokens=-1, ignore_eos=True)
    first = next(text)
    job = model._open().scheduler._jobs[0]
    job.took = lambda *_: (_ for _ in ()).throw(BitnetError("of the test"))  # type: ignore[method-assign]
    with pytest.raises(BitnetError, match="of the test"):
        list(text)
    assert text.text.startswith(first) and text.finish == "interrupted"


def test_another_thread_closes_it(model: Model) -> None:
    text = model.generate(PROMPT, max_tokens=-1, ignore_eos=True)
    began, found = threading.Event(), list[str]()

    def read() -> None:
        for piece in text:
            found.append(piece)
            began.set()
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    assert began.wait(30)
    text.close()
    reader.join(30)
    assert not reader.is_alive() and text.finish == "interrupted" and text.text == "".join(found)


def test_a_text_that_nobody_takes_from_rests(model: Model) -> None:
    """It keeps no pages and is computed no further, however much is asked meanwhile; and goes on where it was."""
    expected = model.generate(PROMPT, max_tokens=100, seed=1, ignore_eos=True)
    scheduler, alone = model._open().scheduler, model.generate("In the", max_tokens=200, seed=2, ignore_eos=True).text
    assert len(expected.ids) == 100
    left = model.generate(PROMPT, max_tokens=100, seed=1, ignore_eos=True)
    next(left)
    assert model.generate("In the", max_tokens=200, seed=2, ignore_eos=True).text == alone
    (job,) = scheduler._jobs
    assert job.rests and not job.running and len(job.ready) == job.ahead and scheduler.engine.pages.used == 0
    assert left.text == expected.text and left.timings.new_tokens == 100


def test_texts_that_are_left_do_not_fill_the_cache() -> None:
    """In a cache that holds one text, others that wait for their readers give way."""
    with load(threads=1, context=128) as model:
        expected = model.generate(PROMPT, max_tokens=100, seed=1, ignore_eos=True).ids
        left = [model.generate(PROMPT, max_tokens=-1, seed=seed, ignore_eos=True) for seed in range(5)]
        for text in left:
            next(text)
        assert model.generate(PROMPT, max_tokens=100, seed=1, ignore_eos=True).ids == expected
        assert [len(text.ids) for text in left] == [128 - len(model.tokenize(PROMPT)) + 1] * 5


def test_a_with_lets_the_users_exception_through() -> None:
    with pytest.raises(KeyError, match="mine"), load(threads=2) as model:
        for _ in model.generate(PROMPT):
            raise KeyError("mine")
    with pytest.raises(BitnetError, match="closed"):
        model.generate(PROMPT)


def test_a_text_of_a_closed_model() -> None:
    """Begun or not: an error, and no threads come back."""
    before = threading.active_count()
    model = load(threads=2)
    new, begun = model.generate(PROMPT), model.generate(PROMPT)
    next(begun)
    model.close()
    for text in (new, begun):
        with pytest.raises(BitnetError, match="closed"):
            list(text)
    assert threading.active_count() == before


def test_close_while_another_thread_writes() -> None:
    model, errors, began = load(threads=2), list[str](), threading.Event()

    def write() -> None:
        try:
            while True:
                next(model.generate(PROMPT))
                began.set()
        except BitnetError as error:
            errors.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    assert began.wait(60)
    model.close()
    writer.join(60)
    assert not writer.is_alive() and errors == ["this model is closed"]


def test_closed_at_the_moment_a_text_arrives() -> None:
    """After the text has found the model open, before it is in line: no step says later that somebody interrupted it."""
    model = load(threads=2)
    scheduler = model._open().scheduler

    class Line(list[Any]):
        def append(self, job: Any) -> None:
            scheduler.close()
            super().append(job)

    scheduler._jobs = Line()
    with pytest.raises(BitnetError, match=r"^this model is closed$"):
        list(model.generate(PROMPT))


@pytest.mark.skipif(not hasattr(gc, "freeze"), reason="CPython's count of references")
def test_a_model_that_nobody_holds_ends_its_threads() -> None:
    """Also one of which a text is left; without a search for garbage."""

    def workers() -> int:
        deadline = time.monotonic() + 10
        while (count := sum(thread.name.startswith("bitnet-1") for thread in threading.enumerate())) > before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return count

    before = sum(thread.name.startswith("bitnet-1") for thread in threading.enumerate())
    gc.disable()
    try:
        model = load(threads=2)
        expected = model.generate(PROMPT, max_tokens=5, seed=1).text
        model = load(threads=2)
        text = model.generate(PROMPT, max_tokens=5, seed=1)
        del model
        first = next(text)
        assert first + "".join(text) == expected
        left = load(threads=2).generate(PROMPT)
        next(left)
        del text, left
        assert workers() == before
    finally:
        gc.enable()
