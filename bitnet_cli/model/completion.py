"""Prompt ids -> text, piece by piece, as a reader wants it: whole characters, nothing of a stop string.

ids ── generate ──> new ids ── IncrementalDecoder ──> text ── StopStrings ──> pieces ──> Generation
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from collections.abc import Generator as Pieces
from dataclasses import dataclass, field
from typing import Any

from bitnet_cli.errors import UsageError, option
from bitnet_cli.model.constraint import constraint
from bitnet_cli.model.generate import TextPlan, Timings, Watch, generate
from bitnet_cli.model.logprobs import TokenLogprob, token_logprob
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Progress
from bitnet_cli.text.stop import StopStrings
from bitnet_cli.text.stream import IncrementalDecoder
from bitnet_cli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """What is wanted.

    limit       new tokens at most; -1: until the context is full
    stop        strings that end the text, and do not belong to it
    ends        tokens that end it; None: those of the model
    ignore_eos  never choose a token that ends the text
    logprobs    None: none; else of every new token, with so many of the likeliest ones
    draft       tokens that prompt lookup guesses ahead at most (model/lookup.py); 0: none. The text is the same.
    grammar     the form of the text (model/constraint.py); None: any
    special     control tokens that do not end it are shown by their names
    """

    limit: int = 128
    stop: Sequence[str] = ()
    ends: Collection[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    draft: int = 0
    grammar: str | None = None
    special: bool = False


@dataclass
class Written:
    """What a text has come to, so far.

    closed  set by anybody, at any time: nothing more of it is wanted
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    finish: str = ""
    stopped_by: str | None = None
    closed: bool = False


class Generation(Iterator[str], AsyncIterator[str]):
    """A text that a model writes. `for` and `async for` give it piece by piece, as it comes; `print` and `str` all of it.

    Asking for one of these writes what is left of it first; the pieces can still be taken afterwards:

    text        all of it
    ids         its tokens; those of a stop string are among them
    logprobs    of each of `ids`, if asked for: `id`, `logprob`, and `top`, the likeliest tokens
    finish      why it ended: `stop` (the model, a stop string or its form), `length`, or `interrupted` (by `close`, Ctrl-C, an error)
    stopped_by  the stop string that ended it, if one did
    timings     tokens and seconds

    seed is the number that makes the same text again. Threads may share it: each piece goes to one of them.
    """

    def __init__(self, pieces: Pieces[str, None, None], written: Written, sampler: Sampler, request: Request):
        self.request, self.sampling, self.seed = request, sampler.sampling, sampler.seed
        # The generator does not hold this object: a text that nobody holds any more is closed at once, and not when garbage is looked for.
        self._pieces, self._written = pieces, written
        self._said: list[str] = []
        self._taken = 0  # of `_said`, by whoever iterates
        self._lock = threading.RLock()

    def advance(self) -> bool:
        """Write the next piece, and leave it to be taken. False: there is none."""
        with self._lock:
            for piece in self._pieces:
                self._said.append(piece)
                return True
        return False

    def __next__(self) -> str:
        with self._lock:
            if self._taken == len(self._said) and not self.advance():
                raise StopIteration
            self._taken += 1
            return self._said[self._taken - 1]

    async def __anext__(self) -> str:
        import asyncio  # 30 ms that others do not pay

        piece = await asyncio.to_thread(next, self, None)
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Stop here; what has been written stays. From any thread: where another one is writing, after the token that it computes."""
        self._written.closed = True
        with self._lock:
            self._pieces.close()

    def _whole(self) -> Written:
        with self._lock:
            self._said.extend(self._pieces)
        return self._written

    @property
    def text(self) -> str:
        self._whole()
        return "".join(self._said)

    @property
    def ids(self) -> list[int]:
        return self._whole().ids

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return self._whole().logprobs[: len(self._written.ids)]  # a step may have chosen more tokens than were asked for

    @property
    def finish(self) -> str:
        return self._whole().finish or "interrupted"

    @property
    def stopped_by(self) -> str | None:
        return self._whole().stopped_by

    @property
    def timings(self) -> Timings:
        return self._whole().timings

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        ended = inspect.getgeneratorstate(self._pieces) == inspect.GEN_CLOSED
        return f"<Generation {''.join(self._said)!r}, {(self._written.finish or 'interrupted') if ended else 'not finished'}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows of it: the text."""
        printer.text(self.text)


def complete(
    opened: OpenModel, prompt: Sequence[int], sampling: Sampling, request: Request | None = None, progress: Progress | None = None
) -> Generation:
    """The text that follows `prompt`. UsageError: a bias of a token that there is not."""
    r, tokenizer, written = request or Request(), opened.tokenizer, Written()
    check_biases(sampling, tokenizer)
    ends = frozenset(tokenizer.eos_ids if r.ends is None else r.ends)
    sampler = Sampler(sampling, never=ends if r.ignore_eos else ())
    form = constraint(tokenizer, r.grammar, ends, endless=r.ignore_eos)
    plan = TextPlan(r.limit, ends, r.draft, progress, watch(written.logprobs, r.logprobs), form, opened.engine.silent)
    tokens = generate(opened.scheduler, prompt, sampler, plan, written.timings)
    decoder = IncrementalDecoder(tokenizer, skip_special=not r.special, at_start=False)
    return Generation(_pieces(tokens, decoder, StopStrings(r.stop), written), written, sampler, r)


def check_biases(sampling: Sampling, tokenizer: Tokenizer) -> None:
    """UsageError: a bias of a token that there is not."""
    if beyond := [token for token, _ in sampling.logit_bias if token >= tokenizer.vocab_size]:
        raise UsageError(f"{option('logit_bias')} of token {beyond[0]}: the vocabulary has {tokenizer.vocab_size} tokens")


def watch(found: list[TokenLogprob], count: int | None) -> Watch | None:
    """For `generate`: append the log-probabilities of every token that is chosen."""
    return None if count is None else lambda logits, token: found.append(token_logprob(logits, token, count))


def _pieces(tokens: Iterator[int], decoded: IncrementalDecoder, stops: StopStrings, written: Written) -> Pieces[str, None, None]:
    timings, ids = written.timings, written.ids
    written.finish = "interrupted"
    for token in tokens:
        ids.append(token)
        if piece := stops.push(decoded.push(token)):
            yield piece
        if written.closed:
            return
        if stops.found is not None:
            timings.finish, timings.new_tokens = "stop", len(ids)
            break
    else:
        piece = stops.push(decoded.finish()) + stops.finish()
        if stops.found is not None:
            timings.finish = "stop"
        if piece:
            yield piece
    written.finish, written.stopped_by = timings.finish, stops.found
