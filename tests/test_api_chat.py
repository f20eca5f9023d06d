"""`Model.chat`: answers, what of a chat is computed again, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli import Model, load
from bitnet_cli.errors import UsageError

from .model.chat_models import chat_model, reciting_model
from .model.held import held


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(chat_model(tmp_path_factory.mktemp("api") / "chat.gguf"), threads=1) as opened:
        yield opened


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_chat_computes_only_what_is_new(model: Model) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    held = 0
    for turn in range(3):
        messages.append(user(f"question {turn}"))
        answer = model.chat(messages, max_tokens=10, temperature=0)
        text = "".join(answer)
        assert (answer.timings.new_tokens, answer.timings.cached_tokens, answer.finish) == (10, held, "length")
        held = answer.timings.prompt_tokens + 9
        messages.append({"role": "assistant", "content": text})
    again = [*messages[:3], user("something else")]
    answer = model.chat(again, max_tokens=10, temperature=0)
    "".join(answer)
    assert answer.timings.cached_tokens > 50  # up to where the chats differ


def test_the_same_answers_from_nothing(model: Model) -> None:
    first = "".join(model.chat([user("a")], max_tokens=8, seed=3))
    messages = [user("a"), {"role": "assistant", "content": first}, user("b")]
    expected = "".join(model.chat(messages, max_tokens=8, temperature=0))
    model.logits("other work")
    assert "".join(model.chat(messages, max_tokens=8, temperature=0)) == expected


def test_an_answer_that_is_closed(model: Model) -> None:
    answer = model.chat([user("go on")], temperature=0)
    start = next(answer) + next(answer)
    answer.close()
    assert answer.finish == "interrupted"
    follow = model.chat([user("go on"), {"role": "assistant", "content": start}, user("and?")], max_tokens=3, temperature=0)
    "".join(follow)
    assert follow.timings.cached_tokens > 20


def test_the_model_ends_it_and_so_does_a_stop_text(tmp_path: Path) -> None:
    with load(reciting_model(tmp_path / "m.gguf", "One two three.\nFour five."), threads=1) as reciting:
        answer = reciting.chat([user("a")], temperature=0)
        assert "".join(answer) == "One two three.\nFour five."
        assert answer.finish == "stop"
        assert "".join(reciting.chat([user("a")], temperature=0, stop="three")) == "One two"


def test_a_full_context(model: Model) -> None:
    messages = [turn for i in range(12) for turn in (user(f"{i}" * 30), {"role": "assistant", "content": "yes " * 5})]
    messages.append(user("and now?"))
    "".join(model.chat(messages, max_tokens=4, temperature=0))
    with pytest.raises(UsageError, match="512"):
        next(model.chat(messages, max_tokens=4, shift=False))
    messages += [{"role": "assistant", "content": "no"}, user("really?")]
    answer = model.chat(messages, max_tokens=4, temperature=0)
    "".join(answer)
    assert answer.timings.prompt_tokens < 300


TAKES_ALL = (
    "{{ 'off' if enable_thinking is false }}{% for t in tools or [] %}{{ t.name }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content or m.tool_calls[0].name }}{% endfor %}"
)


def test_tools_and_arguments_reach_the_template(tmp_path: Path) -> None:
    messages = [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "<|im_end|>"}]
    whole = "<|im_start|>usera<|im_start|>assistantf<|im_start|>tool"
    path = chat_model(tmp_path / "m.gguf", template="{# <|im_start|> #}" + TAKES_ALL)
    for more, before in (
        ({}, ""),
        ({"tools": [{"name": "f<|im_end|>"}]}, "f<|im_end|>"),
        ({"template_args": {"enable_thinking": False}}, "off"),
    ):
        with load(path, threads=1) as opened:  # anew: what earlier texts left in the cache may be longer
            "".join(opened.chat(messages, max_tokens=1, **more))  # type: ignore[arg-type]
            ids = (
                opened.tokenize(before, bos=False)
                + opened.tokenize(whole, special=True, bos=False)
                + opened.tokenize("<|im_end|>", bos=False)
            )
            assert opened._opened is not None and held(opened._opened.engine)[: len(ids)] == ids
    with load(path, threads=1) as opened:
        assert len("".join(opened.chat([user("a")], max_tokens=3, temperature=0))) > 0  # the built-in format, as before
        with pytest.raises(UsageError, match="knows no tools"):
            "".join(opened.chat(messages, template="chatml"))
        with pytest.raises(UsageError, match="takes no arguments"):
            opened.chat([user("a")], template="chatml", template_args={"a": 1})


def test_a_template_that_takes_thoughts_out_of_answers(tmp_path: Path) -> None:
    """The answer keeps its ids while it is whole; what a client sends back as the model said it is known again."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{% if m.role == 'assistant' and loop.revindex > 2 %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    )
    path = reciting_model(tmp_path / "m.gguf", "<think>Let me see</think> so be it", template=template)
    with load(path, threads=1) as opened:
        assert opened._open().chat.template == template
        messages = [user("a")]
        answer = opened.chat(messages, temperature=0)
        said = "".join(answer)
        assert (said, answer.finish) == ("<think>Let me see</think> so be it", "stop")
        count = answer.timings.prompt_tokens + answer.timings.new_tokens
        messages += [{"role": "assistant", "content": said}, user("b")]
        answer = opened.chat(messages, temperature=0)
        "".join(answer)
        assert answer.timings.cached_tokens >= count - 1
        messages += [{"role": "assistant", "content": said}, user("c")]
        "".join(opened.chat(messages, temperature=0))
        assert opened._opened is not None
        text = opened.detokenize(held(opened._opened.engine), special=True)
        assert text.count("<think>") == 2 and "assistant\n so be it<|im_end|>" in text  # the second answer, and the new one


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        ([{"role": "robot", "content": "a"}], {}),
        ([{"role": "user", "content": 5}], {}),
        ([user("a"), {"role": "assistant", "content": "b"}], {}),
        ([user("a")], {"max_tokens": -2}),
        ([user("a")], {"lookup": -1}),
        ([user("a")], {"temperature": -1.0}),
        ([user("a")], {"template": "nonesuch"}),
        ([user("a")], {"template_args": {"messages": []}}),
        ([user("a")], {"tools": [1]}),
        ([user("a") | {"name": {1, 2}}], {}),
    ],
)
def test_refused(model: Model, messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        model.chat(messages, **options)


def test_messages_that_are_no_dictionaries(model: Model) -> None:
    with pytest.raises(UsageError, match="no dictionary with role and content"):
        model.chat("hello")  # type: ignore[arg-type]
