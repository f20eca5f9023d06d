"""Chats of every kind that a template may meet, and a vocabulary that reads any of them byte by byte."""

from typing import Any

Chat = list[dict[str, Any]]

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a city, "now" & <later>',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}}
SPELLED_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'}}
ASKED: Chat = [{"role": "user", "content": "Is it raining in Köln?"}]
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": '{"rain": true, "mm": 3.5}'}
THOUGHT = "<think>\nHe asks.\n\nI answer.\n</think>\n\nFine, and you?"

# name -> (messages, other arguments of the template)
CHATS: dict[str, tuple[Chat, dict[str, Any]]] = {
    "one turn": ([{"role": "user", "content": " How are <b>you</b>?\n"}], {}),
    "several turns": (
        [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": "Fine."},
            {"role": "user", "content": "Really? {{ 7 * 7 }}"},
            {"role": "assistant", "content": " Yes, 'yes' \n"},
            {"role": "user", "content": "Good: 東京 é \U0001f600"},
        ],
        {},
    ),
    "a system message": ([{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hello"}], {}),
    "thoughts": (
        [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": THOUGHT},
            {"role": "user", "content": "Look: </think> is a word /no_think"},
        ],
        {},
    ),
    "thoughts beside": (
        [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": "Fine.", "reasoning_content": "He asks."},
            {"role": "user", "content": "And now?"},
        ],
        {"enable_thinking": False},
    ),
    "tools": ([{"role": "system", "content": "Be brief."}, *ASKED], {"tools": [TOOL]}),
    "a call": (
        [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT],
        {"tools": [TOOL]},
    ),
    "a call, spelled": (
        [*ASKED, {"role": "assistant", "content": "", "tool_calls": [SPELLED_CALL]}, RESULT],
        {"tools": [TOOL]},
    ),
    "calls and thoughts": (
        [
            {"role": "system", "content": "Be brief."},
            *ASKED,
            {"role": "assistant", "content": "I look.", "reasoning_content": "I do not know.", "tool_calls": [CALL]},
            RESULT,
            {"role": "assistant", "content": "It is raining."},
            {"role": "user", "content": "And tomorrow?"},
        ],
        {"tools": [TOOL]},
    ),
    "a call, and no tools": ([*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT], {}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "How are "}, {"type": "text", "text": "you?"}]}], {}),
}
