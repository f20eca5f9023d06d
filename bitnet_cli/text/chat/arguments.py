"""What the user gives a chat template beside messages: `--template-arg NAME=VALUE`, `template_args=` and `tools=`.

In: words of the command line, or a dictionary. Out: names and JSON's values, for `choose`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitnet_cli.errors import UsageError
from bitnet_cli.text.chat.templates import json_value

_NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
TAKEN = ("messages", "add_generation_prompt")  # what the chat itself says


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """Arguments from `name=value`: JSON (`enable_thinking=false`), or text where it is none (`effort=high`); of two, the last counts.

    UsageError: no name, or one that is taken.
    """
    args = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--template-arg {word!r:.60}: expected NAME=VALUE")
        args[name] = _value(value)
    return checked_args(args)


def _value(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def checked_args(args: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The arguments of a template, copied, `tools` among them if there are some. UsageError: a name that cannot be, a value not JSON."""
    if not isinstance(args or {}, Mapping):
        raise UsageError(f"template_args is {args!r:.60}, expected a dictionary")
    for name in args or {}:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(f"template argument {name!r:.60}: expected a name of letters, digits and _")
        if name in TAKEN:
            raise UsageError(f"template argument {name}: the chat itself says that")
    given = {name: json_value(value, f"template argument {name}") for name, value in (args or {}).items()}
    if tools is not None:
        given["tools"] = json_value(list(tools) if isinstance(tools, Iterable) else tools, "tools")
    wanted = given.get("tools")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(tool, dict) for tool in wanted)):
        raise UsageError("tools: expected a list of dictionaries")
    return given
