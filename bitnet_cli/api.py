"""The Python API: `load` a model, `generate` text and ask for logits, perplexity and embeddings.

    from bitnet_cli import load

    with load("models/bitnet-b1.58-2B-4T.gguf") as model:
        print("".join(model.generate("Once upon a time", max_tokens=50, temperature=0)))

A model works on one thing at a time. It may be used from several threads: they wait for each other, and a text that is being generated
is finished, or closed, before anything else begins. Errors are those of bitnet_cli.errors.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model import embedding
from bitnet_cli.model.config import NO_TEXT, ModelConfig
from bitnet_cli.model.generate import Timings, generate
from bitnet_cli.model.names import find
from bitnet_cli.model.opening import OpenModel, open_model, prompt_ids
from bitnet_cli.model.perplexity import Score, score
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.text.stream import IncrementalDecoder
from bitnet_cli.text.tokenizer import Tokenizer

__all__ = ["Generation", "Model", "load"]


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int = 0,
    context: int = 0,
    cache_type: str = "f16",
    weight_bits: str = "auto",
    activations: str = "auto",
) -> Model:
    """Open a model; the kernels are compiled if they never were on this computer, which takes 10 to 30 seconds.

    path         GGUF file, folder with one, name of an embedded model or of a file in models/, or hub id of a model that is on this
                 computer (nothing is downloaded); None: the embedded model `tiny`
    threads      0: the physical cores that this process may use
    context      most tokens of a text; 0: 2048, or the model's if smaller
    cache_type   of the KV cache: f32, f16, q8, q4, q3
    weight_bits  what decode reads: `2`, `1.6`, or `auto`
    activations  `a8` or `a4`: of 8 or 4 bits, whatever the model was trained with; `auto`: as it was trained

    UsageError: no such model, or a value out of range. BadFileError, UnsupportedError: the file is damaged, or of a kind that is not run.
    """
    if threads < 0 or context < 0:
        raise UsageError("threads and context must be 0 or more")
    options = {"cache_type": cache_type, "weight_bits": weight_bits, "activations": activations}
    opened = open_model(find(path), context=context, threads=threads, embeds=True, **options)
    try:
        opened.decoder.start()
    except BaseException:
        opened.session.close()
        raise
    return Model(opened)


class Generation(Iterator[str]):
    """Text that comes piece by piece; made by `Model.generate`. From the first piece to the last, the model is busy; `close` ends it early.

    seed     the number that makes the same text again
    ids      the new tokens so far
    timings  tokens and seconds, and why the text ended (`finish`)
    """

    def __init__(self, model: Model, prompt: Sequence[int], limit: int, sampler: Sampler, ends: frozenset[int]):
        self.seed, self.timings = sampler.seed, Timings()
        self.ids: list[int] = []
        # Not a method: a generator that holds this object would make a circle, and a text that nobody holds would keep the model busy.
        self._pieces = _pieces(model, prompt, limit, sampler, ends, self.ids, self.timings)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here; the model is free for others. Also happens when nobody holds the object any more."""
        self._pieces.close()


def _pieces(
    model: Model, prompt: Sequence[int], limit: int, sampler: Sampler, ends: frozenset[int], ids: list[int], timings: Timings
) -> Generator[str, None, None]:
    decoded = IncrementalDecoder(model.tokenizer, at_start=False)
    with model._alone() as opened:
        for token in generate(opened.session, prompt, limit, sampler, ends, timings):
            ids.append(token)
            if piece := decoded.push(token):
                yield piece
        if piece := decoded.finish():
            yield piece


class Model:
    """An open model; made by `load`. A context manager; `close` ends its threads and frees its memory."""

    def __init__(self, opened: OpenModel):
        self.path: Path = opened.path
        self.tokenizer: Tokenizer = opened.tokenizer
        self.config: ModelConfig = opened.decoder.config
        self.context: int = opened.session.context
        self._opened: OpenModel | None = opened
        self._lock, self._owner = threading.Lock(), 0  # owner: the thread that holds the lock, 0 for none

    @contextlib.contextmanager
    def _alone(self) -> Iterator[OpenModel]:
        """Wait until nobody uses the model, and use it. BitnetError: it is closed, or this very thread is in the middle of a text."""
        if self._owner == threading.get_ident():
            raise BitnetError("this model is in the middle of a text; finish that, or call its close()")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                if self._opened is None:
                    raise BitnetError("this model is closed")
                yield self._opened
            finally:
                self._owner = 0

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int = -1,
        ignore_eos: bool = False,
    ) -> Generation:
        """Continue a text, or token ids: yields pieces of text as they come.

        max_tokens   -1: until the context is full
        temperature  0: always the likeliest token
        seed         same seed, same text; -1: random (`Generation.seed` tells which)
        ignore_eos   go on after the token that ends a text

        What the last call's text begins with alike is not computed again. UsageError: a value out of range.
        """
        if max_tokens < -1:
            raise UsageError("max_tokens must be -1 or more")
        if self.config.pooling is not None:
            raise UsageError(f"{self.path}: {NO_TEXT}")
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        ends = frozenset() if ignore_eos else frozenset(self.tokenizer.eos_ids)
        return Generation(self, self._ids(prompt), max_tokens, Sampler(sampling), ends)

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """Token ids of a text. special: names of control tokens in it become those tokens. bos: put the first token; None: as the model."""
        return self.tokenizer.encode(text, special=special, bos=bos)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids. special: show control tokens."""
        return self.tokenizer.decode(ids, skip_special=not special)

    def logits(self, prompt: str | Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """(vocab,) float32: the logits of the token after `prompt`. every: (tokens, vocab), after each of its tokens."""
        ids = self._ids(prompt)
        with self._alone() as opened:
            return opened.session.emptied().feed_all(ids) if every else opened.session.prefill(ids).logits.copy()

    def perplexity(self, text: str | Sequence[int], *, stride: int = 0) -> Score:
        """How well the model predicts a text: perplexity, its standard error, tokens. stride: see model/perplexity.py; 0: the context."""
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        with self._alone() as opened:
            return score(opened.session.emptied(), ids, self.context, stride or self.context)

    def embed(
        self, texts: str | Sequence[str], *, pooling: str | None = None, normalize: bool = True, prompt: str = ""
    ) -> NDArray[np.float32]:
        """(hidden,) float32 of a text, or (texts, hidden) of several. pooling: `last` or `mean`; None: as the model says.

        prompt is put before every text. UsageError: a model that is none for embeddings, and no pooling given.
        """
        many = [texts] if isinstance(texts, str) else list(texts)
        with self._alone() as opened:
            decoder = opened.session.emptied()
            vectors = embedding.embed(decoder, self.tokenizer, many, pooling=pooling, normalize=normalize, prompt=prompt)
        return vectors[0] if isinstance(texts, str) else vectors

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        return prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)

    def close(self) -> None:
        """End the model's threads and free its memory; waits for a text that another thread generates. A second call does nothing."""
        if self._opened is None:
            return
        with self._alone() as opened:
            opened.session.close()
            self._opened = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
