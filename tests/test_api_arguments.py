"""What the Python API is given and cannot take: a UsageError that names the parameter, as it is called in Python."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bitnet_cli import Model, load
from bitnet_cli.errors import UsageError

PROMPT = "And the king said"
USER = [{"role": "user", "content": "Who was it?"}]
WRONG = {  # parameter of generate -> values
    "max_tokens": ("5", -2, 1.5, b"", True),
    "temperature": ("hot", -1, None, float("nan")),
    "top_k": (2.5, -1, "40"),
    "seed": (1.5, "1", -2),
    "stop": (5, [5], b"x", [b"x"], None),
    "logprobs": ("1", -1, 1.5),
    "lookup": ("a", -1, None),
    "logit_bias": ([1], {"a": 1.0}, {1: "a"}, {1: float("nan")}, {1.5: 1.0}, {10**9: 1.0}, {-1: 1.0}),
    "mirostat": (1, "2", None),
    "regex": (5, b"a"),
}
LOADING = {
    "path": (5, b"tiny"),
    "threads": ("2", -1, 1.5),
    "context": (1.5, "100", -1),
    "cache_tokens": ("x", -1),
    "cache type": (5, "f64"),
    "weight_bits": (2, "3"),
    "activations": (5, "a5"),
    "query type": (4, "q8"),
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load(threads=1) as opened:
        yield opened


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


def refused(name: str, call: Callable[[], object]) -> None:
    """One line that begins with the parameter, and has no option of the command line in it."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(name) and "--" not in message and "\n" not in message, message


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_generate_and_chat(model: Model, name: str, value: Any) -> None:
    refused(name, lambda: model.generate(PROMPT, **{name: value}))
    refused(name, lambda: model.chat(USER, **{name: value}))


@pytest.mark.parametrize(("name", "value"), cases(LOADING))
def test_load(name: str, value: Any) -> None:
    refused(name, lambda: load(**{name.replace(" ", "_"): value}))


@pytest.mark.parametrize("prompt", [5, b"bytes", None, [1.5], ["a"], [[1]], {"a": 1}])
def test_prompts(model: Model, prompt: Any) -> None:
    refused("prompt", lambda: model.generate(prompt))
    refused("prompt", lambda: model.logits(prompt))
    refused("text", lambda: model.perplexity(prompt))
    refused("context", lambda: model.score(prompt, ["a"]))
    refused("prompts[1]", lambda: model.generate_many(["a", prompt]))
    refused("continuations[1]", lambda: model.score("a", ["a", prompt]))


def test_other_calls(model: Model) -> None:
    for name, call in (
        ("prompts", lambda: model.generate_many("one text")),  # type: ignore[arg-type]
        ("prompts", lambda: model.generate_many(5)),  # type: ignore[arg-type]
        ("seed", lambda: model.generate_many(["a"], seed="1")),  # type: ignore[arg-type]
        ("continuations", lambda: model.score("a", "b")),  # type: ignore[arg-type]
        ("text", lambda: model.tokenize(b"a")),  # type: ignore[arg-type]
        ("ids", lambda: model.detokenize("a")),  # type: ignore[arg-type]
        ("ids[1]", lambda: model.detokenize([1, 1.5])),  # type: ignore[list-item]
        ("token ids must be", lambda: model.detokenize([10**6])),
        ("token ids must be", lambda: model.detokenize([-1])),
        ("stride", lambda: model.perplexity(PROMPT, stride="a")),  # type: ignore[arg-type]
        ("texts", lambda: model.embed(b"a", pooling="mean")),  # type: ignore[arg-type]
        ("texts[1]", lambda: model.embed(["a", 5], pooling="mean")),  # type: ignore[list-item]
        ("pooling", lambda: model.embed("a", pooling=5)),  # type: ignore[arg-type]
        ("prompt", lambda: model.embed("a", pooling="mean", prompt=5)),  # type: ignore[arg-type]
        ("messages", lambda: model.chat(5)),  # type: ignore[arg-type]
        ("messages[0]", lambda: model.chat("hello")),  # type: ignore[arg-type]
        ("messages[0]", lambda: model.chat(USER[0])),  # type: ignore[arg-type]
        ("messages[0]: content is bytes", lambda: model.chat([{"role": "user", "content": b"a"}])),
        ("messages[0]: content[0]", lambda: model.chat([{"role": "user", "content": [{"type": "image_url"}]}])),
        ("tools", lambda: model.chat(USER, tools=5)),  # type: ignore[arg-type]
        ("template is", lambda: model.chat(USER, template=5)),  # type: ignore[arg-type]
        ("template nonesuch", lambda: model.chat(USER, template="nonesuch")),
        ("template_args", lambda: model.chat(USER, template_args=5)),  # type: ignore[arg-type]
        ("the JSON schema", lambda: model.generate(PROMPT, json_schema=5)),  # type: ignore[arg-type]
    ):
        refused(name, call)
    with pytest.raises(TypeError, match="chat\\(\\) got an unexpected keyword argument 'temprature'"):
        model.chat(USER, temprature=1)


def test_a_context_that_is_too_small(model: Model) -> None:
    """The remedy is a parameter too."""
    with pytest.raises(UsageError, match="use a larger context or less text"):
        str(model.generate([1] * 5000))


def test_numbers_of_numpy(model: Model) -> None:
    expected = model.generate(PROMPT, max_tokens=5, temperature=0).ids
    ids = np.array(model.tokenize(PROMPT))
    options: dict[str, Any] = {"max_tokens": np.int64(5), "temperature": np.float32(0), "top_k": np.uint8(3)}
    assert model.generate(ids, **options).ids == expected
    assert model.detokenize(np.array(expected)) == model.detokenize(expected)


def test_biases(model: Model) -> None:
    """As OpenAI's: added to a logit; infinities forbid and force."""
    plain = model.generate(PROMPT, max_tokens=8, temperature=0)
    without = model.generate(PROMPT, max_tokens=8, temperature=0, logit_bias={plain.ids[0]: -np.inf})
    assert plain.ids[0] not in without.ids
    assert model.generate(PROMPT, max_tokens=3, logit_bias={100: np.inf}).ids == [100] * 3
    assert model.chat(USER, max_tokens=3, logit_bias={100: 1e9}).ids == [100] * 3


def test_parts_of_a_message_are_one_text(model: Model) -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "was it?"}]
    expected = model.chat(USER, max_tokens=8, temperature=0)
    assert model.chat([{"role": "user", "content": parts}], max_tokens=8, temperature=0).text == expected.text
