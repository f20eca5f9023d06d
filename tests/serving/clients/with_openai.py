"""openai-python against a server: argv has its address. Ends with an AssertionError where something is not as it should be."""

import asyncio
import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel

url = sys.argv[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
HI = [{"role": "user", "content": "Hello there"}]


class Animal(BaseModel):
    kind: Literal["cat", "dog"]
    legs: Literal[2, 4]


def chat() -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8, seed=1)
    assert answer.choices[0].message.content and answer.usage.completion_tokens == 8
    asked = {"model": "tiny", "messages": HI, "max_tokens": 8, "seed": 1, "stream": True}
    with client.chat.completions.create(**asked, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8
    two = client.chat.completions.create(model="tiny", messages=HI, max_tokens=4, n=2, logprobs=True, top_logprobs=2)
    assert len(two.choices) == 2 and len(two.choices[0].logprobs.content) == 4
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


async def at_once() -> None:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as several:
        one = [several.chat.completions.create(model="tiny", messages=HI, max_tokens=8, seed=seed) for seed in range(6)]
        texts = [answer.choices[0].message.content for answer in await asyncio.gather(*one)]
        again = [await several.chat.completions.create(model="tiny", messages=HI, max_tokens=8, seed=seed) for seed in range(6)]
        assert texts == [answer.choices[0].message.content for answer in again]
        stream = await several.chat.completions.create(model="tiny", messages=HI, max_tokens=400, stream=True)
        async for _ in stream:
            break
        await stream.close()  # the client goes


def tools() -> None:
    function = {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    asked = {"model": "tiny", "messages": HI, "tools": [{"type": "function", "function": function}], "parallel_tool_calls": False}
    answer = client.chat.completions.create(**asked, tool_choice="required").choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    with client.chat.completions.stream(**asked, tool_choice="required") as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "weather"
    messages = [*HI, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain"}]
    last = client.chat.completions.create(
        model="tiny", messages=messages, tools=asked["tools"], tool_choice="none", max_tokens=3, temperature=0
    )
    assert last.choices[0].finish_reason == "length"


def structured() -> None:
    found = client.chat.completions.parse(model="tiny", messages=HI, response_format=Animal).choices[0].message.parsed
    assert isinstance(found, Animal)
    found = client.responses.parse(model="tiny", input="An animal", text_format=Animal).output_parsed
    assert isinstance(found, Animal)


def completions() -> None:
    answer = client.completions.create(model="tiny", prompt=["One", "Two"], max_tokens=3, echo=True, logprobs=1, temperature=0)
    assert [choice.text[:3] for choice in answer.choices] == ["One", "Two"]
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in answer.choices[0].logprobs.token_logprobs[1:])
    vectors = client.embeddings.create(model="tiny", input=["a", "b"], extra_body={"pooling": "mean"})
    assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == len(vectors.data[1].embedding) > 10


def responses() -> None:
    answer = client.responses.create(model="tiny", input=HI, instructions="Be brief.", max_output_tokens=6, temperature=0)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text and answer.usage.output_tokens == 6
    with client.responses.stream(model="tiny", input="Hello there", max_output_tokens=6, temperature=0) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete"
    assert "response.output_text.delta" in kinds and "response.output_item.done" in kinds
    tool = {"type": "function", "name": "ping", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    called = client.responses.create(model="tiny", input="Hello", tools=[tool], tool_choice="required", parallel_tool_calls=False)
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert call.name == "ping" and json.loads(call.arguments) == {}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "pong"}
    client.responses.create(model="tiny", input=[*HI, call.model_dump(), result], max_output_tokens=3)


def errors() -> None:
    def code_of(kind: type[openai.APIStatusError], **asked: object) -> str | None:
        try:
            client.chat.completions.create(**{"model": "tiny", "messages": HI, "max_tokens": 1, **asked})
        except kind as error:
            assert error.request_id
            return error.code
        raise AssertionError(f"{asked} was accepted")

    assert code_of(openai.BadRequestError, messages=[{"role": "user", "content": "many words " * 2000}]) == "context_length_exceeded"
    assert code_of(openai.BadRequestError, temperature=-3) == "invalid_value"
    assert code_of(openai.BadRequestError, logit_bias={"99999999": 1}) == "invalid_value"


chat()
asyncio.run(at_once())
tools()
structured()
completions()
responses()
errors()
