"""What a request says of the form of an answer -> a grammar (model/constraint.py), thoughts and calls of tools included.

    answer ::= thoughts? ( form | text | text call+ )

A thought ends with `</think>`, and the form begins after it. Where a tool may be called, a call is valid once its mark is written: one of
the names, and arguments that its schema describes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitnet_cli.errors import UsageError
from bitnet_cli.model.constraint import OPTIONS, SPACING, checked, json_grammar
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.text.chat.calls import THINK, THOUGHT, CallFormat


class Thoughts(NamedTuple):
    """begun: the prompt ends inside one; may: an answer may begin with one."""

    begun: bool = False
    may: bool = False


class Tools(NamedTuple):
    """What may be called. choice: `none`, `auto`, `required`, or the name of the only one; parallel: more than one call."""

    functions: Sequence[Mapping[str, Any]] = ()
    choice: str = "none"
    parallel: bool = True

    @property
    def wanted(self) -> bool:
        """Whether the model is told of them and may call any."""
        return bool(self.functions) and self.choice != "none"


def json_form(schema: Mapping[str, Any] | bool, thoughts: Thoughts, param: str) -> str:
    """The answer is JSON of a schema; True: any object. ApiError 400: it is no schema that can be followed."""
    try:
        grammar = json_grammar(schema)
        return grammar if not (thoughts.begun or thoughts.may) else _with_thoughts(grammar, thoughts)
    except UsageError as error:
        raise ApiError(400, str(error), param=param, code="invalid_schema") from None


def tools_form(tools: Tools, format_: CallFormat, thoughts: Thoughts) -> str:
    """The answer may call tools, or must. ApiError 400: parameters of one are no schema that can be followed."""
    functions = [one for one in tools.functions if tools.choice in ("auto", "required", one["name"])]
    lines = [OPTIONS.rstrip(), f"start: {_thoughts_before(thoughts)}body"]
    mark = json.dumps(format_.mark)
    more = format_.between is not None and tools.parallel and tools.choice in ("auto", "required")
    calls = "call" + (f" ({json.dumps(str(format_.between) + format_.mark)} call)*" if more else "")
    if tools.choice == "auto":
        lines += [
            f"body: PLAIN | head {calls}",
            f"head[suffix={mark}]: /(?s:.*)/",
            f"PLAIN: /(?s:.*)/ & ~/(?s:.*{_escaped(format_.mark)}.*)/",
        ]
    else:
        lines.append(f"body: {mark} {calls}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(functions))))
    for i, one in enumerate(functions):
        before, after = json.dumps(format_.before + one["name"] + format_.middle), json.dumps(format_.after)
        lines += [f"call_{i}: {before} arguments_{i} {after}", f"arguments_{i}: %json {_schema(one)}"]
    lines += _thought_rules(thoughts)
    try:
        return checked("\n".join(lines) + "\n", "tools")
    except UsageError as error:
        raise ApiError(400, str(error), param="tools", code="invalid_schema") from None


def _schema(function: Mapping[str, Any]) -> str:
    # Arguments are an object, and only those that are named: clients seldom say so, no function takes others, and small models invent them.
    return json.dumps({"type": "object", "additionalProperties": False, **function.get("parameters", {}), "x-guidance": SPACING})


def _with_thoughts(grammar: str, thoughts: Thoughts) -> str:
    body = grammar.removeprefix(OPTIONS).replace("start:", "body:", 1).rstrip()
    lines = [OPTIONS.rstrip(), f"start: {_thoughts_before(thoughts)}body", body, *_thought_rules(thoughts)]
    return checked("\n".join(lines) + "\n", "the form of the answer")


def _thoughts_before(thoughts: Thoughts) -> str:
    return "thoughts " if thoughts.begun else "(THINK thoughts)? " if thoughts.may else ""


def _thought_rules(thoughts: Thoughts) -> list[str]:
    if not (thoughts.begun or thoughts.may):
        return []
    # Two new lines at most: where white space is free, small models write it without end.
    rules = ["thoughts: thought GAP", f"thought[suffix={json.dumps(THOUGHT)}]: /(?s:.*)/", "GAP: /\\n{0,2}/"]
    return rules if thoughts.begun else [*rules, f"THINK: {json.dumps(THINK)}"]


def _escaped(text: str) -> str:
    """Text in an expression of Rust's `regex`, between slashes."""
    return "".join(c if c.isalnum() or c in '<>_ "' else f"\\x{{{ord(c):x}}}" for c in text)
