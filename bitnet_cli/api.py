"""The Python API: `load` a model, `generate` text, `chat`, and ask for logits, scores, perplexity and embeddings.

    from bitnet_cli import load

    with load("models/bitnet-b1.58-2B-4T.gguf") as model:
        print(model.generate("Once upon a time", max_tokens=50, temperature=0))

A model may be used from several threads, and may write several texts at once: those that are asked for at the same time share steps, and
each is what it would be alone. Errors are those of bitnet_cli.errors, and speak of parameters.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model import embedding, given
from bitnet_cli.model.chat import BASE_LIMIT, Chat, resumed
from bitnet_cli.model.completion import Generation, Request, Written, check_biases, complete
from bitnet_cli.model.config import NO_TEXT, ModelConfig
from bitnet_cli.model.constraint import grammar_of
from bitnet_cli.model.names import find
from bitnet_cli.model.opening import OpenModel, Options, open_model, prompt_ids
from bitnet_cli.model.perplexity import Score, score
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.sampler import MOST_BIAS, Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import CLOSED
from bitnet_cli.model.scoring import Scored, score_texts
from bitnet_cli.text.chat.arguments import checked_args
from bitnet_cli.text.chat.choice import Choice, choose
from bitnet_cli.text.chat.templates import Message, checked_messages
from bitnet_cli.text.tokenizer import Tokenizer

__all__ = ["Generation", "JsonSchema", "Model", "load"]

JsonSchema = Mapping[str, Any] | str | bool | None  # a schema, JSON text of one, or True for any JSON object
Biases = Mapping[int, float] | None  # token id -> what is added to its logit


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int = 0,
    context: int = 0,
    cache_type: str = "f16",
    weight_bits: str = "auto",
    activations: str = "auto",
    query_type: str = "f32",
    mapped: bool = True,
    cache_tokens: int = 0,
) -> Model:
    """Open a model; the kernels are compiled if they never were on this computer, which takes about half a minute.

    path         GGUF file, folder with one, name of an embedded model or of a file in models/, or hub id of a model that is on this
                 computer (nothing is downloaded); None: the embedded model `tiny`
    threads      0: the physical cores that this process may use
    context      most tokens of a text; 0: 2048, or the model's if smaller
    cache_type   of the KV cache: f32, f16, q8, q4, q3
    weight_bits  what decode reads: `2`, `1.6`, or `auto`
    activations  of a ReLU² model: `auto` (as trained), `a8`, `a4`, `fp4`
    query_type   of attention: f32, or q4, 4 bits as in the KV cache q4
    cache_tokens that the KV cache holds, of all texts together: more for many texts at once; 0: a context
    mapped       False: read the file into memory first, as where it lies on a share or may change meanwhile

    UsageError: no such model, or a value out of range. BadFileError, UnsupportedError: the file is damaged, or of a kind that is not run.
    """
    if not isinstance(path, (str, os.PathLike)) and path is not None:
        raise given.wrong("path", path, "a path or a name")
    opened = open_model(
        find(path), Options(context, threads, cache_type, weight_bits, activations, query_type, mapped, cache_tokens), embeds=True
    )
    try:
        opened.engine.start()
    except BaseException:
        opened.scheduler.close()
        raise
    return Model(opened)


def _answered(
    model: Model, choice: Choice, messages: Sequence[Message], sampler: Sampler, shift: bool, request: Request, written: Written
) -> Generator[str, None, None]:
    opened = model._open()
    wanted = {"draft": request.draft, "stops": request.stop, "grammar": request.grammar}
    chat = Chat(opened.scheduler, opened.tokenizer, choice.template, shift=shift, **wanted)  # type: ignore[arg-type]
    before, model._chat = model._chat, chat
    chat.messages, first = resumed(before, messages) if before else (list(messages), 0)
    chat.first = first if shift else 0
    with contextlib.closing(chat.answer(sampler, request.limit, written=written, logprobs=request.logprobs)) as pieces:
        yield from filter(None, pieces)


class Model:
    """An open model; made by `load`. A context manager; `close` ends its threads and frees its memory."""

    def __init__(self, opened: OpenModel):
        self.path: Path = opened.path
        self.tokenizer: Tokenizer = opened.tokenizer
        self.config: ModelConfig = opened.engine.config
        self.context: int = opened.engine.context
        self._opened: OpenModel | None = opened
        self._chat: Chat | None = None  # the last one, for the tokens of its answers
        self._process = os.getpid()

    def _open(self) -> OpenModel:
        if self._opened is None:
            raise BitnetError(CLOSED)
        if self._process != os.getpid():  # its threads stayed behind, and would be waited for without end
            raise BitnetError("this model was loaded before a fork; load it in the new process")
        return self._opened

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        min_p: float = Sampling.min_p,
        repeat_penalty: float = Sampling.repeat_penalty,
        repeat_last_n: int = Sampling.repeat_last_n,
        presence_penalty: float = Sampling.presence_penalty,
        frequency_penalty: float = Sampling.frequency_penalty,
        mirostat: int = Sampling.mirostat,
        mirostat_tau: float = Sampling.mirostat_tau,
        mirostat_eta: float = Sampling.mirostat_eta,
        seed: int = Sampling.seed,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        logit_bias: Biases = None,
        lookup: int = 0,
        json_schema: JsonSchema = None,
        regex: str | None = None,
    ) -> Generation:
        """Continue a text, or token ids. What comes is written when it is asked for, piece by piece or all at once (Generation).

        max_tokens   -1: until the context is full; None: 128, or -1 where the text has a form that ends it
        temperature  0: always the likeliest token
        seed         same seed, same text, on every CPU with FMA (README, Exact); -1: random (`Generation.seed` tells which)
        stop         strings that end the text; nothing of them is yielded
        ignore_eos   never choose a token that ends the text
        logprobs     also the log-probability of every token, and of so many of the likeliest ones
        logit_bias   token id -> what is added to its logit; infinity counts as 1e30
        lookup       guess at most so many tokens ahead from the text itself: quicker where it repeats itself, and the same text
        json_schema  the text is JSON that this schema describes, a dictionary or JSON text of one; True: any JSON object. Whole only
                     where `finish` is `stop` and no stop string ended it
        regex        the text is one that this expression (of Rust's `regex`) matches as a whole

        The others are what the options of `bitnet run` with these names are. What the last call's text begins with alike is not computed
        again. UsageError: a value out of range, or of a wrong type.
        """
        grammar = grammar_of(json_schema, regex)
        request = _request(BASE_LIMIT if grammar is None else -1, max_tokens, stop, bool(ignore_eos), logprobs, lookup, grammar)
        if self.config.pooling is not None:
            raise UsageError(f"{self.path}: {NO_TEXT}")
        penalties = {"repeat_last_n": repeat_last_n, "presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty}
        surprise = {"mirostat": mirostat, "mirostat_tau": mirostat_tau, "mirostat_eta": mirostat_eta}
        more: dict[str, Any] = {**penalties, **surprise, "logit_bias": _biases(logit_bias)}
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed, **more)
        return complete(self._open(), self._ids(prompt), sampling, request)

    def generate_many(self, prompts: Sequence[str | Sequence[int]], *, seed: int = -1, **options: Any) -> list[Generation]:
        """Continue several texts together: all `Generation`s, finished; `text` of each is what it wrote. options: of `generate`.

        A step computes a token of each, and reads the weights once: eight texts take little longer than two. Each text is what it would be
        alone. With a seed, text i has seed + i. `load` with more `cache_tokens` lets more texts be there at once; others wait.
        """
        asked = given.prompts("prompts", prompts)
        given.number("seed", seed, -1, whole=True)
        texts = [self.generate(prompt, seed=seed if seed < 0 else seed + number, **options) for number, prompt in enumerate(asked)]
        left = list(texts)
        try:
            while left:
                left = [text for text in left if text.advance()]
        finally:
            for text in left:
                text.close()
        return texts

    def score(self, context: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> list[Scored]:
        """How likely each of some texts is after `context`: `logprobs`, natural logarithms, of each of its tokens; `greedy`: all are the
        likeliest.

        As texts: a continuation's tokens are those that the whole text has after as many as the context alone has. UsageError: nothing to
        score, or more than the context holds.
        """
        before = self._ids(context, "context")

        def after(text: str | list[int]) -> list[int]:
            if not isinstance(text, str) or not isinstance(context, str):
                return self.tokenizer.encode(text, bos=False) if isinstance(text, str) else text
            return self.tokenizer.encode(context + text)[len(before) :]

        return score_texts(self._open().scheduler, [(before, after(text)) for text in given.prompts("continuations", continuations)])

    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int = -1,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        logit_bias: Biases = None,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        shift: bool = True,
        lookup: int = 0,
        json_schema: JsonSchema = None,
        regex: str | None = None,
        **more: Any,
    ) -> Generation:
        """Answer the last of `messages`, dictionaries with `role` (system, user, assistant, tool) and `content`, a text or a list of parts.

        max_tokens  None or -1: until the model ends its answer; for a base model, which does not, None is 128 unless the answer has a form
        template    name of a built-in format, `model` (the file's own), or path of a Jinja template; None: what the file says
        template_args  variables for the template, as `enable_thinking`; with any, or with tools, None means the file's own
        tools       what the model may call, in the form that the template knows (most: JSON schemas); messages may then have `tool_calls`,
                    `tool_call_id`, `name`, `reasoning_content`. The answer is text: calls in it are not read
        shift       when the context is full, leave out the oldest turns; False: raise ContextFullError
        stop, logprobs, logit_bias, lookup, json_schema, regex  as in `generate`
        more        other fields of Sampling: repeat_penalty, presence_penalty, mirostat, ...

        What the last chat had alike is not computed again: add the answer and the next message to the list, and only those are.
        Text of a message never becomes a control token. UsageError: a value out of range or of a wrong type, or a message that is none.
        """
        new = checked_messages(messages)
        if new[-1].role == "assistant":
            raise UsageError("the last message is the assistant's: there is nothing to answer")
        if self.config.pooling is not None:
            raise UsageError(f"{self.path}: {NO_TEXT}")
        calls = any(message.role == "tool" or (message.given or {}).get("tool_calls") for message in new)
        wish = None if template is None else given.text("template", template)
        choice = choose(self._open().chat, wish, checked_args(template_args, tools), tools=calls)
        grammar = grammar_of(json_schema, regex)
        request = _request(-1 if choice.trained or grammar else BASE_LIMIT, max_tokens, stop, False, logprobs, lookup, grammar)
        if unknown := more.keys() - {field.name for field in fields(Sampling)}:
            raise TypeError(f"chat() got an unexpected keyword argument {min(unknown)!r}")
        sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed, logit_bias=_biases(logit_bias), **more)
        check_biases(sampling, self.tokenizer)
        sampler, written = Sampler(sampling), Written()
        return Generation(_answered(self, choice, new, sampler, shift, request, written), written, sampler, request)

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """Token ids of a text. special: names of control tokens in it become those tokens. bos: put the first token; None: as the model."""
        return self.tokenizer.encode(given.text("text", text), special=special, bos=bos)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids. special: show control tokens. UsageError: an id that there is not."""
        known = given.token_ids("ids", ids)
        if known and not 0 <= min(known) <= max(known) < self.tokenizer.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.tokenizer.vocab_size - 1}")
        return self.tokenizer.decode(known, skip_special=not special)

    def logits(self, prompt: str | Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """(vocab,) float32: the logits of the token after `prompt`. every: (tokens, vocab), after each of its tokens.

        As the model computes them: also those of unused tokens, which are never chosen.
        """
        ids, rows = self._ids(prompt), list[NDArray[np.float32]]()
        first = 0 if every else max(len(ids) - 1, 0)
        self._open().scheduler.finish([Reading(ids, lambda _, logits: rows.append(logits.copy()), first)])
        return np.concatenate(rows) if every else rows[0][0]

    def perplexity(self, text: str | Sequence[int], *, stride: int = 0) -> Score:
        """How well the model predicts a text: perplexity, its standard error, tokens. stride: see model/perplexity.py; 0: the context."""
        asked = given.prompt("text", text)
        ids = self.tokenizer.encode(asked) if isinstance(asked, str) else asked
        given.number("stride", stride, 0, whole=True)
        opened = self._open()
        return score(opened.scheduler, ids, self.context, stride or self.context, silent=opened.engine.silent)

    def embed(
        self, texts: str | Sequence[str], *, pooling: str | None = None, normalize: bool = True, prompt: str = ""
    ) -> NDArray[np.float32]:
        """(hidden,) float32 of a text, or (texts, hidden) of several. pooling: `last` or `mean`; None: as the model says.

        prompt is put before every text. UsageError: a model that is none for embeddings, and no pooling given.
        """
        many, before = given.texts("texts", texts), given.text("prompt", prompt)
        scheduler = self._open().scheduler
        vectors = embedding.embed(scheduler, self.tokenizer, many, pooling=pooling, normalize=normalize, prompt=before)
        return vectors[0] if isinstance(texts, str) else vectors

    def _ids(self, prompt: str | Sequence[int], name: str = "prompt") -> list[int]:
        asked = given.prompt(name, prompt)
        return prompt_ids(self.tokenizer, asked) if isinstance(asked, str) else asked

    def close(self) -> None:
        """End the model's threads and free its memory. Texts that are not finished end with an error. A second call does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.scheduler.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _request(
    default: int,
    max_tokens: int | None,
    stop: str | Sequence[str],
    ignore_eos: bool,
    logprobs: int | None,
    lookup: int,
    grammar: str | None,
) -> Request:
    limit = default if max_tokens is None else given.number("max_tokens", max_tokens, -1, whole=True)
    if logprobs is not None:
        given.number("logprobs", logprobs, 0, whole=True)
    given.number("lookup", lookup, 0, whole=True)
    return Request(limit, given.texts("stop", stop), None, ignore_eos, logprobs, lookup, grammar)


def _biases(logit_bias: Biases) -> tuple[tuple[int, float], ...]:
    if logit_bias is None:
        return ()
    if not isinstance(logit_bias, Mapping):
        raise given.wrong("logit_bias", logit_bias, "a dictionary, token id -> number")
    biases = (given.number("logit_bias", bias, -math.inf) for bias in logit_bias.values())
    return tuple(zip(given.token_ids("logit_bias", logit_bias), (min(max(float(b), -MOST_BIAS), MOST_BIAS) for b in biases), strict=True))
