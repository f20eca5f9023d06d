"""Messages of a request -> token ids, and what has to be known to read the answer.

The file's own template is given the tools where it knows any; elsewhere the model is told of them in a system message, and calls and
results in the conversation are text, all in the form of calls.HERMES.
A thought that the template itself begins is known from the prompt's end.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bitnet_cli.errors import BitnetError
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.serving.errors import ApiError, of_exception
from bitnet_cli.serving.fields import wrong
from bitnet_cli.serving.forms import Thoughts, Tools
from bitnet_cli.text.chat.arguments import checked_args
from bitnet_cli.text.chat.calls import HERMES, THINK, CallFormat, Reader, call_format, thinks
from bitnet_cli.text.chat.choice import Choice, choose
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Message, checked_messages, encode_chat

REMEMBERED = 1 << 18  # tokens of answers, over all
TAIL = 16  # tokens at the end of a prompt among which `<think>` is looked for
TOLD = """You may call these functions to answer; each is described by a JSON schema:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as JSON between <tool_call> and </tool_call>:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""


class Prompt(NamedTuple):
    """ids: what the answer follows; stops: texts that end it in this format; calls, thoughts: how to read it."""

    ids: list[int]
    stops: tuple[str, ...]
    choice: Choice
    calls: CallFormat | None
    thoughts: Thoughts

    def reader(self) -> Reader:
        """For one answer."""
        return Reader(self.calls, thinking=self.thoughts.begun, may_think=self.thoughts.may)


class Answers:
    """What the model said, token by token, so that the next turn of a chat finds it in the cache as it is. Safe from any thread."""

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[bytes, str], tuple[int, ...]] = OrderedDict()
        self._tokens, self._lock = 0, threading.Lock()

    def remember(self, salt: bytes, text: str, ids: Sequence[int]) -> None:
        """An answer that is whole: `ids` decode to `text`, but for the spaces around it."""
        with self._lock:
            self._tokens += len(ids) - len(self._ids.pop((salt, text), ()))
            self._ids[salt, text] = tuple(ids)
            while self._tokens > REMEMBERED:
                self._tokens -= len(self._ids.popitem(last=False)[1])

    def known(self, salt: bytes, message: Message) -> Message:
        """The message with its ids, where they are known."""
        with self._lock:
            ids = self._ids.get((salt, message.content))
        return message if message.role != "assistant" or message.given or ids is None else replace(message, ids=ids)


def chat_prompt(
    opened: OpenModel, given: Sequence[Mapping[str, Any]], tools: Tools, args: Mapping[str, Any], answers: Answers, salt: bytes
) -> Prompt:
    """The prompt of a chat. It may take a tenth of a second, in a process that renders a template. ApiError 400: what is no chat."""
    try:
        messages = [_plain(message) for message in given]
        called = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        choice, told = _choice(opened, tools, args, called)
        if told:
            messages = _as_text(messages, tools)
        new = [answers.known(salt, message) for message in checked_messages(messages)]
        if new[-1].role == "assistant":
            raise ApiError(400, "the last message is the assistant's: there is nothing to answer", param="messages")
        ids = encode_chat(opened.tokenizer, choice.template, new)
    except BitnetError as error:
        found = of_exception(error, {str(opened.path): "the model"})
        found.param = "messages"
        raise found from None
    may = thinks(choice.template)
    end = opened.tokenizer.decode(ids[-TAIL:], skip_special=False).rstrip() if may else ""
    begun = end.endswith(THINK)
    calls = (HERMES if told else call_format(choice.template)) if tools.wanted else None
    return Prompt(ids, choice.template.stops, choice, calls, Thoughts(begun, may and not begun and not end.endswith("</think>")))


def _choice(opened: OpenModel, tools: Tools, args: Mapping[str, Any], called: bool) -> tuple[Choice, bool]:
    """The format, and whether the model has to be told of tools in words because its own template knows none."""
    if not (tools.wanted or called):
        return choose(opened.chat, None, checked_args(args)), False
    own = opened.chat.tools_template or opened.chat.template or ""
    if "tools" not in own and "tool_calls" not in own:
        return choose(opened.chat, None, checked_args(args)), True
    functions = [{"type": "function", "function": dict(one)} for one in tools.functions] if tools.wanted else None
    return choose(opened.chat, None, checked_args(args, functions), tools=called), False


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know them: no developer, arguments of calls as values."""
    found = {name: value for name, value in message.items() if value is not None}
    if found.get("role") == "developer":
        found["role"] = "system"
    if isinstance(found.get("content"), list):
        found["content"] = "".join(_part(part) for part in found["content"])
    if found.get("role") == "assistant":
        found.setdefault("content", "")  # templates look into it
        if not found.get("tool_calls"):
            found.pop("tool_calls", None)
    calls = found.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise wrong("messages", calls, "tool_calls as a list")
        found["tool_calls"] = [_call(call) for call in calls]
    for name in ("name", "refusal", "audio", "annotations", "function_call"):  # what clients send back of an answer, and no template reads
        if found.get("role") != "tool":
            found.pop(name, None)
    return found


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text") else None
    if not isinstance(text, str):
        raise ApiError(400, "a message has a part that is no text; this model reads nothing else", param="messages")
    return text


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise wrong("messages", call, "tool_calls with a function and its name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise wrong("messages", arguments, "arguments of a call as JSON") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _as_text(messages: Sequence[dict[str, Any]], tools: Tools) -> list[dict[str, Any]]:
    """For a format that knows no tools."""
    result: list[dict[str, Any]] = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [_written(call["function"]) for call in message["tool_calls"]]
            content = "\n".join(filter(None, [message.get("content", ""), *calls]))
            result.append({"role": "assistant", "content": content})
        elif message.get("role") == "tool":
            result.append({"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"})
        else:
            result.append(message)
    if tools.wanted:
        words = TOLD.format(tools="\n".join(json.dumps(dict(one), ensure_ascii=False) for one in tools.functions))
        if result and result[0].get("role") == "system":
            result[0] = {"role": "system", "content": f"{result[0].get('content', '')}\n\n{words}"}
        else:
            result.insert(0, {"role": "system", "content": words})
    return result


def _written(function: Mapping[str, Any]) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f"{HERMES.mark}{HERMES.before}{function['name']}{HERMES.middle}{arguments}{HERMES.after}"


def template_of(opened: OpenModel) -> str:
    """The chat format's name and, of a template in Jinja, its text."""
    template = choose(opened.chat).template
    return template.source if isinstance(template, JinjaTemplate) else template.name
