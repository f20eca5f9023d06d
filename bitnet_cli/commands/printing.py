"""A completion -> stdout: text as it comes, all of it in the end, or one JSON object. Timings and notes go to stderr."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_kernels import isa

from bitnet_cli.commands.reporting import Reporter, byte_size, print_json, say
from bitnet_cli.errors import BitnetError, printable
from bitnet_cli.model.completion import Generation
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.logprobs import TokenLogprob
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.text.reasoning import AnswerText
from bitnet_cli.text.stream import terminal_safe
from bitnet_cli.text.tokenizer import Tokenizer

CUT_OFF = "the text was cut off before it had the form that was asked for; a larger -n or -c gives it more room"


@dataclass(frozen=True)
class Show:
    """What is printed, and where the prompt's KV cache is kept. reasoning: also what the model thinks before it answers."""

    as_json: bool = False
    stream: bool = True
    verbose: bool = False
    quiet: bool = False
    prompt_cache: Path | None = None
    reasoning: bool = False


@dataclass(frozen=True)
class Asked:
    """What was asked for, beside the request of the completion.

    echo    text to show before the new one, on a terminal
    format  of the chat, None: text is continued
    answer  where the text is an answer: what of it is shown
    """

    echo: str = ""
    format: str | None = None
    answer: AnswerText | None = None


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


def print_completion(
    opened: OpenModel, completion: Generation, asked: Asked, keep: Callable[[], None], load_seconds: float, show: Show
) -> None:
    """Print the text of a completion, then the timings. keep: called once the prompt is computed, and again.

    BitnetError: the text has not the form that was asked for.
    """
    output, pieces, finish = Output(), [], ""
    whole = show.as_json or not show.stream
    if not show.as_json:
        output.echo(asked.echo)

    def take(piece: str, last: bool = False) -> None:
        shown = asked.answer.push(piece, last=last) if asked.answer else piece
        pieces.append(shown)
        if not whole:
            output.write(shown)

    try:
        for piece in completion:
            take(piece)
            keep()
        take("", last=True)
        keep()
    except KeyboardInterrupt:
        completion.close()
        finish = "interrupted"
        raise
    except BitnetError:
        output.cut_off()
        raise
    else:
        finish = completion.finish
    finally:
        if finish:
            with contextlib.suppress(BrokenPipeError) if finish == "interrupted" else contextlib.nullcontext():
                _finish(opened, completion, asked, "".join(pieces), finish, output, load_seconds, show)
    if completion.request.grammar is not None and (finish != "stop" or completion.stopped_by):
        raise BitnetError(CUT_OFF)


def _finish(
    opened: OpenModel, completion: Generation, asked: Asked, text: str, finish: str, output: Output, load_seconds: float, show: Show
) -> None:
    """What comes after the last piece of text."""
    if show.as_json:
        print_json(_as_json(opened, completion, text, finish, load_seconds) | {"prompt_format": asked.format or "raw"})
    elif not show.stream:
        output.write(text + "\n")
    elif finish == "interrupted":
        output.cut_off()
    else:
        output.write("\n")
    if show.quiet:
        return
    report = Reporter(show.quiet)
    if asked.answer is not None and asked.answer.thinking:
        report.note("the model was still thinking, and did not come to an answer; --show-reasoning shows that, a larger -n gives it room")
    elif asked.answer is not None and finish == "length" and completion.request.grammar is None:
        report.note(f"the answer was cut off after {completion.timings.new_tokens} tokens; -n -1 lets the model end it")
    _report(opened, completion, finish, load_seconds, show.verbose)


def _as_json(opened: OpenModel, completion: Generation, text: str, finish: str, load_seconds: float) -> dict[str, Any]:
    """Names as in the answers of llama-server's /completion, where it has them."""
    stopped_by, r = completion.stopped_by, completion.request
    stop_type = "interrupted" if finish == "interrupted" else "word" if stopped_by else "eos" if finish == "stop" else "limit"
    logprobs = [_logprob(opened.tokenizer, one) for one in completion.logprobs] if r.logprobs is not None else None
    return {
        "model": str(opened.path),
        "text": text,
        "ids": completion.ids,
        "stop_type": stop_type,
        "finish": finish,
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


def _report(opened: OpenModel, completion: Generation, finish: str, load_seconds: float, verbose: bool) -> None:
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
