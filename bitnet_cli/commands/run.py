"""`bitnet run`: prompt -> text. The text goes to stdout as it comes, notes and timings to stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_kernels import isa

from bitnet_cli.commands.chat import talk as chatting
from bitnet_cli.commands.opening import OpenModel, Options, open_model
from bitnet_cli.commands.reporting import Reporter, byte_size, print_json, say
from bitnet_cli.errors import BadFileError, BitnetError, UsageError, printable
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.completion import Completion, Request
from bitnet_cli.model.constraint import grammar_of
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.logprobs import TokenLogprob
from bitnet_cli.model.opening import prompt_ids
from bitnet_cli.model.sampler import Sampling
from bitnet_cli.text.chat.arguments import from_words
from bitnet_cli.text.chat.choice import choose
from bitnet_cli.text.files import decode_text, require_encoding
from bitnet_cli.text.stream import terminal_safe
from bitnet_cli.text.tokenizer import Tokenizer

__all__ = ["Options", "Prompt", "Request", "Sampling", "Show", "read_grammar", "read_prompt", "run", "unescaped"]

MAX_PROMPT_BYTES = 64 << 20
CUT_OFF = "the text was cut off before it had the form that was asked for; a larger -n or -c gives it more room"
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


@dataclass(frozen=True)
class Prompt:
    """-p and -f, and what of the command line concerns a chat.

    template: of the chat, None: the model's; encoding: of text from files and pipes, None: as text/files.py finds it.
    """

    text: str | None = None
    file: Path | None = None
    chat: bool = False
    template: str | None = None
    wishes: chatting.Wishes = chatting.Wishes()  # noqa: RUF009
    encoding: str | None = None
    template_args: Sequence[str] | None = None  # of the template, NAME=VALUE


@dataclass(frozen=True)
class Show:
    """What is printed, and where the prompt's KV cache is kept."""

    as_json: bool = False
    stream: bool = True
    verbose: bool = False
    quiet: bool = False
    prompt_cache: Path | None = None


def read_prompt(prompt: str | None, file: Path | None, encoding: str | None = None) -> str:
    """The prompt's text from -p, -f or a pipe; empty where there is none of them. encoding: of a file or pipe, as decode_text."""
    require_encoding(encoding)
    if prompt is not None and file is not None:
        raise UsageError("give the prompt by -p or by -f, not both")
    if file is not None:
        data = _read(file)
    elif prompt == "-" or (prompt is None and sys.stdin is not None and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    else:
        return prompt or ""
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt is larger than {MAX_PROMPT_BYTES >> 20} MiB")
    # One line end at the end is the file's or the shell's, not the prompt's: `echo text | bitnet run` should continue the text.
    return decode_text(data, "stdin" if file is None else str(file), encoding=encoding).removesuffix("\n")


def _read(file: Path) -> bytes:
    """At most MAX_PROMPT_BYTES and one: the file may be a device without an end."""
    try:
        with file.open("rb") as source:
            return source.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def read_grammar(schema: str | None, regex: str | None, *, stdin_is_free: bool) -> str | None:
    """The form of the text that --json-schema (a schema, a file with one, `-` for stdin, `json`) or --regex asks for.

    stdin_is_free: nothing else is read from it. UsageError: see grammar_of; or the file cannot be read.
    """
    if schema is None:
        return grammar_of(None, regex)
    if schema == "json":
        return grammar_of(True, regex)
    if schema.lstrip().startswith("{"):
        return grammar_of(schema, regex)
    if schema == "-" and not stdin_is_free:
        raise UsageError("--json-schema - reads the schema from stdin; give a prompt by -p or -f, and no -cnv")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1) if schema == "-" else _read(Path(schema))
    try:
        text = decode_text(data, schema, "JSON schema", "utf-8", hint=False)  # RFC 8259, section 8.1
    except BadFileError as error:
        raise UsageError(str(error)) from None
    return grammar_of(text, regex)


def unescaped(text: str) -> str:
    """`text` with \\n, \\t, \\r and \\\\ replaced by what they stand for: a shell makes it hard to type a new line."""
    out, at = "", 0
    while at < len(text):
        two = text[at : at + 2]
        out += ESCAPES.get(two, text[at])
        at += 2 if two in ESCAPES else 1
    return out


class Output:
    """stdout for model text: control characters are dropped on a terminal, what the encoding lacks is replaced."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._wrote, self._before = False, ""
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        """Show model text at once."""
        text, self._before = self._before + text, ""
        if text:
            self._wrote = True
            sys.stdout.write(terminal_safe(text) if self._terminal else text)
            sys.stdout.flush()

    def cut_off(self) -> None:
        """End the line of a text that stays unfinished; a refusal before any text leaves stdout empty."""
        if self._wrote:
            self.write("\n")

    def echo(self, prompt: str) -> None:
        """Show the prompt before its continuation, on a terminal only: a pipe gets the model's text and nothing else.

        Both at once: a progress bar between them would take the prompt's last line away with it.
        """
        if self._terminal:
            self._before = prompt


def run(model: str | None, prompt: Prompt, request: Request, sampling: Sampling, options: Options, show: Show) -> None:
    """Generate text, or chat: where `prompt` says so, or where there is no prompt and a chat model on a terminal.

    Raises BitnetError for what the user must know; see options/run.py for the options.
    """
    if request.limit < -1:
        raise UsageError("-n must be -1 or more")
    if request.logprobs is not None and not show.as_json:
        raise UsageError("--logprobs are printed as JSON; add --json")
    nothing = prompt.text is None and prompt.file is None
    alone = nothing and sys.stdin.isatty() and sys.stdout.isatty()
    require_encoding(prompt.encoding)
    args = from_words(prompt.template_args or ())
    if args and not (prompt.chat or alone):
        raise UsageError("--template-arg is for a chat; add -cnv")
    text = "" if alone or (nothing and prompt.chat) else read_prompt(prompt.text, prompt.file, prompt.encoding)
    start = time.perf_counter()
    opened = open_model(model, options, show.quiet)
    try:
        choice = choose(opened.chat, prompt.template, args) if prompt.chat or alone else None
        if choice is not None and (prompt.chat or choice.trained):
            _refuse_in_chat(request, show)
            chatting.converse(opened, choice, sampling, prompt.wishes, text, prompt.encoding)
            return
        ids = prompt_ids(opened.tokenizer, text)
        if show.prompt_cache is not None and show.prompt_cache.exists():
            prompt_cache.load(opened, show.prompt_cache)
        with Reporter(show.quiet).counting("reading the prompt", "tokens") as progress:
            completion = Completion(opened, ids, sampling, request, progress)
            _print(opened, text, completion, _keeper(opened, ids, show), time.perf_counter() - start, show)
    finally:
        opened.scheduler.close()


def _refuse_in_chat(request: Request, show: Show) -> None:
    given = {
        "--ignore-eos": request.ignore_eos,
        "--logprobs": request.logprobs is not None,
        "--prompt-cache": show.prompt_cache is not None,
    }
    for name, there in given.items():
        if there:
            raise UsageError(f"{name} is not for a chat")


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


def _print(opened: OpenModel, text: str, completion: Completion, keep: Callable[[], None], load_seconds: float, show: Show) -> None:
    """The text as it comes, or all of it in the end, or as JSON; then the timings."""
    output, pieces, finish = Output(), [], ""
    whole = show.as_json or not show.stream
    if not show.as_json:
        output.echo(text)
    try:
        for piece in completion:
            pieces.append(piece)
            if not whole:
                output.write(piece)
            keep()
        keep()
    except KeyboardInterrupt:
        finish = "interrupted"
        raise
    except BitnetError:
        output.cut_off()
        raise
    else:
        finish = completion.timings.finish
    finally:
        if finish:
            with contextlib.suppress(BrokenPipeError) if finish == "interrupted" else contextlib.nullcontext():
                _finish(opened, completion, "".join(pieces), finish, output, load_seconds, show)


def _finish(opened: OpenModel, completion: Completion, text: str, finish: str, output: Output, load_seconds: float, show: Show) -> None:
    """What comes after the last piece of text."""
    if show.as_json:
        print_json(_as_json(opened, completion, text, finish, load_seconds))
    elif not show.stream:
        output.write(text + "\n")
    elif finish == "interrupted":
        output.cut_off()
    else:
        output.write("\n")
    if not show.quiet:
        if completion.request.grammar is not None and finish != "stop":
            Reporter(show.quiet).note(CUT_OFF)
        _report(opened, completion, finish, load_seconds, show.verbose)


def _as_json(opened: OpenModel, completion: Completion, text: str, finish: str, load_seconds: float) -> dict[str, Any]:
    """Names as in the answers of llama-server's /completion, where it has them."""
    stopped_by, r = completion.stopped_by, completion.request
    stop_type = "interrupted" if finish == "interrupted" else "word" if stopped_by else "eos" if finish == "stop" else "limit"
    logprobs = [_logprob(opened.tokenizer, one) for one in completion.logprobs] if r.logprobs is not None else None
    return {
        "model": str(opened.path),
        "text": text,
        "ids": completion.ids,
        "stop_type": stop_type,
        "stopping_word": stopped_by or "",
        "seed": completion.seed,
        "logprobs": logprobs,
        "timings": timings_json(completion.timings, load_seconds),
    }


def timings_json(t: Timings, load_seconds: float) -> dict[str, float]:
    """Timings by the names of llama-server: tokens, milliseconds, tokens/s. predicted: without the first token, as its rate is."""
    decoded = max(t.new_tokens - 1, 0)
    numbers = {
        "load_ms": 1e3 * load_seconds,
        "cache_n": t.cached_tokens,
        "prompt_n": t.fed_tokens,
        "prompt_ms": 1e3 * t.prefill_seconds,
        "prompt_per_token_ms": 1e3 * t.prefill_seconds / max(t.fed_tokens, 1),
        "prompt_per_second": t.prefill_rate,
        "predicted_n": t.new_tokens,
        "predicted_ms": 1e3 * t.decode_seconds,
        "predicted_per_token_ms": 1e3 * t.decode_seconds / max(decoded, 1),
        "predicted_per_second": t.decode_rate,
        "draft_n": t.drafted_tokens,
        "draft_n_accepted": t.accepted_tokens,
    }
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in numbers.items()}


def _logprob(tokenizer: Tokenizer, one: TokenLogprob) -> dict[str, Any]:
    def named(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
        return {"id": token, "token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob}

    return named(one.id, one.logprob) | {"top_logprobs": [named(token, logprob) for token, logprob in one.top]}


def _report(opened: OpenModel, completion: Completion, finish: str, load_seconds: float, verbose: bool) -> None:
    t, sampling = completion.timings, completion.sampling
    lines = []
    if verbose:
        engine = opened.engine
        lines = [
            f"model {opened.path}, {engine.config.architecture}, activations {engine.scheme}",
            f"{engine.threads} threads, {isa.chosen()}; context {engine.context}, KV cache {engine.cache_type}, "
            f"{byte_size(engine.cache_bytes())} when full",
            f"prompt {1e3 * t.prefill_seconds:.1f} ms, {t.cached_tokens} tokens from the cache; new tokens {1e3 * t.decode_seconds:.1f} ms",
        ]
    cached = f" ({t.cached_tokens} cached)" if t.cached_tokens else ""
    drafts = f", {t.accepted_tokens} of {t.drafted_tokens} guesses right" if t.drafted_tokens else ""
    stopped = f"stop string {completion.stopped_by!r}" if completion.stopped_by else finish
    lines.append(
        f"load {load_seconds:.2f} s, prompt {t.prompt_tokens} tokens{cached} at {t.prefill_rate:.1f} tokens/s, "
        f"{t.new_tokens} new tokens at {t.decode_rate:.1f} tokens/s{drafts}, {stopped}"
        + (f", seed {completion.seed}" if sampling.temperature > 0 else "")
    )
    for line in lines:
        say(f"bitnet: {printable(line)}")
