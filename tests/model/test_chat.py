"""A conversation computes only what is new, ends answers where it should, and stays whole when stopped or when the context is full."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.chat import Chat, ContextFullError, resumed
from bitnet_cli.model.completion import Written
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.choice import choose
from bitnet_cli.text.chat.templates import PLAIN, BuiltIn, Message, encode_chat

from .chat_models import chat_model, reciting_model
from .held import held

GREEDY = Sampling(temperature=0.0)
POEM = "Roses are red,\nviolets  are blue.\n\nUser: no\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "chat.gguf")


@pytest.fixture
def opened(path: Path) -> Iterator[OpenModel]:
    model = open_model(path, Options(threads=1))
    yield model
    model.scheduler.close()


@pytest.fixture
def chat(opened: OpenModel) -> Chat:
    return Chat(opened.scheduler, opened.tokenizer, choose(opened.chat).template)


@pytest.fixture
def reciting(tmp_path: Path) -> Iterator[Callable[..., Chat]]:
    """reciting(text, template): a chat with a model that says this."""
    models = []

    def make(text: str, template: BuiltIn | None = None, *, context: int = 1024, endless: bool = False) -> Chat:
        model = open_model(reciting_model(tmp_path / f"{len(models)}.gguf", text, context=context, endless=endless), Options(threads=1))
        models.append(model)
        return Chat(model.scheduler, model.tokenizer, template or choose(model.chat).template)

    yield make
    for model in models:
        model.scheduler.close()


def ask(chat: Chat, text: str, limit: int = 12) -> Timings:
    written = Written()
    chat.messages.append(Message("user", text))
    pieces = list(chat.answer(Sampler(GREEDY), limit, written=written))
    assert chat.messages[-1].role == "assistant"
    assert "".join(pieces) == chat.messages[-1].content
    return written.timings


def test_a_turn_computes_only_what_is_new(chat: Chat) -> None:
    chat.system = "Be brief."
    before = 0
    for turn in range(4):
        t = ask(chat, f"question {turn}")
        # Every byte is a token here. The last token of the answer was given out but not fed; then comes what the template adds.
        added = 4 + len(f"\nuser\nquestion {turn}\nassistant\n") + 1  # control tokens; a line end after each of the first three
        new = t.prompt_tokens if turn == 0 else added
        assert (t.new_tokens, t.cached_tokens, t.fed_tokens) == (12, before, new)
        before = t.prompt_tokens + 11
        assert len(held(chat.engine)) == before
    assert chat.tokens() == len(encode_chat(chat.tokenizer, chat.template, chat.messages, ask=False))


def test_answers_are_those_of_one_long_prompt(chat: Chat, opened: OpenModel) -> None:
    """Turn by turn out of the cache, or from nothing: the same tokens."""
    for turn in range(3):
        ask(chat, f"question {turn}")
    whole = list(chat.messages)
    fresh = Chat(opened.scheduler, opened.tokenizer, chat.template, messages=whole[:-1])
    opened.engine.pages.forget()
    list(fresh.answer(Sampler(GREEDY), 12))
    assert fresh.messages == whole


def test_the_model_ends_its_answer(reciting: Callable[..., Chat]) -> None:
    chat = reciting(POEM.replace("\n\nUser: no\n", ""))
    t = ask(chat, "a poem", -1)
    assert chat.messages[-1].content == "Roses are red,\nviolets  are blue."
    assert (chat.finish, t.new_tokens) == ("stop", 5)
    t = ask(chat, "again", -1)
    assert chat.messages[-1].content == "Roses are red,\nviolets  are blue."
    assert t.cached_tokens == 30


def test_a_stop_text_ends_it_in_formats_without_end_token(reciting: Callable[..., Chat]) -> None:
    """The transcript of a base model, which goes on with the user's next words."""
    template = BuiltIn(PLAIN.name, PLAIN.turns, "Assistant:\n", stops=PLAIN.stops)
    chat = reciting(" " + POEM, template)
    ask(chat, "a poem", -1)
    assert chat.messages[-1].content == "Roses are red,\nviolets  are blue."
    assert chat.finish == "stop"
    ids = chat.messages[-1].ids
    assert ids is not None
    assert "User" not in chat.tokenizer.decode(ids)
    t = ask(chat, "again", -1)
    assert t.cached_tokens > 20


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_stopped_answer_stays(chat: Chat, count: int) -> None:
    chat.messages.append(Message("user", "go on"))
    answer = chat.answer(Sampler(GREEDY), 50)
    pieces = [next(answer) for _ in range(count)]
    answer.close()
    assert len(chat.messages) == 1 + (count > 0)
    if count:
        assert chat.finish == "interrupted"
        assert chat.messages[-1].content == "".join(pieces)
        assert len(chat.messages[-1].ids or ()) == count
        computed = len(held(chat.engine))
        t = ask(chat, "and?")
        assert t.cached_tokens == computed


def test_interrupted_while_it_reads(chat: Chat) -> None:
    def stop(done: int, every: int) -> None:
        raise KeyboardInterrupt

    chat.messages.append(Message("user", "x" * 300))
    with pytest.raises(KeyboardInterrupt):
        list(chat.answer(Sampler(GREEDY), 5, progress=stop))
    assert len(chat.messages) == 1
    ids = held(chat.engine)
    assert ids == encode_chat(chat.tokenizer, chat.template, chat.messages)[: len(ids)]


def test_undo_and_clear(chat: Chat) -> None:
    assert chat.undo() is None
    chat.system = "s"
    ask(chat, "one")
    ask(chat, "two")
    assert chat.undo() == Message("user", "two")
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    t = ask(chat, "three")
    assert t.cached_tokens > 20
    chat.clear()
    assert chat.messages == [Message("system", "s")]
    chat.system = None
    assert chat.messages == [] and chat.tokens() == 0


def test_a_full_context_leaves_out_the_oldest_turns(chat: Chat) -> None:
    chat.system = "Be brief."
    left = []
    for turn in range(20):
        t = ask(chat, f"question {turn} " + "x" * 20)
        left.append(chat.first)
        assert t.prompt_tokens + 12 <= 512
        assert chat.seen()[0].role == "system" and chat.seen()[1].role == "user"
    assert len(chat.messages) == 41
    shifts = [turn for turn in range(1, 20) if left[turn] != left[turn - 1]]
    assert shifts and shifts[0] > 4
    assert all(b - a > 2 for a, b in pairwise(shifts))  # half of the context is freed at once


def test_a_full_context_refuses(chat: Chat) -> None:
    chat.shift = False
    with pytest.raises(ContextFullError, match="512") as error:
        for turn in range(20):
            ask(chat, f"question {turn} " + "x" * 20)
    assert isinstance(error.value, UsageError)
    assert chat.messages[-1].role == "user" and chat.first == 0
    chat.undo()
    chat.undo()
    ask(chat, "short", 4)


def test_one_message_that_does_not_fit(chat: Chat) -> None:
    chat.messages.append(Message("user", "x" * 600))
    with pytest.raises(ContextFullError):
        next(chat.answer(Sampler(GREEDY), 5))


def test_the_context_gets_full_in_the_middle_of_an_answer(reciting: Callable[..., Chat]) -> None:
    """With older turns to leave out, the answer goes on; without, it ends."""
    words = " ".join(f"w{i}" for i in range(150))
    chat = reciting(words, context=256)
    ask(chat, "x" * 100, 3)
    t = ask(chat, "y", -1)
    assert chat.messages[-1].content == words
    assert (chat.finish, chat.first) == ("stop", 2)
    assert t.prompt_tokens < 256
    endless = reciting(words, context=256, endless=True)
    ask(endless, "x", -1)
    assert endless.finish == "length"
    assert len(held(endless.engine)) == 256


def test_known_answers_are_resumed(chat: Chat) -> None:
    chat.messages = old = [Message("user", "a"), Message("assistant", "b", (1, 2)), Message("user", "c"), Message("assistant", "d", (3,))]
    chat.first = 2
    new = [Message("user", "a"), Message("assistant", "b"), Message("user", "other"), Message("assistant", "d")]
    assert resumed(chat, new) == ([old[0], old[1], new[2], new[3]], 2)
    assert resumed(chat, [*new[:2], Message("user", "c"), Message("assistant", "d"), Message("user", "e")])[0][:4] == old
    called = Message("assistant", "b", given={"role": "assistant", "content": "b", "tool_calls": [1]})
    assert resumed(chat, [old[0], called, old[2]])[0][1].ids is None  # more than what the model said
    messages, first = resumed(chat, [Message("user", "z"), *new[1:]])
    assert (messages[1].ids, first) == (None, 0)


def test_facts_outlive_the_file(path: Path) -> None:
    model = open_model(path, Options(threads=1))
    with open_gguf(path):
        assert choose(model.chat).template.name == "chatml"
    model.scheduler.close()
