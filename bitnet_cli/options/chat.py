"""Options of `bitnet run` that concern a chat."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from bitnet_cli.options import completion

_chat = partial(typer.Option, rich_help_panel="Chat")

CHAT_HELP = "Chat: lines of stdin are messages. -p is then the system message, or with -sys the first message."
TEMPLATE_HELP = "Chat format: a built-in one, `model` (the file's own) or a Jinja file."
ARG_HELP = "A variable for the template, as enable_thinking=false: JSON or text. Repeatable; means the file's own template."
SHIFT_HELP = "When the context is full: leave out the oldest turns, or refuse."


@dataclass(frozen=True)
class Conversation:
    conversation: Annotated[bool, _chat("-cnv", "--conversation", "--chat", help=CHAT_HELP)] = False
    system: Annotated[str | None, _chat("-sys", "--system-prompt", help="System message; without a question or -p it means -cnv.")] = None
    single_turn: Annotated[bool, _chat("-st", "--single-turn", help="Answer once, and end.")] = False
    chat_template: Annotated[
        str | None, _chat("--chat-template", metavar="NAME|FILE", help=TEMPLATE_HELP, autocompletion=completion.template)
    ] = None
    template_arg: Annotated[list[str] | None, _chat("--template-arg", metavar="NAME=VALUE", help=ARG_HELP)] = None
    context_shift: Annotated[bool, _chat("--context-shift/--no-context-shift", help=SHIFT_HELP)] = True
