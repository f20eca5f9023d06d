"""Strings with origins: they are what a str would be, and no character of a message is ever taken for the template's."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_cli.text.chat.origins import FIRST, MESSAGE, TEMPLATE, Safe, Text, as_texts, joined, origins_of, runs, safe, told

# Characters of the template and of messages are different ones here, so that a result shows where each of its characters is from.
OURS, THEIRS = "ab <\n", "xß >\r\t"
texts = st.lists(st.tuples(st.booleans(), st.text(OURS, max_size=4), st.text(THEIRS, max_size=4))).map(
    lambda parts: joined(told(ours) if mine else Text(theirs.replace(" ", "y")) for mine, ours, theirs in parts)
)

OPERATIONS: list[Any] = [
    lambda s, o: s + o,
    lambda s, o: str(o) + s,
    lambda s, o: s * 2,
    lambda s, o: 2 * s,
    lambda s, o: s[1:],
    lambda s, o: s[::-1],
    lambda s, o: s[-3:2],
    lambda s, o: s[0] if s else s,
    lambda s, o: s.strip(),
    lambda s, o: s.strip("ax"),
    lambda s, o: s.lstrip(o),
    lambda s, o: s.rstrip("b<\r"),
    lambda s, o: s.removeprefix(o[:1]),
    lambda s, o: s.removesuffix("b"),
    lambda s, o: s.split(),
    lambda s, o: s.split(None, 1),
    lambda s, o: s.split("a"),
    lambda s, o: s.split("x", 1),
    lambda s, o: s.rsplit(),
    lambda s, o: s.rsplit(None, 1),
    lambda s, o: s.rsplit(maxsplit=2),
    lambda s, o: s.rsplit("<", 1),
    lambda s, o: s.splitlines(),
    lambda s, o: s.splitlines(True),
    lambda s, o: s.partition("x"),
    lambda s, o: s.rpartition("ab"),
    lambda s, o: s.replace("a", o),
    lambda s, o: s.replace("xx", o, 1),
    lambda s, o: s.replace("", o),
    lambda s, o: s.replace(o, "") if o else s,
    lambda s, o: o.join(list(s)),
    lambda s, o: s.join([o, s, o]),
    lambda s, o: s.center(9),
    lambda s, o: s.zfill(7),
    lambda s, o: s.expandtabs(),
    lambda s, o: s.translate({97: "xy"}),
    lambda s, o: "".join(reversed(s)),
    lambda s, o: sorted(s),
]
CASES: list[Any] = [str.upper, str.lower, str.title, str.capitalize, str.swapcase, str.casefold]


def flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@settings(max_examples=300)
@given(first=texts, second=texts, third=texts)
def test_what_is_done_to_a_text(first: Text, second: Text, third: Text) -> None:
    plain = [str.__str__(text) for text in (first, second, third)]
    for number, operation in enumerate(OPERATIONS):
        then = OPERATIONS[(number * 7 + len(first)) % len(OPERATIONS)]
        results, expected = flat(operation(first, second)), flat(operation(plain[0], plain[1]))
        assert [str.__str__(item) for item in results] == expected, number
        again = [flat(then(item, third)) for item in results if isinstance(item, Text)]
        for text in [*results, *(item for items in again for item in items)]:
            for letter, origin in zip(str.__str__(text), origins_of(text), strict=True):
                assert origin == MESSAGE or letter in OURS, number


@given(text=texts)
def test_cases(text: Text) -> None:
    for number, change in enumerate(CASES):
        changed = getattr(text, ("upper", "lower", "title", "capitalize", "swapcase", "casefold")[number])()
        assert str.__str__(changed) == change(str.__str__(text))
        for letter, origin in zip(str.__str__(changed), origins_of(changed), strict=True):
            assert origin == MESSAGE or letter.lower() in OURS


def test_the_templates_stays_the_templates() -> None:
    """Of what the methods know, each character: `T` here, `m` for a message's."""
    text = told("<a>") + Text(" xx ") + told("<b>")
    shown = {
        "+": text,
        "[]": text[2:5],
        "strip": (told(" <a> ") + Text("x  ")).strip(),
        "split": text.split("xx")[1],
        "partition": text.partition("xx")[2],
        "replace": Text("a.b").replace(".", told("<c>")),
        "join": told("<j>").join([Text("x"), "y"]),
        "upper": text.upper(),
        "%": told("<%s>%%") % Text("x"),
    }
    kinds = {name: origins_of(value).translate({0: "m", 1: "T"}) for name, value in shown.items()}
    assert kinds == {
        "+": "TTTmmmmTTT", "[]": "Tmm", "strip": "TTTTm", "split": "mTTT", "partition": "mTTT", "replace": "mTTTm",
        "join": "mTTTm", "upper": "TTTmmmmTTT", "%": "TmTT",
    }  # fmt: skip


def test_what_is_marked_safe() -> None:
    """As MarkupSafe's: text beside it is escaped."""
    from markupsafe import Markup

    text = told("<a>") + safe(Text("<x>")) + "&" + told("'")
    assert text == "<a>" + Markup("<x>") + "&" + "'" == "&lt;a&gt;<x>&amp;&#39;"
    assert type(text) is Safe
    assert origins_of(text).translate({0: "m", 1: "T"}) == "T" * 9 + "mmm" + "mmmmm" + "TTTTT"
    assert type(str(text)) is Text and origins_of(str(text)) == origins_of(text)
    assert isinstance(safe(7), Markup)


def test_strings_that_are_none_of_ours() -> None:
    assert origins_of("abc") == MESSAGE * 3
    assert origins_of(Text("abc", "\1")) == MESSAGE * 3  # a wrong count says nothing
    assert {told("a"): 1}["a"] == 1 and told("a") in {"a": 1} and "a" == told("a") != Text("b")
    for wrong in (lambda: told("a") + None, lambda: told("a") + 1, lambda: told("a") * 1.5):  # type: ignore[operator]
        with pytest.raises(TypeError, match=r"str|sequence"):
            wrong()
    assert origins_of(as_texts({"a": ["b"]})["a"][0]) == MESSAGE


def test_runs() -> None:
    answers = "".join(map(chr, (FIRST, FIRST + 1, FIRST + 2, FIRST, 900, 901)))
    assert runs(TEMPLATE * 3 + MESSAGE + answers + TEMPLATE) == [[3, 1], [1, 0], [3, 2], [1, 2], [2, 900], [1, 1]]
    assert runs("") == []
