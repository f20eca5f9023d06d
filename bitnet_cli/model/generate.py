"""The generate loop: prompt ids -> new ids, one at a time. No text and no input or output here.

`Timings` counts tokens and seconds: prefill is the prompt, decode every token after the first new one.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.session import Progress, Session


@dataclass
class Timings:
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, in the cache already
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
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


def generate(
    session: Session,
    prompt: Sequence[int],
    limit: int,
    sampler: Sampler,
    stop: Collection[int],
    timings: Timings | None = None,
    progress: Progress | None = None,
) -> Iterator[int]:
    """Yield at most `limit` new tokens (-1: until the context is full) after `prompt`, up to but without a token of `stop`.

    What the session holds of the prompt is not computed again. progress: as Session.prefill.
    """
    t = timings if timings is not None else Timings()
    start = time.perf_counter()
    sampler.observe(prompt)
    logits, fed = session.prefill(prompt, sampler.top, progress)
    t.prompt_tokens, t.cached_tokens, t.prefill_seconds = len(prompt), len(prompt) - fed, time.perf_counter() - start
    while limit < 0 or t.new_tokens < limit:
        token = sampler.choose(logits, session.position)
        if token in stop:
            t.finish = "stop"
            return
        t.new_tokens += 1
        yield token
        if t.new_tokens == limit or session.position == session.context:
            return
        start = time.perf_counter()
        logits = session.feed([token], sampler.top)
        t.decode_seconds += time.perf_counter() - start
