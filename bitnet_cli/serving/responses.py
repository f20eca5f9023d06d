"""OpenAI's /v1/responses: text, tools, forms, thoughts; whole and as a stream. Nothing is stored, so there is no previous response.

A request becomes one of /v1/chat/completions (`as_chat`); the answer is a row of items, one a block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bitnet_cli.serving import fields
from bitnet_cli.serving.answers import new_id, timings_of, usage_of
from bitnet_cli.serving.blocks import Block, Blocks, Named
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.text.tokenizer import Tokenizer

PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "seed", "stream", "parallel_tool_calls", "chat_template_kwargs", "repeat_penalty")


def as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """The same as a request for a chat. ApiError 400: what cannot be had."""
    for field in ("previous_response_id", "conversation", "background", "prompt"):
        if body.get(field):
            raise ApiError(400, f"{field} is not supported: this server stores nothing", param=field, code="unsupported_parameter")
    chat = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    instructions = fields.text(body, "instructions", "")
    chat["messages"] = ([{"role": "system", "content": instructions}] if instructions else []) + _messages(body.get("input"))
    chat["max_tokens"] = body.get("max_output_tokens")
    tools = fields.objects(body, "tools")
    if tools:
        names = ("name", "description", "parameters")
        chat["tools"] = [{"type": one.get("type"), "function": {name: one.get(name) for name in names}} for one in tools]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = body["tool_choice"]
    form = fields.object_of(fields.object_of(body, "text"), "format")
    if form:
        chat["response_format"] = form
    return chat


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise fields.wrong("input", given, "a text or a list of items")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)  # calls of one answer
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":  # thoughts of earlier answers are not shown to a model again
            raise fields.wrong(f"input[{number}].type", kind, "message, function_call, function_call_output or reasoning")
    return messages


class Responses(Blocks):
    """The answer, in the shape of a response."""

    def __init__(self, model: str, wanted: Wanted, tokenizer: Tokenizer):
        super().__init__(model, wanted, tokenizer)
        self._id, self._created, self._number = new_id("resp"), int(time.time()), 0

    def encode(self, name: str, value: dict[str, Any]) -> bytes:
        """As in Blocks; every event has a number."""
        self._number += 1
        return super().encode(name, {"sequence_number": self._number - 1, **value})

    def begun(self) -> Iterator[Named]:
        """As in Blocks."""
        for name in ("created", "in_progress"):
            yield f"response.{name}", {"response": self._response("in_progress", None)}

    def opened(self, block: Block) -> Iterator[Named]:
        """As in Blocks."""
        yield "response.output_item.added", {"output_index": block.index, "item": self._item(block, "in_progress", empty=True)}
        if block.kind == "content":
            yield "response.content_part.added", {**self._place(block), "part": _part("")}

    def grown(self, block: Block, text: str) -> Iterator[Named]:
        """As in Blocks."""
        if block.kind == "call":
            yield "response.function_call_arguments.delta", {"item_id": block.id, "output_index": block.index, "delta": text}
        elif block.kind == "content":
            yield "response.output_text.delta", {**self._place(block), "delta": text, "logprobs": []}
        else:
            yield "response.reasoning_text.delta", {**self._place(block), "delta": text}

    def closed(self, block: Block) -> Iterator[Named]:
        """As in Blocks."""
        if block.kind == "call":
            done = {"item_id": block.id, "output_index": block.index, "name": block.name, "arguments": block.text}
            yield "response.function_call_arguments.done", done
        elif block.kind == "content":
            yield "response.output_text.done", {**self._place(block), "text": block.text, "logprobs": []}
            yield "response.content_part.done", {**self._place(block), "part": _part(block.text)}
        else:
            yield "response.reasoning_text.done", {**self._place(block), "text": block.text}
        yield "response.output_item.done", {"output_index": block.index, "item": self._item(block, "completed")}

    def ended(self) -> Iterator[Named]:
        """As in Blocks."""
        body = self.body()
        yield f"response.{body['status']}", {"response": body}

    def failed(self, error: ApiError) -> Named:
        """As in Blocks."""
        return "error", {"code": error.code or error.type, "message": error.message, "param": error.param}

    def body(self) -> dict[str, Any]:
        """As in Blocks."""
        cut = self.answer.finish == "length"
        found = self._response("incomplete" if cut else "completed", "max_output_tokens" if cut else None)
        usage = usage_of([self.answer], self.wanted)
        found["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }
        return found | {"timings": timings_of(self.answer.timings)}

    @staticmethod
    def _place(block: Block) -> dict[str, Any]:
        return {"item_id": block.id, "output_index": block.index, "content_index": 0}

    @staticmethod
    def _item(block: Block, status: str, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else block.text
        if block.kind == "call":
            call = {"call_id": block.call, "name": block.name, "arguments": text}
            return {"id": block.id, "type": "function_call", "status": status, **call}
        if block.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": text}] if text else []
            return {"id": block.id, "type": "reasoning", "summary": [], "content": content, "status": status}
        content = [] if empty else [_part(text)]
        return {"id": block.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, reason: str | None) -> dict[str, Any]:
        job, done = self.wanted.jobs[0], status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": None,
            "max_output_tokens": None if job.limit < 0 else job.limit,
            "model": self.model,
            "output": [self._item(block, "completed") for block in self.blocks] if done else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": job.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": job.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
