"""Thoughts and calls of tools, by a model that wants to write what a script says: no small model does that by itself."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .scripted import scripted
from .serving import Running, running

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Weather?"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
# What templates of thinking models with tools have in common.
TEMPLATE = """{%- if tools %}Tools: {{ tools | tojson }}\n<tool_call>{% endif -%}
{%- for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}</s>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% if open %}<think>\n{% elif open is defined %}<think>\n\n</think>\n\n{% endif %}{% endif %}"""
TWO_CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Os\\"lo}", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)
SCRIPT = [""]


@pytest.fixture(scope="module")
def thinker() -> Iterator[Running]:
    with running(loader=scripted(lambda: SCRIPT[0], TEMPLATE)) as found:
        yield found


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with running(loader=scripted(lambda: SCRIPT[0], None)) as found:
        yield found


def joined(events: list[Any]) -> dict[str, Any]:
    """Deltas of a stream, put together as a client does it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for event in events[:-1]:
        delta = event["choices"][0]["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message


def ask(server: Running, script: str, **fields: Any) -> dict[str, Any]:
    """The choice, after a look at whether the stream says the same."""
    SCRIPT[0] = script
    body = {"messages": ASK, "temperature": 0, "max_tokens": 300, **fields}
    choice: dict[str, Any] = server.post(CHAT, body)["choices"][0]
    streamed, message = joined(server.events(CHAT, body)), choice["message"]
    assert streamed["content"] == (message["content"] or "")
    assert streamed["reasoning_content"] == message.get("reasoning_content", "")
    whole = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in streamed["tool_calls"]] == whole
    return choice


def test_thoughts_are_apart(thinker: Running) -> None:
    choice = ask(thinker, "<think>\nHm, <b>.\n</think>\n\nIt rains. ")
    assert choice["message"]["reasoning_content"] == "Hm, <b>."
    assert choice["message"]["content"] == "It rains."
    assert choice["finish_reason"] == "stop"
    assert ask(thinker, "No thought.")["message"]["content"] == "No thought."
    assert ask(thinker, "<thi")["message"]["content"] == "<thi"
    begun = ask(thinker, "Hm.\n</think>\n\nYes.", chat_template_kwargs={"open": True})
    assert (begun["message"]["reasoning_content"], begun["message"]["content"]) == ("Hm.", "Yes.")
    closed = ask(thinker, "Yes.", chat_template_kwargs={"open": False})
    assert (closed["message"].get("reasoning_content"), closed["message"]["content"]) == (None, "Yes.")
    cut = ask(thinker, "Hm and hm and hm", chat_template_kwargs={"open": True}, max_tokens=3)
    assert cut["finish_reason"] == "length" and cut["message"]["content"] == ""


@pytest.mark.parametrize("kwargs", [{}, {"open": True}, {"open": False}], ids=str)
def test_a_form_begins_after_thoughts(thinker: Running, kwargs: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    thought = {"{}": "<think>Some {thoughts}</think>\n\n", "{'open': True}": "Some {thoughts}</think>\n\n"}.get(str(kwargs), "")
    choice = ask(thinker, thought + 'Here: {"city": "Rome"}', response_format=form, chat_template_kwargs=kwargs, max_tokens=60)
    if choice["finish_reason"] == "stop":
        assert "city" in json.loads(choice["message"]["content"])
    else:  # the model wanted `Here: `, which is no JSON, and was held to a text that goes on
        assert choice["message"]["content"].startswith("{")
    exact = ask(thinker, thought + '{"city": "Rome"}', response_format=form, chat_template_kwargs=kwargs)
    assert exact["message"].get("reasoning_content", "") == ("Some {thoughts}" if thought else "")
    assert json.loads(exact["message"]["content"]) == {"city": "Rome"}


@pytest.mark.parametrize("server", ["thinker", "plain"])
def test_calls(server: str, request: pytest.FixtureRequest) -> None:
    found: Running = request.getfixturevalue(server)
    choice = ask(found, TWO_CALLS, tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    names = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in choice["message"]["tool_calls"]]
    assert names == [("weather", {"city": 'Os"lo}', "days": 2}), ("now", {})]
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    none = ask(found, "No tool, but a < sign.", tools=TOOLS)
    assert none["message"]["content"] == "No tool, but a < sign." and none["finish_reason"] == "stop"
    off = ask(found, TWO_CALLS, tools=TOOLS, tool_choice="none")
    assert "<tool_call>" in off["message"]["content"] and "tool_calls" not in off["message"]
    unwilling = "I will not." if server == "plain" else "<think>I will not.</think>\n\nNo."
    must = ask(found, unwilling, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}})
    assert [call["function"] for call in must["message"]["tool_calls"]] == [{"name": "now", "arguments": "{}"}]
    one = ask(found, TWO_CALLS, tools=TOOLS, parallel_tool_calls=False)
    assert len(one["message"]["tool_calls"]) == 1


def test_a_call_is_valid_whatever_the_model_wants(plain: Running) -> None:
    wrong = '<tool_call>\n{"name": "weather", "arguments": {"town": 5, "days": "x"}}\n</tool_call>'
    choice = ask(plain, wrong, tools=TOOLS, max_tokens=1500)
    if choice["finish_reason"] == "tool_calls":
        (call,) = choice["message"]["tool_calls"]
        assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert '"town"' not in choice["message"]["tool_calls"][0]["function"]["arguments"]


def test_the_model_is_told(plain: Running, thinker: Running) -> None:
    """By its own template where that knows tools, else in words; results of calls are in the conversation."""
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "Snow"},
    ]
    body = {"messages": messages, "tools": TOOLS}
    text = thinker.post("/apply-template", body)["prompt"]
    assert "Tools: [{" in text and '<tool_call>{"city": "Oslo"}</tool_call>' in text and "<tool>Snow" in text
    text = plain.post("/apply-template", body)["prompt"]
    assert '"name": "weather"' in text and '{"name": "weather", "arguments": {"city": "Oslo"}}' in text and "Snow" in text


def test_items_of_a_response(thinker: Running) -> None:
    SCRIPT[0] = "<think>Hm.</think>\n\n" + TWO_CALLS
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
    body = {"input": "Weather?", "tools": flat, "temperature": 0}
    found = thinker.post("/v1/responses", body)
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert found["output"][2]["name"] == "weather" and json.loads(found["output"][3]["arguments"]) == {}
    events = thinker.events("/v1/responses", body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = [event for event in events if event["type"].startswith("response.output_item")]
    assert [event["output_index"] for event in items] == [0, 0, 1, 1, 2, 2, 3, 3]
    arguments = "".join(event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta")
    assert arguments == "".join(item["arguments"] for item in found["output"][2:])
    last = events[-1]["response"]
    assert [item["type"] for item in last["output"]] == [item["type"] for item in found["output"]] and last["status"] == "completed"


def test_blocks_of_a_message(thinker: Running) -> None:
    SCRIPT[0] = "<think>Hm.</think>\n\n" + TWO_CALLS
    tools = [{"name": tool["function"]["name"], "input_schema": tool["function"].get("parameters", {"type": "object"})} for tool in TOOLS]  # type: ignore[attr-defined, index]
    body = {"messages": ASK, "tools": tools, "temperature": 0, "max_tokens": 300}
    found = thinker.post("/v1/messages", body)
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert found["content"][2]["input"] == {"city": 'Os"lo}', "days": 2} and found["stop_reason"] == "tool_use"
    events = thinker.events("/v1/messages", body)
    assert [event["type"] for event in events][:1] == ["message_start"] and events[-1]["type"] == "message_stop"
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    partial = [
        event["delta"]["partial_json"]
        for event in events
        if event.get("delta", {}).get("type") == "input_json_delta" and event["index"] == 2
    ]
    assert json.loads("".join(partial)) == found["content"][2]["input"]
    status, _, data = thinker.ask("POST", "/v1/messages", {"messages": ASK})
    assert status == 400 and json.loads(data)["type"] == "error" and "max_tokens" in json.loads(data)["error"]["message"]
    assert thinker.ask("POST", "/v1/messages", {**body, "tools": [{"type": "bash_20250124", "name": "bash"}]})[0] == 400
