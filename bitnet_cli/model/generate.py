"""The generate loop: prompt ids -> new ids, one at a time. No text and no input or output here.

`Timings` counts tokens and seconds: prefill is the prompt, decode every token after the first new one.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from bitnet_kernels.arrays import NO_ROWS
from numpy.typing import NDArray

from bitnet_cli.model.constraint import Constraint
from bitnet_cli.model.lookup import Lookup
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.session import Progress, Session

FORBIDDEN = 8  # logits that are asked for beyond those that are looked at, where a form forbids tokens
WORTH_A_SEARCH = 0.6  # a search takes about half as long as all logits, which are needed where it fails
Watch = Callable[[NDArray[np.float32], int], None]  # (all logits, the token that was chosen from them)


@dataclass
class Timings:
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, in the cache already
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0  # guessed by prompt lookup
    accepted_tokens: int = 0  # of these, right
    finish: str = "length"  # "stop": the model ended the text; "length": n or the context is used up

    @property
    def fed_tokens(self) -> int:
        """Prompt tokens that were computed."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def prefill_rate(self) -> float:
        """Computed prompt tokens/s."""
        return self.fed_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens/s, the first one (which belongs to the prefill) left out."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 and self.decode_seconds else 0.0


@dataclass(frozen=True)
class Plan:
    """How far to go.

    limit     new tokens at most; -1: until the context is full
    ends      tokens that end the text; they are not yielded
    draft     tokens that prompt lookup (lookup.py) guesses ahead at most; 0: none
    progress  as Session.prefill
    watch     sees all logits (minus infinity for silent ids) and the token of every choice, but not of one that ends the text
    form      tokens are chosen among those that it allows, and the text ends where it is done; it goes on with the text
    silent    ids that are no choices (Decoder.silent), ascending
    """

    limit: int
    ends: Collection[int] = ()
    draft: int = 0
    progress: Progress | None = None
    watch: Watch | None = None
    form: Constraint | None = None
    silent: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)


def generate(session: Session, prompt: Sequence[int], sampler: Sampler, plan: Plan, timings: Timings | None = None) -> Iterator[int]:
    """Yield the tokens that follow `prompt`. What the session holds of the prompt is not computed again."""
    t = timings if timings is not None else Timings()
    ahead = _Ahead(session, plan.draft, t)
    start = time.perf_counter()
    session.decoder.expect(plan.limit if plan.limit >= 0 else None)
    sampler.silence(plan.silent)
    sampler.observe(prompt)
    logits, fed = session.prefill(prompt, ahead.asks(sampler, plan), plan.progress)
    ahead.begin(prompt)
    t.prompt_tokens, t.cached_tokens, t.prefill_seconds = len(prompt), len(prompt) - fed, time.perf_counter() - start
    token = None
    try:
        while True:
            if plan.form and plan.form.done:
                t.finish = "stop"
                return
            if t.new_tokens == plan.limit or (token is not None and ahead.position == session.context):
                return
            if token is not None:
                start = time.perf_counter()
                room = plan.limit - t.new_tokens if plan.limit >= 0 else session.context
                logits = ahead.after(token, room, ahead.asks(sampler, plan))
                t.decode_seconds += time.perf_counter() - start
            token = ahead.choose(sampler, plan, logits)
            if token in plan.ends:
                t.finish = "stop"
                return
            if plan.watch:
                plan.watch(sampler.heard(logits), token)
            if plan.form:
                plan.form.accept(token)
            t.new_tokens += 1
            yield token
    finally:
        ahead.settle()


class _Ahead:
    """Logits of the token after another one: from one step for each, or from a step that computed a whole draft.

    A draft is fed together with the token before it. It counts as far as the tokens that are then chosen are the drafted ones; the rest
    is cut off again. Tokens are chosen from the same logits, by the same random numbers in the same order, as without drafts.
    """

    def __init__(self, session: Session, most: int, timings: Timings):
        self._session, self._timings = session, timings
        self._lookup = Lookup(most) if most else None
        self._draft: Sequence[int] = ()  # of the last step
        self._right = 0  # of these, chosen too
        self._logits: Sequence[NDArray[np.float32]] = ()  # of the last step, if it computed a draft: of each token, (vocab,)
        self._drafted_top = 0  # how many of the largest these hold; 0: all
        self._asked = 0  # of the largest logits
        self._few = False  # whether few tokens are allowed
        self._agreed = 1.0  # share of such choices for which the largest logits were enough, or would have been; the latest count most
        self.position = 0  # tokens of the text so far that are computed

    def begin(self, prompt: Sequence[int]) -> None:
        """The prompt is computed."""
        self.position = len(prompt)
        if self._lookup:
            self._lookup.extend(prompt)

    def after(self, token: int, room: int, top: int) -> NDArray[np.float32]:
        """The text goes on with `token`: logits of the one after it. room: tokens that may still come; top: as Decoder.feed."""
        session, lookup = self._session, self._lookup
        if lookup is None:
            self.position += 1
            return session.feed([token], top)
        lookup.extend([token])
        if self._right < len(self._draft) and token == self._draft[self._right]:
            self._right += 1
            self.position += 1
            self._timings.accepted_tokens += 1
            return self._drafted(top)
        self.settle()
        self._draft = lookup.draft(min(room, session.context - self.position, session.decoder.batch) - 1)
        self.position += 1
        start = time.perf_counter()
        if not self._draft:
            logits = session.feed([token], top)
            lookup.took(time.perf_counter() - start)
            return logits
        self._logits, self._drafted_top = list(session.feed_batch([token, *self._draft], top)), top
        lookup.took(time.perf_counter() - start, 1 + len(self._draft))
        self._timings.drafted_tokens += len(self._draft)
        return self._logits[0]

    def _drafted(self, top: int) -> NDArray[np.float32]:
        """Logits after what was right of the draft. A form may need more of them than when the draft was computed."""
        if self._drafted_top and not 0 < top <= self._drafted_top:
            return self._session.logits_of(self._right, top)
        return self._logits[self._right]

    def asks(self, sampler: Sampler, plan: Plan) -> int:
        """How many of the largest logits to ask for, for the next choice; 0: all.

        With a form, some more, since some of the largest are of tokens that are not allowed. These are enough where nearly everything is
        allowed, as in a string of JSON, and elsewhere as far as the model would have gone on like this by itself.
        """
        self._asked = 0 if plan.watch else sampler.top
        if plan.form and self._asked:
            self._few = 2 * int(np.count_nonzero(plan.form.allowed)) < len(plan.form.allowed)
            self._asked = 0 if self._few and self._agreed < WORTH_A_SEARCH else self._asked + FORBIDDEN
        return self._asked

    def choose(self, sampler: Sampler, plan: Plan, logits: NDArray[np.float32]) -> int:
        """The next token, from the logits that were asked for, or from all where these leave it open which one."""
        if plan.form is None:
            return sampler.choose(logits, self.position)
        token = sampler.choose_allowed(logits, plan.form.allowed, self._asked, self.position)
        enough = token is not None
        if token is None:
            start = time.perf_counter()
            logits = self._session.logits_of(self._right if self._draft else -1)
            self._timings.decode_seconds += time.perf_counter() - start
            token = sampler.choose_allowed(logits, plan.form.allowed, 0, self.position)
            assert token is not None
        if self._few:
            enough = enough and (self._asked > 0 or int(np.count_nonzero(logits > logits[token])) < sampler.top + FORBIDDEN)
            self._agreed = 0.8 * self._agreed + 0.2 * enough
        return token

    def settle(self) -> None:
        """Cut off what was drafted and not chosen."""
        if self._draft:
            self._draft, self._right = (), 0
            self._session.rewind(min(self.position, self._session.position))
