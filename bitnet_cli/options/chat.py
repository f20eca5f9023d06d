"""Options of `bitnet run` that concern a chat."""

from typing import Annotated

import typer

CHAT_HELP = "Chat. -p is then the system message, or with -sys the first message."
TEMPLATE_HELP = "Chat format: a built-in one, `model` (the file's own) or a Jinja file."
SHIFT_HELP = "When the context is full: leave out the oldest turns, or refuse."

ConversationOption = Annotated[bool, typer.Option("-cnv", "--conversation", "--chat", help=CHAT_HELP)]
SystemOption = Annotated[str | None, typer.Option("-sys", "--system-prompt", help="System message of the chat; means -cnv.")]
TemplateOption = Annotated[str | None, typer.Option("--chat-template", metavar="NAME|FILE", help=TEMPLATE_HELP)]
ShiftOption = Annotated[bool, typer.Option("--context-shift/--no-context-shift", help=SHIFT_HELP)]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="In a chat: format, tokens and speed on stderr.")]
