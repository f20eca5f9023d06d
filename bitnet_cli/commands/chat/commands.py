"""The commands of a chat: `/help`, `/save`, ... In: what was typed. Out: whether to go on, or to answer, or to leave."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bitnet_cli.commands.chat import files
from bitnet_cli.errors import UsageError

if TYPE_CHECKING:
    from bitnet_cli.commands.chat.talk import Talk


class Next(enum.Enum):
    """What follows a command."""

    PROMPT = enum.auto()
    ANSWER = enum.auto()
    LEAVE = enum.auto()


KEYS = """\
Enter sends, Alt-Enter begins a new line, and so does Enter after three quotes, up to the next three.
Up and Down walk through the history, Ctrl-R searches it. Ctrl-C stops an answer; Ctrl-D leaves."""
ALIASES = {"/?": "/help", "/exit": "/bye", "/quit": "/bye", "/q": "/bye"}  # as other programs call them
SETTINGS = {"temp": "temperature", "n": "max_tokens"}  # other names of settings


def is_command(line: str) -> bool:
    """Whether it is one, known or not: `/word ...`, on one line. A path or a comment in a program is a message."""
    return re.fullmatch(r"/(\w*|\?)( .*)?", line.rstrip()) is not None


def names() -> dict[str, str]:
    """Command -> what it does, in the order of `/help`."""
    return {name: about for name, (_, about, _) in COMMANDS.items()}


def run(talk: Talk, line: str) -> Next:
    """Do what `line`, a command, says. UsageError, BadFileError: why it cannot be done."""
    name, _, rest = line.strip().partition(" ")
    name = ALIASES.get(name, name)
    matches = [known for known in COMMANDS if known.startswith(name)]
    if name not in COMMANDS and len(matches) != 1:
        raise UsageError(f"no command {name}; /help lists them. A message that begins with a slash needs a space before it")
    return COMMANDS[name if name in COMMANDS else matches[0]][0](talk, rest.strip())


def _help(talk: Talk, _: str) -> Next:
    usage = [f"{name} {values}".rstrip() for name, (_, _, values) in COMMANDS.items()]
    for shown, command in zip(usage, COMMANDS.values(), strict=True):
        talk.say(f"{shown:<{max(map(len, usage))}}  {command[1]}")
    talk.say(KEYS)
    return Next.PROMPT


def _clear(talk: Talk, _: str) -> Next:
    talk.chat.clear()
    talk.note("a new chat; the system message stays" if talk.chat.system else "a new chat")
    return Next.PROMPT


def _system(talk: Talk, text: str) -> Next:
    if text:
        talk.chat.system = None if text == "none" else text
        talk.note("system message removed" if text == "none" else "system message set")
    else:
        talk.say(talk.chat.system or "no system message; /system TEXT sets one, /system none removes it")
    return Next.PROMPT


def _save(talk: Talk, name: str) -> Next:
    if not (name or talk.saved_as):
        raise UsageError("/save needs a name: /save NAME writes NAME.json")
    path = files.chat_path(name) if name else talk.saved_as
    assert path is not None
    chat = talk.chat
    known = {"model": talk.model, "template": chat.template.name, "sampling": talk.sampling, "messages": chat.messages, "first": chat.first}
    files.save(path, chat.tokenizer, **known)  # type: ignore[arg-type]
    talk.saved_as = path
    talk.note(f"{len(chat.messages)} messages saved in {path}")
    return Next.PROMPT


def _load(talk: Talk, name: str) -> Next:
    if not name:
        raise UsageError("/load needs the name of a saved chat")
    path = files.chat_path(name)
    talk.restore(files.load(path, talk.chat.tokenizer), path)
    return Next.PROMPT


def _retry(talk: Talk, _: str) -> Next:
    message = talk.chat.undo()
    if message is None:
        raise UsageError("there is nothing to answer again")
    talk.chat.messages.append(message)
    return Next.ANSWER


def _undo(talk: Talk, _: str) -> Next:
    message = talk.chat.undo()
    if message is None:
        raise UsageError("there is nothing to take back")
    first = message.content.splitlines()[0] if message.content.strip() else ""
    talk.note(f"taken back: {first[:60]}{'...' if len(message.content) > len(first[:60]) else ''}")
    return Next.PROMPT


def _set(talk: Talk, text: str) -> Next:
    values = asdict(talk.sampling) | {"max_tokens": talk.limit, "stats": talk.verbose}
    del values["logit_bias"]  # of the command line
    if not text:
        for key, value in values.items():
            talk.say(f"{key.replace('_', '-'):<18} {_shown(value)}")
        return Next.PROMPT
    name, _, given = text.replace("=", " ", 1).partition(" ")
    key, given = SETTINGS.get(name, name.replace("-", "_")), given.strip()
    if key not in values:
        raise UsageError(f"/set NAME VALUE, with a name of {', '.join(known.replace('_', '-') for known in values)}")
    if not given:
        talk.note(f"{name} is {_shown(values[key])}")
        return Next.PROMPT
    if key == "stats":
        if given not in ("on", "off"):
            raise UsageError("stats is on or off")
        talk.verbose = given == "on"
    elif key == "max_tokens":
        limit = int(_number(given, 0))
        if limit < -1:
            raise UsageError("max-tokens is -1 (until the context is full) or more")
        talk.limit = limit
    else:
        changed: dict[str, Any] = {key: _number(given, values[key])}
        try:
            talk.sampling = replace(talk.sampling, **changed)
        except UsageError as error:
            raise UsageError(str(error).removeprefix("--")) from None
    talk.note(f"{name} is {given}")
    return Next.PROMPT


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _number(text: str, old: object) -> int | float:
    """As the old value is: whole or not."""
    try:
        return int(text) if isinstance(old, int) else float(text)
    except ValueError:
        raise UsageError(f"{text}: expected a number") from None


def _stats(talk: Talk, _: str) -> Next:
    for line in talk.statistics():
        talk.say(line)
    return Next.PROMPT


def _bye(talk: Talk, _: str) -> Next:
    return Next.LEAVE


COMMANDS: dict[str, tuple[Callable[[Talk, str], Next], str, str]] = {
    "/help": (_help, "what can be done", ""),
    "/clear": (_clear, "begin a new chat", ""),
    "/system": (_system, "show or set the system message", "[TEXT]"),
    "/retry": (_retry, "another answer to the last message", ""),
    "/undo": (_undo, "take back the last message and its answer", ""),
    "/save": (_save, "save the chat in a file", "[NAME]"),
    "/load": (_load, "go on with a saved chat", "NAME"),
    "/set": (_set, "show or change settings", "[NAME VALUE]"),
    "/stats": (_stats, "tokens and speed of the last answer", ""),
    "/bye": (_bye, "leave; /exit, /quit, exit and quit do as well", ""),
}
