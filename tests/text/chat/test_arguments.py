"""Arguments of a template, from the command line and from Python."""

from typing import Any

import pytest

from bitnet_cli.errors import UsageError
from bitnet_cli.text.chat.arguments import checked_args, from_words


def test_words() -> None:
    words = ["enable_thinking=false", "effort=high", "n=3", 'x={"a": [null, "b=c"]}', "e=", "y=NaN", "n=4", "s='a'", 'q="a"', "d={'a': 1}"]
    assert from_words(words) == {
        "enable_thinking": False, "effort": "high", "n": 4, "x": {"a": [None, "b=c"]}, "e": "", "y": "NaN", "s": "'a'", "q": "a",
        "d": "{'a': 1}",
    }  # fmt: skip
    assert from_words(["deep=" + "[" * 100_000])["deep"].startswith("[[")
    assert from_words([]) == {}


@pytest.mark.parametrize(
    "word", ["a", "=1", "a-b=1", "_a=1", "1a=1", "messages=[]", "add_generation_prompt=false", "tools={}", "tools=[1]"]
)
def test_wrong_words(word: str) -> None:
    with pytest.raises(UsageError):
        from_words([word])


def test_from_python() -> None:
    tool = {"type": "function"}
    assert checked_args(None) == {}
    assert checked_args({"a": (1, None)}, [tool]) == {"a": [1, None], "tools": [tool]}
    wrong: list[tuple[Any, Any]] = [({"a": {1, 2}}, None), ({1: 2}, None), ({}, ["x"]), (None, [{"a": b""}]), ({"a": object()}, None)]
    for args, tools in wrong:
        with pytest.raises(UsageError):
            checked_args(args, tools)
