"""The generate loop: prompt ids -> new ids, one at a time. No text and no input or output here.

`Timings` counts tokens and seconds: prefill is the prompt, decode every token after the first new one.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from bitnet_cli.model.decoder import Decoder
from bitnet_cli.model.sampler import Sampler


@dataclass
class Timings:
    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish: str = "length"  # "stop": the model ended the text; "length": n or the context is used up

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens/s."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens/s, the first one (which belongs to the prefill) left out."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 and self.decode_seconds else 0.0


def generate(
    decoder: Decoder, prompt: Sequence[int], limit: int, sampler: Sampler, stop: Collection[int], timings: Timings | None = None
) -> Iterator[int]:
    """Yield at most `limit` new tokens (-1: until the context is full) after `prompt`, up to but without a token of `stop`."""
    t = timings if timings is not None else Timings()
    start = time.perf_counter()
    sampler.observe(prompt)
    logits = decoder.feed(prompt, sampler.top)
    t.prompt_tokens, t.prefill_seconds = len(prompt), time.perf_counter() - start
    while limit < 0 or t.new_tokens < limit:
        token = sampler.choose(logits, decoder.position)
        if token in stop:
            t.finish = "stop"
            return
        t.new_tokens += 1
        yield token
        if t.new_tokens == limit or decoder.position == decoder.context:
            return
        start = time.perf_counter()
        logits = decoder.feed([token], sampler.top)
        t.decode_seconds += time.perf_counter() - start
