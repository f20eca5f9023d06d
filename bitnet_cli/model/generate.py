"""Writing: prompt ids -> new ids, one at a time, as a job of a scheduler. No text and no input or output here.

`Timings` counts tokens and seconds: prefill is the prompt, decode every token after the first new one.
"""

import time
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np
from bitnet_kernels.arrays import NO_ROWS
from numpy.typing import NDArray

from bitnet_cli.model.constraint import Constraint
from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.lookup import Lookup
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.scheduler import Again, Job, Scheduler
from bitnet_cli.model.sequence import Progress

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
class TextPlan:
    """How far to go.

    limit     new tokens at most; -1: until the context is full
    ends      tokens that end the text; they are not yielded
    draft     tokens that prompt lookup (lookup.py) guesses ahead at most; 0: none
    progress  called with (done, all) as the tokens of the prompt that are new get computed
    watch     sees all logits (minus infinity for silent ids) and the token of every choice, but not of one that ends the text
    form      tokens are chosen among those that it allows, and the text ends where it is done; it goes on with the text
    silent    ids that are no choices (Engine.silent), ascending
    watch_end  whether `watch` also sees the token that ends the text
    """

    limit: int
    ends: Collection[int] = ()
    draft: int = 0
    progress: Progress | None = None
    watch: Watch | None = None
    form: Constraint | None = None
    silent: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    watch_end: bool = False


class Text(Job):
    """A text that is written, token by token; `ready` has the new ones.

    With drafts (lookup.py) a step computes the last token and some guesses after it. They count as far as the tokens that are then chosen
    are the guessed ones; the rest is cut off again. Tokens are chosen from the same logits, by the same random numbers in the same order,
    as without drafts.
    """

    def __init__(self, prompt: Ids[int], sampler: Sampler, plan: TextPlan, timings: Timings | None = None, salt: str = ""):
        super().__init__(prompt, salt)
        self.timings = timings if timings is not None else Timings()
        self._sampler, self._plan = sampler, plan
        self._lookup = Lookup(plan.draft) if plan.draft else None
        self._begun = 0.0  # when it was its turn for the first time
        self._answers = False  # whether logits have come
        self._draft: Ids[int] = ()  # of the step
        self._asked = 0  # of the largest logits
        self._few = False  # whether few tokens are allowed
        self._agreed = 1.0  # share of such choices for which the largest logits were enough, or would have been; the latest count most

    def begin(self, engine: Engine) -> None:
        """As Job.begin."""
        start, plan, t = time.perf_counter(), self._plan, self.timings
        super().begin(engine)
        if self._begun:
            return  # pages were given back; nothing of the text is lost
        self._begun, prompt = start, self.ids
        engine.derived.expect(plan.limit if plan.limit >= 0 else None)
        self._sampler.silence(plan.silent)
        self._sampler.observe(prompt)
        if self._lookup:
            self._lookup.extend(prompt)
        t.prompt_tokens, t.cached_tokens = len(prompt), len(prompt) - self.pending

    def row(self, most: int) -> Row:
        """As Job.row."""
        s = self.sequence
        pending, self._draft = self.ids[s.position :], ()
        if len(pending) > most:
            return Row(s, pending[:most])
        if self._lookup and self._answers and len(pending) == 1:
            room = self._plan.limit - self.timings.new_tokens if self._plan.limit >= 0 else s.engine.context
            self._draft = self._lookup.draft(max(min(room - 1, s.engine.context - len(self.ids), most - 1), 0))
        if self._ended():
            return Row(s, pending)  # a prompt after which nothing is wanted
        top = self._asks()
        if top and self._sampler.sampling.penalises:
            top += len(self._draft)  # each may be one recent token more
        return Row(s, [*pending, *self._draft], range(len(pending) - 1, len(pending) + len(self._draft)), top)

    def took(self, row: Row, found: NDArray[np.float32], again: Again, seconds: float) -> None:
        """As Job.took."""
        t, s = self.timings, self.sequence
        if self._plan.progress and not self._answers:
            self._plan.progress(s.position - t.cached_tokens, t.prompt_tokens - t.cached_tokens)
        if self._answers:
            t.decode_seconds += seconds
        elif s.position >= t.prompt_tokens:
            self._answers, t.prefill_seconds = True, time.perf_counter() - self._begun
        if self._lookup and len(row.ids) == 1 + len(self._draft):
            self._lookup.took(seconds, len(row.ids))
        t.drafted_tokens += len(self._draft)
        for place in range(len(row.wanted)):
            if place and (self._ended() or self.ids[-1] != self._draft[place - 1]):
                break
            t.accepted_tokens += place > 0
            if not self._write(self._enough(found[place], row.top, again, place), again, place):
                break
        if self._draft:
            s.rewind(min(len(self.ids) - 1, s.position))
        self.done = self.done or (self._answers and self._ended())

    def _ended(self) -> bool:
        """Whether nothing more is wanted."""
        t, plan = self.timings, self._plan
        if plan.form and plan.form.done:
            t.finish = "stop"
            return True
        return t.new_tokens == plan.limit or (t.new_tokens > 0 and len(self.ids) - 1 == self.sequence.engine.context)

    def _write(self, logits: NDArray[np.float32], again: Again, place: int) -> bool:
        """Choose a token; False: it ends the text."""
        plan, t = self._plan, self.timings
        token = self._choose(logits, again, place)
        if token in plan.ends:
            if plan.watch and plan.watch_end:
                plan.watch(self._sampler.heard(logits), token)
            t.finish, self.done = "stop", True
            return False
        if plan.watch:
            plan.watch(self._sampler.heard(logits), token)
        if plan.form:
            plan.form.accept(token)
        t.new_tokens += 1
        self.ids.append(token)
        if self._lookup:
            self._lookup.extend([token])
        self.ready.append(token)
        return True

    def _enough(self, logits: NDArray[np.float32], top: int, again: Again, place: int) -> NDArray[np.float32]:
        """Logits of a drafted token: a form may ask for more of them than when the draft was computed."""
        if place == 0 or top == 0 or 0 < self._asks() <= top:
            return logits
        return again(place)

    def _asks(self) -> int:
        """How many of the largest logits to ask for, for the next choice; 0: all.

        With a form, some more, since some of the largest are of tokens that are not allowed. These are enough where nearly everything is
        allowed, as in a string of JSON, and elsewhere as far as the model would have gone on like this by itself.
        """
        form = self._plan.form
        self._asked = 0 if self._plan.watch else self._sampler.top
        if form and self._asked:
            self._few = 2 * int(np.count_nonzero(form.allowed)) < len(form.allowed)
            self._asked = 0 if self._few and self._agreed < WORTH_A_SEARCH else self._asked + FORBIDDEN
        return self._asked

    def _choose(self, logits: NDArray[np.float32], again: Again, place: int) -> int:
        """The next token, from the logits that were asked for, or from all where these leave it open which one."""
        form, sampler = self._plan.form, self._sampler
        if form is None:
            return sampler.choose(logits, len(self.ids))
        token = sampler.choose_allowed(logits, form.allowed, self._asked, len(self.ids))
        enough = token is not None
        if token is None:
            start = time.perf_counter()
            logits = again(place)
            self.timings.decode_seconds += time.perf_counter() - start
            token = sampler.choose_allowed(logits, form.allowed, 0, len(self.ids))
            assert token is not None
        if self._few:
            enough = enough and (self._asked > 0 or int(np.count_nonzero(logits > logits[token])) < sampler.top + FORBIDDEN)
            self._agreed = 0.8 * self._agreed + 0.2 * enough
        return token


def generate(scheduler: Scheduler, prompt: Ids[int], sampler: Sampler, plan: TextPlan, timings: Timings | None = None) -> Iterator[int]:
    """Yield the tokens that follow `prompt`: a queue of one. What is known of the prompt is not computed again."""
    yield from scheduler.run(Text(prompt, sampler, plan, timings))
