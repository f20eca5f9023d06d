"""Anthropic's /v1/messages and /v1/messages/count_tokens in their own shape: named events, tool_use blocks, thinking blocks, their errors.

A request becomes one of /v1/chat/completions (`as_chat`); the answer is a row of blocks. Keys come as `x-api-key` (guard.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bitnet_cli.serving import fields
from bitnet_cli.serving.answers import new_id
from bitnet_cli.serving.blocks import Block, Blocks, Named
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.guard import shaped
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.text.tokenizer import Tokenizer

PASSED_ON = ("temperature", "top_p", "top_k", "stream")
STOPS = {"length": "max_tokens", "tool_calls": "tool_use"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(body: dict[str, Any], *, count: bool = False) -> dict[str, Any]:
    """The same as a request for a chat; count: only its tokens are wanted. ApiError 400: what is wrong, or cannot be had."""
    chat: dict[str, Any] = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    if not count:
        if body.get("max_tokens") is None:
            raise fields.wrong("max_tokens", None, "a whole number")
        chat["max_tokens"] = body["max_tokens"]
    system = _text(body.get("system", ""), "system")
    chat["messages"] = [{"role": "system", "content": system}] if system else []
    for message in fields.objects(body, "messages"):
        chat["messages"] += _messages(message)
    chat["stop"] = fields.texts(body, "stop_sequences", 4) or None
    tools = fields.objects(body, "tools")
    if tools:
        chat["tools"] = [_tool(one) for one in tools]
    choice = fields.object_of(body, "tool_choice")
    if choice:
        kind = choice.get("type")
        if kind != "tool" and kind not in CHOICES:
            raise fields.wrong("tool_choice", kind, "type auto, any, tool or none")
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}} if kind == "tool" else CHOICES[kind]
        chat["parallel_tool_calls"] = not fields.flag(choice, "disable_parallel_tool_use")
    return chat


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type", "custom") != "custom":
        raise fields.wrong("tools", given.get("type"), "tools that the client runs, with a name and an input_schema")
    function = {"name": given.get("name"), "description": given.get("description"), "parameters": given.get("input_schema")}
    return {"type": "function", "function": function}


def _text(content: Any, field: str) -> str:
    """A text, or the text of blocks that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.wrong(field, content, "a text or a list of blocks")
    for block in content:
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise fields.wrong(field, block, "blocks of type text; this model reads nothing else")
    return "".join(block["text"] for block in content)


def _messages(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message may hold results of tools, which are messages of their own for templates, and calls of them."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise fields.wrong("messages", role, "the role user or assistant")
    if not isinstance(content, list):
        return [{"role": role, "content": _text(content, "messages")}]
    results, calls, words = [], [], []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result" and role == "user":
            results.append(
                {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _text(block.get("content", ""), "messages")}
            )
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input", {}))}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            words.append(block)
    text = _text(words, "messages")
    if calls:
        return [{"role": "assistant", "content": text, "tool_calls": calls}]
    return [*results, {"role": role, "content": text}] if text or not results else results


class Messages(Blocks):
    """The answer, in the shape of a message."""

    def __init__(self, model: str, wanted: Wanted, tokenizer: Tokenizer):
        super().__init__(model, wanted, tokenizer)
        self._id = new_id("msg")

    def begun(self) -> Iterator[Named]:
        """As in Blocks. What comes from the cache is not known yet; message_delta says it."""
        usage = {
            "input_tokens": self.wanted.prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        yield "message_start", {"message": self._message([], None, None, usage)}

    def opened(self, block: Block) -> Iterator[Named]:
        """As in Blocks."""
        yield "content_block_start", {"index": block.index, "content_block": self._block(block, empty=True)}

    def grown(self, block: Block, text: str) -> Iterator[Named]:
        """As in Blocks."""
        kind, name = {"content": ("text_delta", "text"), "call": ("input_json_delta", "partial_json")}.get(
            block.kind, ("thinking_delta", "thinking")
        )
        yield "content_block_delta", {"index": block.index, "delta": {"type": kind, name: text}}

    def closed(self, block: Block) -> Iterator[Named]:
        """As in Blocks."""
        yield "content_block_stop", {"index": block.index}

    def ended(self) -> Iterator[Named]:
        """As in Blocks."""
        delta = {"stop_reason": self._reason, "stop_sequence": self._stopped_by}
        yield "message_delta", {"delta": delta, "usage": self._usage()}
        yield "message_stop", {}

    def failed(self, error: ApiError) -> Named:
        """As in Blocks."""
        found = shaped("/v1/messages", error, self._id)
        return "error", {"error": found["error"]}

    def body(self) -> dict[str, Any]:
        """As in Blocks."""
        blocks = [self._block(block) for block in self.blocks]
        return self._message(blocks, self._reason, self._stopped_by, self._usage())

    @property
    def _stopped_by(self) -> str | None:
        """The stop sequence that ended it, if one of the request's did, and not one of the chat format's."""
        own = self.wanted.chat.stops if self.wanted.chat else ()
        return self.answer.stopped_by if self.answer.stopped_by not in own else None

    @property
    def _reason(self) -> str:
        return "stop_sequence" if self._stopped_by else STOPS.get(self.answer.finish, "end_turn")

    def _usage(self) -> dict[str, int]:
        cached = self.answer.timings.cached_tokens
        return {
            "input_tokens": self.wanted.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": len(self.answer.ids),
        }

    def _message(self, content: list[Any], reason: str | None, stopped_by: str | None, usage: dict[str, int]) -> dict[str, Any]:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self.model, "content": content}
        return head | {"stop_reason": reason, "stop_sequence": stopped_by, "usage": usage}

    @staticmethod
    def _block(block: Block, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else block.text
        if block.kind == "call":
            try:
                given = json.loads(text or "{}")
            except ValueError:  # cut off
                given = {}
            return {"type": "tool_use", "id": block.call, "name": block.name, "input": given}
        return {"type": "text", "text": text} if block.kind == "content" else {"type": "thinking", "thinking": text, "signature": ""}
