"""`bitnet run`: a question -> an answer in the model's chat format, a chat, or a text -> its continuation.

The text goes to stdout as it comes, notes and timings to stderr.
"""

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitnet_cli.commands.chat import talk as chatting
from bitnet_cli.commands.loading import OpenModel, Options, open_model
from bitnet_cli.commands.printing import Asked, Show, print_completion
from bitnet_cli.commands.prompts import biases, document, is_there, read_grammar, read_prompt, unescaped
from bitnet_cli.commands.reporting import Reporter, put
from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED
from bitnet_cli.errors import UsageError
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.completion import Request, check_biases, complete
from bitnet_cli.model.opening import prompt_ids
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.arguments import from_words
from bitnet_cli.text.chat.choice import Choice, choose
from bitnet_cli.text.chat.templates import Message, control_tokens_in, encode_chat, end_ids
from bitnet_cli.text.files import require_encoding
from bitnet_cli.text.reasoning import AnswerText, begun_in
from bitnet_cli.text.tokenizer import Tokenizer

__all__ = ["Options", "Prompt", "Request", "Sampling", "Show", "biases", "read_grammar", "run", "unescaped"]

LEAVING = "Ctrl-D or /bye leaves; with -st the model answers once, and the command ends"
NOTHING_SAID = (
    "-cnv -p TEXT makes TEXT the system message, and stdin had no line to answer; "
    "`bitnet run MODEL TEXT` asks TEXT, -p TEXT without -cnv does as well"
)
NOTHING_ASKED = "nothing was asked: give a question after the model, by -p, by -f or through a pipe"
INTRODUCTION = """\
bitnet runs 1-bit language models on this computer's CPU. A small one is inside,
{name}: {about}.
It has learned to continue texts, not to answer questions. Three things to try:

  bitnet run {given}-p "And the king said" --temp 0.6
  bitnet run {given}-p "And there were" --regex " [1-9][0-9] (sons|days)"
  bitnet bench {name} -p 128 -n 64 -r 3

A model that answers questions: bitnet run microsoft/bitnet-b1.58-2B-4T
(it asks before it downloads anything). All commands: bitnet -h"""


@dataclass(frozen=True)
class Prompt:
    """What is asked, and how.

    question       words after the model: answered once
    text, file     -p and -f
    chat           -cnv: lines of stdin are messages; -p is the system message, or with -sys the first message
    once, raw      answer once; continue the text
    special        names of control tokens in the prompt are those tokens
    stdin          whether a document there belongs to the question; None: as prompts.document finds it
    template       of the chat, None: the model's; template_args: variables of it, NAME=VALUE
    encoding       of text from files and pipes, None: as text/files.py finds it
    """

    question: str | None = None
    text: str | None = None
    file: Path | None = None
    chat: bool = False
    once: bool = False
    raw: bool = False
    special: bool = False
    stdin: bool | None = None
    template: str | None = None
    template_args: Sequence[str] | None = None
    wishes: chatting.Wishes = chatting.Wishes()  # noqa: RUF009
    encoding: str | None = None

    @property
    def given(self) -> bool:
        return self.question is not None or self.text is not None or self.file is not None


def run(model: str | None, prompt: Prompt, request: Request, sampling: Sampling, options: Options, show: Show) -> None:
    """Answer a question, chat, or continue a text (see options/run.py for the options).

    Raises BitnetError for what the user must know.
    """
    _check(prompt, request, show)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    alone = on_terminal and not prompt.given
    args = from_words(prompt.template_args or ())
    if alone and not (prompt.chat or prompt.raw) and (model is None or model in EMBEDDED):
        name = model or DEFAULT_MODEL
        about = re.split(r", for | \(", EMBEDDED[name].description)[0]
        put(INTRODUCTION.format(name=name, about=about, given=f"{model} " if model else ""))
        return
    silent = alone or (prompt.chat and not prompt.given)
    text = prompt.question if prompt.question is not None else "" if silent else read_prompt(prompt.text, prompt.file, prompt.encoding)
    start = time.perf_counter()
    opened = open_model(model, options, show.quiet)
    try:
        check_biases(sampling, opened.tokenizer)
        choice = None if prompt.raw else choose(opened.chat, prompt.template, args)
        if choice is not None and (prompt.chat or choice.trained or prompt.template is not None):
            if prompt.chat or (on_terminal and _suits_a_chat(prompt, request, show)):
                _converse(opened, choice, text, prompt, request, sampling, show)
                return
            ids, asked = _question(opened.tokenizer, choice, text, prompt, show)
            request = replace(request, stop=[*choice.template.stops, *request.stop], ends=end_ids(opened.tokenizer))
        elif args:
            raise UsageError("--template-arg is for a chat; add -cnv")
        else:
            ids, asked = prompt_ids(opened.tokenizer, text, special=prompt.special), Asked(text)
            if prompt.given and prompt.stdin is None and prompt.text != "-" and is_there():
                Reporter(show.quiet).note("stdin is not read: a text is continued, and no question asked that a document could be about")
        if show.prompt_cache is not None and show.prompt_cache.exists():
            prompt_cache.load(opened, show.prompt_cache)
        with Reporter(show.quiet).counting("reading the prompt", "tokens") as progress:
            completion = complete(opened, ids, sampling, request, progress)
            print_completion(opened, completion, asked, _keeper(opened, ids, show), time.perf_counter() - start, show)
    finally:
        opened.scheduler.close()


def _check(prompt: Prompt, request: Request, show: Show) -> None:
    """UsageError: what cannot be asked of any model."""
    require_encoding(prompt.encoding)
    if request.limit < -1:
        raise UsageError("-n must be -1 or more")
    if request.logprobs is not None and not show.as_json:
        raise UsageError("--logprobs are printed as JSON; add --json")
    if prompt.question is not None and (prompt.text is not None or prompt.file is not None or prompt.chat):
        raise UsageError("a question after the model is all that is asked; leave out -p, -f and -cnv, or the question")
    if prompt.raw and (prompt.chat or prompt.wishes.system is not None or prompt.template is not None):
        raise UsageError("--raw continues a text in no chat format; leave it out, or -cnv, -sys and --chat-template")


def _suits_a_chat(prompt: Prompt, request: Request, show: Show) -> bool:
    """Whether what is asked on a terminal may open a chat: not where one answer was asked for, or what only one answer can have."""
    one = (prompt.once and prompt.given) or prompt.question is not None or show.as_json or not show.stream
    return not (one or request.ignore_eos or request.grammar is not None or show.prompt_cache is not None or prompt.special)


def _converse(opened: OpenModel, choice: Choice, text: str, prompt: Prompt, request: Request, sampling: Sampling, show: Show) -> None:
    given = {
        "--ignore-eos": request.ignore_eos,
        "--logprobs": request.logprobs is not None,
        "--prompt-cache": show.prompt_cache is not None,
        "--special": prompt.special,
    }
    for name, there in given.items():
        if there:
            raise UsageError(f"{name} is not for a chat")
    wishes, first = prompt.wishes, text
    if prompt.chat and wishes.system is None:
        wishes, first = wishes._replace(system=text or None), ""
    hint = LEAVING if text and not prompt.chat else ""
    turns = chatting.converse(opened, choice, sampling, wishes, first, prompt.encoding, hint)
    if not turns and prompt.chat and text and not sys.stdin.isatty():
        raise UsageError(NOTHING_SAID)


def _question(tokenizer: Tokenizer, choice: Choice, text: str, prompt: Prompt, show: Show) -> tuple[list[int], Asked]:
    """Ids of a question in the chat format, with the document on stdin that it is about. A prompt that has the format stays as it is."""
    template, report = choice.template, Reporter(show.quiet)
    beside = document(prompt.stdin, prompt.encoding, show.quiet) if prompt.given and prompt.text != "-" else ""
    if not (text or beside):
        raise UsageError(NOTHING_ASKED)
    controls = [] if beside or prompt.question is not None else control_tokens_in(tokenizer, template, text)
    if controls:
        # Whoever types control tokens means them; a file or a pipe may be somebody else's text.
        special = prompt.special or prompt.text not in (None, "-")
        as_what = "they are read as such" if special else "they are read as letters; --special reads them as such"
        report.note(f"the prompt has control tokens ({controls[0]}), and is not put into the chat format; {as_what}")
        return prompt_ids(tokenizer, text, special=special), Asked(text, answer=AnswerText(keep=True))
    if show.verbose:
        report.note(f"chat format {template.name}: {choice.reason}")
    message = f"{text}\n\n{beside}" if text and beside else text or beside
    system = [Message("system", prompt.wishes.system)] if prompt.wishes.system else []
    ids = encode_chat(tokenizer, template, [*system, Message("user", message)])
    begun = begun_in(tokenizer.decode(ids[-8:], skip_special=False))
    return ids, Asked(format=template.name, answer=AnswerText(begun=begun, keep=show.reasoning))


def _keeper(opened: OpenModel, ids: list[int], show: Show) -> Callable[[], None]:
    """A function to call when the prompt is computed: it saves the KV cache, once, if there is more to save than the file holds."""
    path, shared = show.prompt_cache, opened.engine.pages.find(ids).tokens
    done = path is None or (shared == len(ids) and path.exists())

    def keep() -> None:
        nonlocal done
        if not done and path is not None:
            done = True
            prompt_cache.save(opened, ids, path)

    return keep
