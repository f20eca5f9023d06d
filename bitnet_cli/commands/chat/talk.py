"""`bitnet run -cnv`: a conversation. Answers go to stdout as they come; what the program says goes to stderr.

On a terminal with an editor and Markdown; lines in and answers out where stdin or stdout is a pipe; one JSON object an answer with --json.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bitnet_cli.commands.chat import commands
from bitnet_cli.commands.chat.files import Saved
from bitnet_cli.commands.chat.reader import HINT, PROMPT, PipeReader, Reader, TerminalReader
from bitnet_cli.commands.chat.terminal import Plain, Shown, Silent, moves, stoppable, styled, wrapped
from bitnet_cli.commands.printing import CUT_OFF
from bitnet_cli.commands.reporting import Bar, Reporter, print_json, say
from bitnet_cli.errors import BitnetError, UsageError, printable
from bitnet_cli.model.chat import BASE_LIMIT, Chat, ContextFullError
from bitnet_cli.model.completion import Written
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.choice import Choice
from bitnet_cli.text.chat.templates import PLAIN, Message
from bitnet_cli.text.reasoning import AnswerText, begun_in
from bitnet_cli.text.stream import terminal_safe

WAYS_OUT = ("exit", "quit")  # said as a message of its own


class Wishes(NamedTuple):
    """What of the command line concerns a chat. limit: None where -n is not given. once: one answer, then leave."""

    system: str | None = None
    limit: int | None = None
    shift: bool = True
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    draft: int = 0
    stops: Sequence[str] = ()
    grammar: str | None = None
    once: bool = False
    reasoning: bool = False


class Talk:
    """One run of the command.

    model     name for messages and saved chats
    saved_as  file of the last /save or /load
    """

    def __init__(self, opened: OpenModel, choice: Choice, sampling: Sampling, wishes: Wishes):
        wanted = {"shift": wishes.shift, "draft": wishes.draft, "stops": wishes.stops, "grammar": wishes.grammar}
        self.chat = Chat(opened.scheduler, opened.tokenizer, choice.template, **wanted)  # type: ignore[arg-type]
        self.chat.system = wishes.system
        self.model = opened.path.stem
        self.sampling = replace(sampling, seed=Sampler(sampling).seed)
        self.limit = wishes.limit if wishes.limit is not None else -1 if choice.trained or wishes.grammar else BASE_LIMIT
        self.verbose, self.quiet, self.as_json = wishes.verbose, wishes.quiet, wishes.as_json
        self.once, self.reasoning = wishes.once, wishes.reasoning
        self.saved_as: Path | None = None
        self.on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not wishes.as_json
        self._answers = 0
        self._timings: Timings | None = None
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")

    def say(self, text: str) -> None:
        """What the user asked for: on stderr, so that a pipe gets answers only."""
        say("\n".join(wrapped(printable(line)) for line in text.split("\n")))

    def note(self, text: str) -> None:
        """One line beside the chat."""
        if not self.quiet:
            say(wrapped(f"({printable(text)})"), dim=styled(sys.stderr.isatty()))

    def meter(self) -> str:
        """How full the context is."""
        context = self.chat.engine.context
        return f"{min(self.chat.tokens(), context)} of {context} tokens"

    def reader(self, encoding: str | None = None) -> Reader:
        """Where messages come from. encoding: of a pipe, as text/files.py."""
        return TerminalReader(self.meter, commands.names()) if self.on_terminal else PipeReader(encoding)

    def turn(self, line: str) -> bool:
        """Do what was typed. False: leave. Errors end a scripted chat and are told in an interactive one."""
        before = list(self.chat.messages)
        if line.strip().lower() in WAYS_OUT:
            return False
        try:
            if commands.is_command(line):
                following = commands.run(self, line)
                if following is commands.Next.ANSWER:
                    self.answer(before)
                return following is not commands.Next.LEAVE
            self.chat.messages.append(Message("user", line))
            self.answer(before)
            return not self.once
        except ContextFullError as error:
            if not self.on_terminal:
                raise UsageError(f"{error}; use a larger -c, or --context-shift") from None
            alone = self.chat.shift or not any(message.role == "user" for message in self.chat.messages)
            self.note(f"{error}; {'start with a larger -c' if alone else '/clear begins anew, /undo takes back a turn'}")
        except BitnetError as error:
            if not self.on_terminal:
                raise
            self.note(str(error))
        return True

    def answer(self, before: list[Message]) -> None:
        """Let the model answer the last message, and show it as it comes. before: the chat again, where not one word comes."""
        chat, first = self.chat, self.chat.first
        written = Written()
        self._timings = timings = written.timings
        sampler = Sampler(replace(self.sampling, seed=(self.sampling.seed + self._answers) % 2**63))
        self._answers += 1
        shown, count = self._shown(), len(chat.messages)
        reading = Bar("reading", "tokens")
        progress = reading.update if Reporter(self.quiet).on_terminal else None
        pieces = chat.answer(sampler, self.limit, written=written, progress=progress)
        seen, thinking = self._answer_text(), Bar("thinking", "tokens") if progress is not None else None
        with stoppable() as stop, contextlib.closing(pieces):
            try:
                for piece in pieces:
                    reading.end()
                    stop.softly = True
                    if text := seen.push(piece):
                        shown.push(text)
                    if thinking is not None:
                        thinking.update(timings.new_tokens, None) if seen.thinking else thinking.end()
                    if stop.wanted:
                        break
            except KeyboardInterrupt:
                stop.wanted = True
            finally:
                stop.softly = True
                reading.end()
                if thinking is not None:
                    thinking.end()
                pieces.close()
                if len(chat.messages) == count:
                    chat.messages, chat.first = before, first
                else:
                    shown.finish()
                    if self.on_terminal:
                        print(flush=True)  # noqa: T201
        if stop.wanted and not sys.stdin.isatty():  # nobody is there to go on
            raise KeyboardInterrupt
        if chat.messages is before:
            self.note("stopped before the answer began; the chat is as it was before")
            return
        self._after(chat.first - first)

    def _answer_text(self) -> AnswerText:
        """What is shown of the answer that comes."""
        pieces = self.chat.template.pieces(self.chat.seen()) if not self.reasoning and self.chat.grammar is None else []
        prompt = "".join(piece[0] for piece in pieces[-3:] if isinstance(piece, tuple))
        return AnswerText(begun=begun_in(prompt), keep=self.reasoning)

    def _shown(self) -> Shown:
        if self.as_json:
            return Silent()
        if not self.on_terminal or not moves() or self.chat.grammar is not None:  # JSON is no Markdown
            return Plain()
        from bitnet_cli.commands.chat.markdown import MarkdownStream

        return MarkdownStream()

    def _after(self, left_out: int) -> None:
        """What is said after an answer."""
        chat, t = self.chat, self._timings
        assert t is not None
        if self.as_json:
            counts = {"prompt_tokens": t.prompt_tokens, "cached_tokens": t.cached_tokens, "new_tokens": t.new_tokens}
            print_json(chat.messages[-1].as_dict() | {"finish": chat.finish} | counts)
        if left_out:
            self.note(f"the context is full: the {left_out} oldest messages are left out from here on")
        if chat.grammar is not None and chat.finish == "length" and not self.on_terminal:
            raise BitnetError(CUT_OFF)
        if chat.finish == "interrupted":
            self.note("stopped")
        elif chat.finish == "length":
            full = t.prompt_tokens + t.new_tokens >= chat.engine.context
            self.note("the context is full" if full else f"cut off after {t.new_tokens} tokens; /set max-tokens changes that")
        if self.verbose:
            for line in self.statistics():
                self.say(line)

    def statistics(self) -> list[str]:
        """What `/stats` shows."""
        t, lines = self._timings, []
        if t is not None:
            lines.append(f"prompt   {t.prompt_tokens} tokens, {t.cached_tokens} of them cached, {t.prefill_rate:.1f} tokens/s")
            lines.append(f"answer   {t.new_tokens} tokens, {t.decode_rate:.1f} tokens/s, {self.chat.finish}")
        lines.append(f"context  {self.meter()}, template {self.chat.template.name}")
        lines.append(f"model    {self.model}, seed {self.sampling.seed}")
        return lines

    def restore(self, saved: Saved, path: Path) -> None:
        """Go on with a saved chat."""
        self.chat.messages, self.chat.first, self.sampling, self.saved_as = saved.messages, saved.first, saved.sampling, path
        self.note(f"{len(saved.messages)} messages from {path}")
        if saved.model != self.model:
            self.note(f"it was a chat with {saved.model}; this is {self.model}")
        if saved.template != self.chat.template.name:
            self.note(f"its format was {saved.template}; here it is {self.chat.template.name}")
        if saved.messages and self.on_terminal:
            for message in saved.messages[-2:]:
                start = PROMPT if message.role == "user" else ""
                print(terminal_safe(start + message.content))  # noqa: T201


def converse(
    opened: OpenModel, choice: Choice, sampling: Sampling, wishes: Wishes, first: str = "", encoding: str | None = None, hint: str = ""
) -> int:
    """The whole conversation, until /bye, Ctrl-D or the end of stdin; closes the scheduler. Returns how many lines were answered or done.

    first: the first message, where there is one; hint: said before its answer. encoding: of stdin.
    """
    talk, count = Talk(opened, choice, sampling, wishes), 0
    if not choice.trained:
        talk.note(f"{choice.reason}. Answers continue a transcript" if choice.template is PLAIN else choice.reason)
    elif talk.verbose:
        talk.note(f"chat format {choice.template.name}: {choice.reason}")
    if talk.on_terminal:
        talk.note(hint or f"a chat with {talk.model}; {HINT}")
    try:
        if first:
            if talk.on_terminal:
                print(terminal_safe(f"{PROMPT}{first}"))  # noqa: T201
            if not talk.turn(first):
                return 1
        reader = talk.reader(encoding)
        while (line := reader.read()) is not None:
            count += 1
            if not talk.turn(line):
                break
        return count + bool(first)
    finally:
        opened.scheduler.close()
