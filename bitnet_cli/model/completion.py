"""Prompt ids -> text, piece by piece, as a reader wants it: whole characters, nothing of a stop string.

ids ── generate ──> new ids ── IncrementalDecoder ──> text ── StopStrings ──> pieces
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

from bitnet_cli.model.constraint import constraint
from bitnet_cli.model.generate import Plan, Timings, Watch, generate
from bitnet_cli.model.logprobs import TokenLogprob, token_logprob
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.model.sequence import Progress
from bitnet_cli.text.stop import StopStrings
from bitnet_cli.text.stream import IncrementalDecoder


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


class Completion(Iterator[str]):
    """The text that follows `prompt`; iterate over it for its pieces.

    ids        the new tokens so far; those of a stop string are among them
    logprobs   one for each of `ids`, if wanted
    timings    tokens and seconds; `finish`: why the text ended, `stop` or `length`
    stopped_by the stop string that ended it, if one did
    seed       the number that makes the same text again
    """

    def __init__(
        self, opened: OpenModel, prompt: Sequence[int], sampling: Sampling, request: Request | None = None, progress: Progress | None = None
    ):
        self.request = r = request or Request()
        ends = frozenset(opened.tokenizer.eos_ids if r.ends is None else r.ends)
        self._sampler = Sampler(sampling, never=ends if r.ignore_eos else ())
        self.sampling, self.seed = sampling, self._sampler.seed
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.timings = Timings()
        self._stops = StopStrings(r.stop)
        form = constraint(opened.tokenizer, r.grammar, ends, endless=r.ignore_eos)
        plan = Plan(r.limit, ends, r.draft, progress, watch(self.logprobs, r.logprobs), form, opened.engine.silent)
        tokens = generate(opened.scheduler, prompt, self._sampler, plan, self.timings)
        decoder = IncrementalDecoder(opened.tokenizer, skip_special=not r.special, at_start=False)
        # Not a method: a generator that holds this object would make a circle, and a text that nobody holds any more would not be closed.
        self._pieces = _pieces(tokens, decoder, self.ids, self._stops, self.timings)

    @property
    def stopped_by(self) -> str | None:
        return self._stops.found

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here."""
        self._pieces.close()


def watch(found: list[TokenLogprob], count: int | None) -> Watch | None:
    """For `generate`: append the log-probabilities of every token that is chosen."""
    return None if count is None else lambda logits, token: found.append(token_logprob(logits, token, count))


def _pieces(
    tokens: Iterator[int], decoded: IncrementalDecoder, ids: list[int], stops: StopStrings, timings: Timings
) -> Generator[str, None, None]:
    for token in tokens:
        ids.append(token)
        if piece := stops.push(decoded.push(token)):
            yield piece
        if stops.found is not None:
            timings.finish = "stop"
            return
    piece = stops.push(decoded.finish()) + stops.finish()
    if stops.found is not None:
        timings.finish = "stop"
    if piece:
        yield piece
