"""Text from the server: the same as from `bitnet run`, in OpenAI's shapes, whole and as a stream."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from bitnet_cli import load
from bitnet_cli.embedded import EMBEDDED_MODEL

from .serving import Running

GREEDY = {"temperature": 0, "max_tokens": 12}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def alone() -> Any:
    with load(EMBEDDED_MODEL, threads=1) as model:
        yield model


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 7}, {"seed": 7, "top_k": 5, "temperature": 1.5, "repeat_penalty": 1.2}], ids=str
)
def test_the_same_text_as_alone(tiny: Running, alone: Any, options: dict[str, Any]) -> None:
    expected = alone.generate("The old house", max_tokens=20, **options)
    text = "".join(expected)
    whole = tiny.post("/v1/completions", {"prompt": "The old house", "max_tokens": 20, **options})
    assert whole["choices"][0]["text"] == text
    assert whole["choices"][0]["finish_reason"] == expected.timings.finish
    streamed = tiny.events("/v1/completions", {"prompt": "The old house", "max_tokens": 20, **options})
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == text
    assert streamed[-1] == "[DONE]"


def test_the_same_chat_as_alone(tiny: Running, alone: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    text = "".join(alone.chat(messages, max_tokens=20, seed=3))
    assert (
        tiny.post("/v1/chat/completions", {"messages": messages, "max_tokens": 20, "seed": 3})["choices"][0]["message"]["content"] == text
    )


def test_the_shape_of_a_completion(tiny: Running) -> None:
    found = tiny.post("/v1/completions", {"prompt": "A", "model": "anything", **GREEDY})
    assert found["object"] == "text_completion"
    assert found["model"] == "tiny"
    assert found["id"].startswith("cmpl-")
    usage = found["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert found["timings"]["predicted_n"] == 12
    assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == usage["prompt_tokens"]


def test_the_events_of_a_chat(tiny: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **GREEDY, "stream_options": {"include_usage": True}}
    *chunks, usage, done = tiny.events("/v1/chat/completions", body)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["timings"]["predicted_n"] == 12
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 12
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, usage]}) == 1


def test_prompts_and_choices(tiny: Running) -> None:
    found = tiny.post("/v1/completions", {"prompt": ["One", "Two"], "n": 2, "seed": 5, "max_tokens": 8})
    texts = [choice["text"] for choice in found["choices"]]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    for i, prompt in enumerate(["One", "Two"]):
        for j in range(2):
            one = tiny.post("/v1/completions", {"prompt": prompt, "seed": 5 + j, "max_tokens": 8})
            assert one["choices"][0]["text"] == texts[2 * i + j]
    assert texts[0] != texts[1]
    assert found["usage"]["completion_tokens"] == 32
    single = [tiny.post("/v1/completions", {"prompt": p, "max_tokens": 1})["usage"]["prompt_tokens"] for p in ("One", "Two")]
    assert found["usage"]["prompt_tokens"] == sum(single)


def test_token_ids_as_prompts(tiny: Running) -> None:
    ids = tiny.post("/tokenize", {"prompt": "Once upon"})["tokens"]
    text = tiny.post("/v1/completions", {"prompt": "Once upon", **GREEDY})["choices"][0]["text"]
    assert tiny.post("/v1/completions", {"prompt": ids, **GREEDY})["choices"][0]["text"] == text
    assert [one["text"] for one in tiny.post("/v1/completions", {"prompt": [ids, ids], **GREEDY})["choices"]] == [text, text]


def test_logprobs_and_echo(tiny: Running, alone: Any) -> None:
    """Of the prompt and of what follows, against the logits themselves, in float64."""
    found = tiny.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True})
    choice = found["choices"][0]
    ids = tiny.post("/tokenize", {"prompt": "Once upon a time"})["tokens"]
    assert choice["text"].startswith("Once upon a time")
    logprobs = choice["logprobs"]
    assert (
        len(logprobs["tokens"])
        == len(logprobs["token_logprobs"])
        == len(logprobs["top_logprobs"])
        == len(logprobs["text_offset"])
        == len(ids) + 3
    )
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    logits = alone.logits(ids, every=True).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for at, token in enumerate(ids[1:], 1):
        assert logprobs["token_logprobs"][at] == pytest.approx(expected[at - 1, token], abs=1e-4)
        assert max(logprobs["top_logprobs"][at].values()) == pytest.approx(expected[at - 1].max(), abs=1e-4)
    for at, offset in enumerate(logprobs["text_offset"][1:], 1):
        assert choice["text"][offset:].startswith(logprobs["tokens"][at])


def test_a_backslash_is_a_backslash(tiny: Running) -> None:
    """What `-p` of the command line unescapes the server takes as it is."""
    prompt = r"one\ntwo\tthree\\"
    assert tiny.post("/v1/completions", {"prompt": prompt, "max_tokens": 0, "echo": True})["choices"][0]["text"] == prompt


def test_echo_alone_and_without_new_tokens(tiny: Running) -> None:
    found = tiny.post("/v1/completions", {"prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 0})["choices"][0]
    assert found["text"] == "Once"
    assert found["finish_reason"] == "length"
    assert all(len(top) == 1 for top in found["logprobs"]["top_logprobs"][1:])
    streamed = tiny.events("/v1/completions", {"prompt": "Once", **GREEDY, "echo": True})
    whole = tiny.post("/v1/completions", {"prompt": "Once", **GREEDY, "echo": True})["choices"][0]["text"]
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == whole
    assert whole.startswith("Once") and len(whole) > 4


def test_logprobs_of_a_chat(tiny: Running) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **GREEDY, "logprobs": True, "top_logprobs": 3}
    whole = tiny.post("/v1/chat/completions", body)["choices"][0]
    content = whole["logprobs"]["content"]
    assert len(content) == 12
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]  # greedy
        assert bytes(token["bytes"]).decode("utf-8", "replace") in token["token"] or token["token"].startswith("bytes:")
    streamed = [
        token
        for chunk in tiny.events("/v1/chat/completions", body)[:-1]
        for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_stop_strings(tiny: Running) -> None:
    text = tiny.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0})["choices"][0]["text"]
    stop = text[10:14]
    found = tiny.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, "stop": stop})["choices"][0]
    assert found["text"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"
    streamed = tiny.events("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, "stop": ["zzz", stop]})
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == found["text"]


def test_biases(tiny: Running) -> None:
    first = tiny.post("/v1/completions", {"prompt": "Once upon a", "temperature": 0, "max_tokens": 1, "logprobs": 5})["choices"][0]
    ids = tiny.post("/tokenize", {"prompt": first["text"], "add_special_tokens": False})["tokens"]
    other = tiny.post("/v1/completions", {"prompt": "Once upon a", "temperature": 0, "max_tokens": 1, "logit_bias": {str(ids[0]): -100}})
    assert other["choices"][0]["text"] == list(first["logprobs"]["top_logprobs"][0])[1]
    wanted = tiny.post("/tokenize", {"prompt": " zebra", "add_special_tokens": False})["tokens"][0]
    forced = tiny.post("/v1/completions", {"prompt": "Once upon a", "temperature": 0, "max_tokens": 1, "logit_bias": {str(wanted): 100}})
    assert forced["choices"][0]["text"] == tiny.post("/detokenize", {"tokens": [wanted]})["content"]


def test_forms(tiny: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "How old?"}], "response_format": form, "seed": 1}
    found = tiny.post("/v1/chat/completions", body)["choices"][0]
    assert found["finish_reason"] == "stop"
    assert 0 <= json.loads(found["message"]["content"])["age"] <= 99
    whole = tiny.post("/v1/completions", {"prompt": "x", "regex": "(yes|no)!", "seed": 1})["choices"][0]
    assert whole["text"] in ("yes!", "no!") and whole["finish_reason"] == "stop"
    any_object = tiny.post("/v1/completions", {"prompt": "x", "response_format": {"type": "json_object"}, "max_tokens": 400, "seed": 4})[
        "choices"
    ][0]
    if any_object["finish_reason"] == "stop":
        assert isinstance(json.loads(any_object["text"]), dict)


PARAMETERS = {"type": "object", "properties": {"a": DIGIT, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "ping"}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_tools(tiny: Running, choice: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "Add"}],
        "tools": TOOLS,
        "tool_choice": choice,
        "seed": 2,
        "parallel_tool_calls": False,
    }
    found = tiny.post("/v1/chat/completions", body)["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call-")
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "add":
        assert 0 <= arguments["a"] <= 9 and arguments["b"] in (1, 2)
    else:
        assert call["function"]["name"] == "ping" and choice == "required"
    deltas = [chunk["choices"][0]["delta"] for chunk in tiny.events("/v1/chat/completions", body)[:-1]]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert pieces[0]["function"] == {"name": call["function"]["name"], "arguments": ""}
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert len(pieces) > 2
    again = [*body["messages"], found["message"], {"role": "tool", "tool_call_id": call["id"], "content": "3"}]
    assert (
        tiny.post("/v1/chat/completions", {**body, "messages": again, "tool_choice": "none", "max_tokens": 3})["choices"][0][
            "finish_reason"
        ]
        == "length"
    )


@pytest.mark.parametrize(
    "options",
    [{"presence_penalty": 2.0}, {"frequency_penalty": 1.5, "repeat_last_n": 10}, {"repeat_penalty": 1.5}, {"min_p": 0.3, "seed": 2}],
    ids=str,
)
def test_penalties(tiny: Running, alone: Any, options: dict[str, Any]) -> None:
    asked = {"temperature": 0.0 if "seed" not in options else 1.2, "max_tokens": 40} | options
    text = tiny.post("/v1/completions", {"prompt": "And the", **asked})["choices"][0]["text"]
    assert text == "".join(alone.generate("And the", **asked))
    assert text != "".join(alone.generate("And the", temperature=0, max_tokens=40))


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings(tiny: Running, alone: Any, pooling: str) -> None:
    texts = ["The old house", "A ship at sea, and all her men"]
    expected = alone.embed(texts, pooling=pooling)
    found = tiny.post("/v1/embeddings", {"input": texts, "pooling": pooling})
    assert [one["index"] for one in found["data"]] == [0, 1]
    np.testing.assert_allclose([one["embedding"] for one in found["data"]], expected, atol=1e-6)
    written = tiny.post("/v1/embeddings", {"input": texts, "pooling": pooling, "encoding_format": "base64"})["data"]
    np.testing.assert_allclose([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in written], expected, atol=1e-6)
    one = tiny.post("/v1/embeddings", {"input": alone.tokenize(texts[0]), "pooling": pooling})
    np.testing.assert_allclose(one["data"][0]["embedding"], expected[0], atol=1e-6)
    assert one["usage"]["prompt_tokens"] == len(alone.tokenize(texts[0]))
    for wrong in ({}, {"input": []}, {"input": "x", "dimensions": 5}, {"input": "x", "encoding_format": "hex"}, {"input": [[4096]]}):
        tiny.refused("/v1/embeddings", {"pooling": pooling, **wrong})
    assert tiny.refused("/v1/embeddings", {"input": "x"})["param"] == "pooling"
    assert tiny.refused("/v1/embeddings", {"input": "many words " * 2000, "pooling": pooling})["code"] == "context_length_exceeded"


def test_tokens_and_prompts(tiny: Running, alone: Any) -> None:
    text, messages = "The old house", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ids = alone.tokenize(text)
    found = tiny.post("/tokenize", {"prompt": text})
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), alone.context)
    assert tiny.post("/tokenize", {"content": text})["tokens"] == alone.tokenize(text, bos=False)  # llama.cpp's default
    pieces = tiny.post("/tokenize", {"content": text, "with_pieces": True})["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == text
    assert tiny.post("/detokenize", {"tokens": alone.tokenize(text, bos=False)})["content"].strip() == text
    prompt = tiny.post("/apply-template", {"messages": messages})
    assert tiny.post("/tokenize", {"messages": messages})["tokens"] == prompt["tokens"]
    assert "Be brief." in prompt["prompt"] and "Hi" in prompt["prompt"]
    assert tiny.post("/v1/messages/count_tokens", {"messages": messages[1:], "system": "Be brief."})["input_tokens"] == len(
        prompt["tokens"]
    )
    usage = tiny.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})["usage"]
    assert usage["prompt_tokens"] == len(prompt["tokens"])
    info, facts = tiny.get("/tokenizer_info"), tiny.get("/props")
    assert info["eos_token"] == facts["eos_token"] and info["model_max_length"] == facts["n_ctx"] == alone.context
    assert facts["n_vocab"] == alone.tokenizer.vocab_size and facts["total_slots"] == tiny.api.settings.parallel
    for path in ("/tokenize", "/detokenize", "/apply-template"):
        tiny.refused(path, {"tokens": [4096]})
