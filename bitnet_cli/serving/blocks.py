"""An answer as a row of blocks: thoughts, text, calls of tools. What OpenAI's responses and Anthropic's messages share.

Blocks.chunks(event)    (name, JSON) of the events of a stream: what began, grew and ended
Blocks.body()           all of it
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from bitnet_cli.serving.answers import Answer, new_id
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.jobs import Ended, Event
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.serving.stream import COMMENT, encode
from bitnet_cli.text.tokenizer import Tokenizer

Named = tuple[str, dict[str, Any]]
BLOCK_OF = {"reasoning": "reasoning", "content": "content", "call": "call", "arguments": "call"}


@dataclass
class Block:
    """kind: `reasoning`, `content` or `call`; text: its text, or arguments as JSON; name, call: of a call."""

    kind: str
    index: int
    id: str
    text: str = ""
    name: str = ""
    call: str = ""


class Blocks(ABC):
    """Of one text; what the events are called, a subclass says."""

    prefixes: ClassVar = {"reasoning": "rs", "content": "msg", "call": "fc"}

    def __init__(self, model: str, wanted: Wanted, tokenizer: Tokenizer):
        assert wanted.chat is not None
        self.model, self.wanted, self.tokenizer = model, wanted, tokenizer
        self.answer = Answer(0, wanted.chat.reader())
        self.blocks: list[Block] = []

    @property
    def answers(self) -> list[Answer]:
        return [self.answer]

    def take(self, index: int, event: Event) -> None:
        """One event of the text, where all is wanted at once."""
        del index
        for _ in self.chunks(event):
            pass

    async def stream(self, events: AsyncIterator[tuple[int, Event] | None]) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        for name, value in self.begun():
            yield self.encode(name, value)
        try:
            async for one in events:
                if one is None:
                    yield COMMENT
                    continue
                for name, value in self.chunks(one[1]):
                    yield self.encode(name, value)
        except ApiError as error:
            name, value = self.failed(error)
            yield self.encode(name, value)

    def chunks(self, event: Event) -> Iterator[Named]:
        """What is new."""
        for kind, text in self.answer.take(event):
            if kind == "call" or not self.blocks or self.blocks[-1].kind != BLOCK_OF[kind]:
                yield from self._begin(BLOCK_OF[kind])
            if kind != "call":
                self.blocks[-1].text += text
                yield from self.grown(self.blocks[-1], text)
        if isinstance(event, Ended):
            yield from self._end_last()
            yield from self.ended()

    def _begin(self, kind: str) -> Iterator[Named]:
        yield from self._end_last()
        block = Block(kind, len(self.blocks), new_id(self.prefixes[kind]))
        if kind == "call":
            call = self.answer.calls[sum(one.kind == "call" for one in self.blocks)]
            block.name, block.call = call["name"], call["id"]
        self.blocks.append(block)
        yield from self.opened(block)

    def _end_last(self) -> Iterator[Named]:
        if self.blocks:
            yield from self.closed(self.blocks[-1])

    def encode(self, name: str, value: dict[str, Any]) -> bytes:
        """One event of the stream."""
        return encode({"type": name, **value}, name)

    @abstractmethod
    def begun(self) -> Iterator[Named]:
        """Before anything is known."""

    @abstractmethod
    def opened(self, block: Block) -> Iterator[Named]:
        """A block begins."""

    @abstractmethod
    def grown(self, block: Block, text: str) -> Iterator[Named]:
        """It has more text."""

    @abstractmethod
    def closed(self, block: Block) -> Iterator[Named]:
        """It is whole."""

    @abstractmethod
    def ended(self) -> Iterator[Named]:
        """All of them are."""

    @abstractmethod
    def failed(self, error: ApiError) -> Named:
        """Nothing more comes."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """All of it."""
