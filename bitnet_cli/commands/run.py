"""`bitnet run`: prompt -> text. The text goes to stdout as it comes, notes and timings to stderr."""

import sys
import time
from pathlib import Path

from bitnet_cli.commands import chat as chatting
from bitnet_cli.commands.opening import open_model
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.generate import Timings, generate
from bitnet_cli.model.opening import prompt_ids
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.text.chat_choice import choose
from bitnet_cli.text.stream import IncrementalDecoder, terminal_safe

__all__ = ["Sampling", "run"]

MAX_PROMPT_BYTES = 64 << 20


def _note(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt's text from -p, -f or a pipe; empty where there is none of them."""
    if prompt is not None and file is not None:
        raise UsageError("give the prompt by -p or by -f, not both")
    if file is not None:
        try:
            with file.open("rb") as source:
                data = source.read(MAX_PROMPT_BYTES + 1)  # not all of it: the file may be a device without an end
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
    elif prompt == "-" or (prompt is None and sys.stdin is not None and not sys.stdin.isatty()):
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    else:
        return prompt or ""
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt is larger than {MAX_PROMPT_BYTES >> 20} MiB")
    # One line end at the end is the file's or the shell's, not the prompt's: `echo text | bitnet run` should continue the text.
    return data.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


class Output:
    """stdout for model text: control characters are dropped on a terminal, what the encoding lacks is replaced."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._wrote = False
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        """Show model text at once."""
        if text:
            self._wrote = True
            sys.stdout.write(terminal_safe(text) if self._terminal else text)
            sys.stdout.flush()

    def cut_off(self) -> None:
        """End the line of a text that stays unfinished; a refusal before any text leaves stdout empty."""
        if self._wrote:
            self.write("\n")

    def echo(self, prompt: str) -> None:
        """Show the prompt before its continuation, on a terminal only: a pipe gets the model's text and nothing else."""
        if self._terminal:
            self.write(prompt)


def run(
    model: str | None,
    *,
    prompt: str | None,
    file: Path | None,
    n_predict: int,
    threads: int,
    ctx_size: int,
    cache_type: str,
    weight_bits: str,
    activations: str,
    sampling: Sampling,
    quiet: bool,
    conversation: bool,
    chat_template: str | None,
    chat: chatting.Wishes,
) -> None:
    """Generate text, or chat: where `conversation` says so, or where there is no prompt and a chat model on a terminal.

    Raises BitnetError for what the user must know; see options/ for the options.
    """
    if n_predict < -1 or threads < 0 or ctx_size < 0:
        raise UsageError("-n must be -1 or more, -t and -c 0 or more")
    alone = prompt is None and file is None and sys.stdin.isatty() and sys.stdout.isatty()
    wants_stdin = prompt is None and file is None and conversation
    text = "" if alone or wants_stdin else read_prompt(prompt, file)
    start = time.perf_counter()
    opened = open_model(
        model,
        context=ctx_size,
        threads=threads,
        cache_type=cache_type,
        weight_bits=weight_bits,
        activations=activations,
        quiet=quiet,
    )
    choice = choose(opened.chat, chat_template) if conversation or alone else None
    if choice is not None and (conversation or choice.trained):
        chatting.converse(opened, choice, sampling, chat, text)
        return
    tokenizer = opened.tokenizer
    ids = prompt_ids(tokenizer, text)
    sampler, timings = Sampler(sampling), Timings()
    load_seconds = time.perf_counter() - start
    output, decoded = Output(), IncrementalDecoder(tokenizer, at_start=False)
    output.echo(text)
    try:
        for token in generate(opened.session, ids, n_predict, sampler, tokenizer.eos_ids, timings):
            output.write(decoded.push(token))
        output.write(decoded.finish() + "\n")
    except KeyboardInterrupt:
        output.cut_off()
        _report(quiet, load_seconds, timings, sampler, "interrupted")
        raise
    except BitnetError:
        output.cut_off()
        raise
    finally:
        opened.session.close()
    _report(quiet, load_seconds, timings, sampler, timings.finish)


def _report(quiet: bool, load_seconds: float, t: Timings, sampler: Sampler, finish: str) -> None:
    seed = f", seed {sampler.seed}" if sampler.sampling.temperature > 0 else ""
    _note(
        quiet,
        f"bitnet: load {load_seconds:.2f} s, prompt {t.prompt_tokens} tokens at {t.prefill_rate:.1f} tokens/s, "
        f"{t.new_tokens} new tokens at {t.decode_rate:.1f} tokens/s, {finish}{seed}",
    )
