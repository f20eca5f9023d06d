"""Events of the texts of one request -> bodies of chat and text completions, whole or as chunks, as OpenAI's API has them.

    Answer.take(event)    what is new of one choice
    Chat, Completion      the same as JSON: `chunks` while it comes, `body` when all of it is there

`timings` has the names of llama.cpp's server.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

from bitnet_cli import __version__
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.logprobs import TokenLogprob
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.jobs import Ended, Event, Prompted, Written
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.serving.stream import COMMENT, encode
from bitnet_cli.text.chat.calls import Part, Reader
from bitnet_cli.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0  # what JSON can say of a probability of 0


def new_id(kind: str) -> str:
    """An id that nobody can guess."""
    return f"{kind}-{secrets.token_hex(12)}"


class Answer:
    """One choice, as far as it is known.

    content, reasoning  its text so far
    calls               of tools: id, name, arguments; told: how many of them a stream has begun to tell
    ids                 its tokens
    logprobs            of each of them, where asked for; prompted: of the prompt's, from the second one on
    finish              why it ended: stop, length, tool_calls; empty before
    """

    def __init__(self, index: int, reader: Reader | None):
        self.index, self._reader = index, reader
        self.content = self.reasoning = self.finish = self.raw = ""
        self.calls: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.thought_tokens = self.told = 0
        self.logprobs: list[TokenLogprob] = []
        self.prompted: list[TokenLogprob] = []
        self.timings = Timings()
        self.stopped_by: str | None = None

    def take(self, event: Event) -> list[Part]:
        """What an event adds."""
        if isinstance(event, Prompted):
            self.prompted += event.logprobs
            return []
        if isinstance(event, Written):
            self.ids += event.ids
            self.logprobs += event.logprobs
            self.raw += event.text
            parts = self._reader.push(event.text) if self._reader else [Part("content", event.text)]
            if parts and all(part.kind == "reasoning" for part in parts):
                self.thought_tokens = len(self.ids)
            return self._add(parts)
        assert isinstance(event, Ended)
        parts = self._add(self._reader.finish()) if self._reader else []
        self.timings, self.stopped_by = event.timings, event.stopped_by
        self.finish = "tool_calls" if self.calls and event.finish == "stop" else event.finish
        return parts

    def _add(self, parts: Sequence[Part]) -> list[Part]:
        for kind, text in parts:
            if kind == "content":
                self.content += text
            elif kind == "reasoning":
                self.reasoning += text
            elif kind == "call":
                self.calls.append({"id": new_id("call"), "name": text, "arguments": ""})
            else:
                self.calls[-1]["arguments"] += text
        return [part for part in parts if part.text]


def usage_of(answers: Sequence[Answer], wanted: Wanted) -> dict[str, Any]:
    """Tokens of a request; a prompt counts once, however many choices it has."""
    new = sum(len(answer.ids) for answer in answers)
    cached = sum(answer.timings.cached_tokens for answer in answers[:: wanted.n])
    return {
        "prompt_tokens": wanted.prompt_tokens,
        "completion_tokens": new,
        "total_tokens": wanted.prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(answer.thought_tokens for answer in answers)},
    }


def timings_of(t: Timings) -> dict[str, Any]:
    """Of one text, in milliseconds and tokens/s."""
    return {
        "cache_n": t.cached_tokens,
        "prompt_n": t.fed_tokens,
        "prompt_ms": round(1000 * t.prefill_seconds, 3),
        "prompt_per_second": round(t.prefill_rate, 3),
        "predicted_n": t.new_tokens,
        "predicted_ms": round(1000 * t.decode_seconds, 3),
        "predicted_per_second": round(t.decode_rate, 3),
    }


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; where it is no whole character, its bytes, as OpenAI writes them: `bytes:\\xe2\\x82`."""
    data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _shown(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def chat_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
        return {"token": token_text(tokenizer, token), "logprob": _shown(logprob), "bytes": list(data)}

    content = [one(entry.id, entry.logprob) | {"top_logprobs": [one(*top) for top in entry.top]} for entry in found]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, found: Sequence[TokenLogprob], offset: int, first: int | None = None) -> dict[str, Any]:
    """`logprobs` of a text completion; first: a token before them, of which no probability is known."""
    ids = ([] if first is None else [first]) + [entry.id for entry in found]
    tokens, offsets = [token_text(tokenizer, token) for token in ids], [offset]
    for token, text in zip(ids, tokens, strict=True):
        offsets.append(offsets[-1] + (0 if token in tokenizer.special_ids else len(text)))
    unknown: list[None] = [] if first is None else [None]
    return {
        "tokens": tokens,
        "token_logprobs": [*unknown, *(_shown(entry.logprob) for entry in found)],
        "top_logprobs": [*unknown, *(_top(tokenizer, entry) for entry in found)],
        "text_offset": offsets[:-1],
    }


def _top(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by their texts; of two with one text, the likelier."""
    found: dict[str, float] = {}
    for token, logprob in entry.top:
        found.setdefault(token_text(tokenizer, token), _shown(logprob))
    found.setdefault(token_text(tokenizer, entry.id), _shown(entry.logprob))
    return found


class Bodies(ABC):
    """Of all choices of a request."""

    kind, object = "cmpl", "text_completion"

    def __init__(self, model: str, wanted: Wanted, tokenizer: Tokenizer):
        self.wanted, self.tokenizer = wanted, tokenizer
        self.answers = [Answer(i, wanted.chat.reader() if wanted.chat else None) for i in range(len(wanted.jobs))]
        self._head = {"id": new_id(self.kind), "created": int(time.time()), "model": model, "system_fingerprint": f"bitnet-{__version__}"}

    def take(self, index: int, event: Event) -> None:
        """One event of a text, where all is wanted at once."""
        self.answers[index].take(event)

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """All of it."""

    async def stream(self, events: AsyncIterator[tuple[int, Event] | None]) -> AsyncGenerator[bytes, None]:
        """Server-sent events, the last one `[DONE]`, or an error."""
        for chunk in self.first():
            yield encode(chunk)
        try:
            async for one in events:
                if one is None:
                    yield COMMENT
                else:
                    for chunk in self.chunks(*one):
                        yield encode(chunk)
        except ApiError as error:
            yield encode(error.body())
            return
        for chunk in self.last():
            yield encode(chunk)
        yield encode("[DONE]")

    def first(self) -> Iterator[dict[str, Any]]:
        """What is sent before anything is known."""
        return iter(())

    @abstractmethod
    def chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """What is new."""

    def _chunk(self, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
        usage = {"usage": None} if self.wanted.usage else {}
        return {**self._head, "object": self.object, "choices": [choice], **usage, **more}

    def last(self) -> Iterator[dict[str, Any]]:
        """After all others, where it is asked for: how many tokens it was."""
        if self.wanted.usage:
            yield {**self._head, "object": self.object, "choices": [], "usage": usage_of(self.answers, self.wanted)}

    def _body(self, object_: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage, timings = usage_of(self.answers, self.wanted), timings_of(self.answers[0].timings)
        return {**self._head, "object": object_, "choices": choices, "usage": usage, "timings": timings}


class Chat(Bodies):
    """Of /v1/chat/completions."""

    kind, object = "chatcmpl", "chat.completion.chunk"

    def first(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        for answer in self.answers:
            yield self._chunk(
                {"index": answer.index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            )

    def chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """What is new."""
        answer = self.answers[index]
        parts = answer.take(event)
        new = chat_logprobs(self.tokenizer, event.logprobs) if isinstance(event, Written) and event.logprobs else None
        if new and not parts:
            parts = [Part("content", "")]
        for part in parts:
            yield self._chunk({"index": index, "delta": self._delta(answer, part), "logprobs": new, "finish_reason": None})
            new = None
        if isinstance(event, Ended):
            choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": answer.finish}
            yield self._chunk(choice, timings=timings_of(answer.timings))

    @staticmethod
    def _delta(answer: Answer, part: Part) -> dict[str, Any]:
        if part.kind == "content":
            return {"content": part.text}
        if part.kind == "reasoning":
            return {"reasoning_content": part.text}
        if part.kind == "call":
            call = answer.calls[answer.told]
            answer.told += 1
            function = {"name": call["name"], "arguments": ""}
            return {"tool_calls": [{"index": answer.told - 1, "id": call["id"], "type": "function", "function": function}]}
        return {"tool_calls": [{"index": answer.told - 1, "function": {"arguments": part.text}}]}

    def body(self) -> dict[str, Any]:
        """All of it."""
        choices = []
        for answer in self.answers:
            message: dict[str, Any] = {"role": "assistant", "content": answer.content if answer.content or not answer.calls else None}
            if answer.reasoning:
                message["reasoning_content"] = answer.reasoning
            if answer.calls:
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                    for call in answer.calls
                ]
            asked = self.wanted.jobs[answer.index].logprobs is not None
            logprobs = chat_logprobs(self.tokenizer, answer.logprobs) if asked else None
            choices.append({"index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish})
        return self._body("chat.completion", choices)


class Completion(Bodies):
    """Of /v1/completions."""

    def first(self) -> Iterator[dict[str, Any]]:
        """What is sent before anything is known: nothing."""
        return iter(())

    def chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """What is new."""
        answer, job = self.answers[index], self.wanted.jobs[index]
        offset = len(self._echoed(index)) + len(answer.raw)
        parts = answer.take(event)
        text, logprobs = "".join(part.text for part in parts), None
        if isinstance(event, Prompted):
            text = self._echoed(index)
            logprobs = text_logprobs(self.tokenizer, event.logprobs, 0, job.prompt[0]) if job.echo is not None else None
        elif isinstance(event, Written) and job.logprobs is not None:
            logprobs = text_logprobs(self.tokenizer, event.logprobs, offset)
        if text or logprobs:
            yield self._chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})
        if isinstance(event, Ended):
            choice = {"index": index, "text": "", "logprobs": None, "finish_reason": answer.finish}
            yield self._chunk(choice, timings=timings_of(answer.timings))

    def _echoed(self, index: int) -> str:
        return self.wanted.echoed[index] if self.wanted.echoed else ""

    def body(self) -> dict[str, Any]:
        """All of it."""
        choices = []
        for answer in self.answers:
            job, before = self.wanted.jobs[answer.index], self._echoed(answer.index)
            logprobs = None
            if job.logprobs is not None:
                first = job.prompt[0] if job.echo is not None else None
                logprobs = text_logprobs(self.tokenizer, [*answer.prompted, *answer.logprobs], 0, first)
            choice = {"index": answer.index, "text": before + answer.content, "logprobs": logprobs, "finish_reason": answer.finish}
            choices.append(choice)
        return self._body("text_completion", choices)
