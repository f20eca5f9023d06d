"""Help pages of commands, whole at any width: options in their groups, a name that is long above its text and not cut off."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

WIDEST, NARROWEST = 100, 20  # columns of a page
NAMES = 26  # columns of names at most, a third of a narrow page


def _wrapped(text: str, width: int, indent: int, first: str = "") -> Iterator[str]:
    start = f"{first:<{indent}}" if len(first) < indent - 1 else " " * indent
    if len(first) > width:
        yield from textwrap.wrap(first.strip().replace("|", "| "), width, initial_indent="  ", subsequent_indent="    ")
    elif len(first) >= indent - 1:
        yield first
    lines = textwrap.wrap(text, max(width - indent, 10), break_long_words=False, break_on_hyphens=False) or [""]
    yield (start + lines[0]).rstrip()
    yield from (" " * indent + line for line in lines[1:])


class _Page:
    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """Usage, what the command does, arguments, options by group, commands."""
        width = max(min(shutil.get_terminal_size().columns - 1, WIDEST), NARROWEST)
        usage = " ".join(["Usage:", ctx.command_path, *self.collect_usage_pieces(ctx)])
        lines = textwrap.wrap(usage, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for paragraph in inspect.cleandoc(self.help or "").split("\n\n"):
            lines += ["", *_wrapped(paragraph, width, 2)]
        for title, rows in self._groups(ctx).items():
            indent = min(max(len(name) for name, _ in rows) + 4, NAMES, width // 3)
            lines += ["", f"{title}:"]
            for name, text in rows:
                lines += _wrapped(text, width, indent, f"  {name}")
        if self.epilog:
            lines += ["", *_wrapped(self.epilog, width, 2)]
        formatter.write("\n".join(line.rstrip() for line in lines) + "\n")

    def _groups(self: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                title = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
                groups.setdefault(title, []).append((re.sub(r" <bool>|list\[(\w+)\]", r"\1", record[0]), " ".join(record[1].split())))
        for name, command in getattr(self, "commands", {}).items():
            if not command.hidden:
                groups.setdefault("Commands", []).append((name, inspect.cleandoc(command.help or "").partition("\n\n")[0]))
        return groups


class Command(_Page, TyperCommand):
    """A command."""


class Group(_Page, TyperGroup):
    """A command with subcommands."""
