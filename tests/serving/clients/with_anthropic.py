"""anthropic's client against a server: argv has its address."""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
HI = [{"role": "user", "content": "Hello there"}]
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOL = {"name": "weather", "input_schema": SCHEMA}
ANY = {"type": "any", "disable_parallel_tool_use": True}

answer = client.messages.create(model="tiny", max_tokens=6, system="Be brief.", messages=HI)
assert answer.stop_reason == "max_tokens" and answer.content[0].text and answer.usage.output_tokens == 6
with client.messages.stream(model="tiny", max_tokens=6, messages=HI) as stream:
    text = "".join(stream.text_stream)
    assert stream.get_final_message().content[0].text == text
call = client.messages.create(model="tiny", max_tokens=300, messages=HI, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})
assert call.stop_reason == "tool_use"
(use,) = [block for block in call.content if block.type == "tool_use"]
assert use.input["city"] in ("Oslo", "Rome")
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Rain"}]}
after = [*HI, {"role": "assistant", "content": call.content}, result]
client.messages.create(model="tiny", max_tokens=3, messages=after, tools=[TOOL], tool_choice={"type": "none"})
with client.messages.stream(model="tiny", max_tokens=300, messages=HI, tools=[TOOL], tool_choice=ANY) as stream:
    for _ in stream:
        pass
    assert stream.get_final_message().content[0].input["city"] in ("Oslo", "Rome")
first = client.messages.create(model="tiny", max_tokens=20, messages=HI, stop_sequences=["e"], extra_body={"temperature": 0})
assert first.stop_reason == "stop_sequence" and first.stop_sequence == "e"
assert client.messages.count_tokens(model="tiny", messages=HI).input_tokens > 3
try:
    client.messages.create(model="tiny", max_tokens=6, messages=[{"role": "wizard", "content": "x"}])
    raise AssertionError("a wizard was accepted")
except anthropic.BadRequestError as error:
    assert error.body["error"]["type"] == "invalid_request_error"
