"""A conversation: messages in, an answer out as it comes.

The KV cache holds the chat as tokens, and answers stay in it as the model gave them, so a turn computes only what is new: the end
of the last answer, the message, and the words that ask for the next. When the context is full, the oldest turns are left out (the system
message stays), or the turn is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from bitnet_cli.errors import UsageError
from bitnet_cli.model.completion import Written, watch
from bitnet_cli.model.constraint import constraint
from bitnet_cli.model.generate import TextPlan, generate
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Progress
from bitnet_cli.text.chat.templates import Message, Template, encode_chat, end_ids
from bitnet_cli.text.stop import StopStrings
from bitnet_cli.text.stream import IncrementalDecoder
from bitnet_cli.text.tokenizer import Tokenizer

BASE_LIMIT = 128  # tokens of an answer by a model that does not know when to end one
ROOM = 256  # tokens that a turn leaves for the answer; a quarter of a context under 1,024


class ContextFullError(UsageError):
    """The chat does not fit, and may not be shortened, or is one message only."""


class Chat:
    """Not for two threads at once.

    messages  the whole conversation, a system message first if there is one
    first     index of the oldest turn that the model still sees
    shift     whether the oldest turns may be left out
    draft     tokens that prompt lookup guesses ahead at most; 0: none
    stops     strings that end an answer, beside those of the template
    grammar   the form of an answer (constraint.py); None: any
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        template: Template,
        *,
        shift: bool = True,
        messages: Iterable[Message] = (),
        draft: int = 0,
        stops: Iterable[str] = (),
        grammar: str | None = None,
    ):
        self.engine, self.tokenizer, self.template, self.shift = scheduler.engine, tokenizer, template, shift
        self.messages = list(messages)
        self.first = 0
        self.draft, self.stops, self.grammar = draft, tuple(stops), grammar
        self._scheduler = scheduler
        self._last = Written()  # the last answer
        self._ends = end_ids(tokenizer)

    @property
    def finish(self) -> str:
        """Why the last answer ended: stop, length, interrupted."""
        return self._last.finish

    @property
    def system(self) -> str | None:
        """The system message."""
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, Message("system", text))

    def seen(self) -> list[Message]:
        """The messages that the model sees."""
        head = 1 if self.system is not None else 0
        return [*self.messages[:head], *self.messages[max(self.first, head) :]]

    def tokens(self) -> int:
        """Tokens of what the model sees."""
        return len(encode_chat(self.tokenizer, self.template, self.seen(), ask=False)) if self.messages else 0

    def clear(self) -> None:
        """Forget everything but the system message."""
        del self.messages[1 if self.system is not None else 0 :]
        self.first = 0

    def undo(self) -> Message | None:
        """Take back the last message of the user and what followed it; returns it."""
        at = next((i for i in reversed(range(len(self.messages))) if self.messages[i].role == "user"), None)
        if at is None:
            return None
        message = self.messages[at]
        del self.messages[at:]
        self.first = min(self.first, len(self.messages))
        return message

    def answer(
        self,
        sampler: Sampler,
        limit: int = -1,
        *,
        written: Written | None = None,
        progress: Progress | None = None,
        logprobs: int | None = None,
    ) -> Generator[str, None, None]:
        """Yield the text of the next message as it comes, without spaces around it, and add it to `messages`.

        A part is added too, where the generator is closed, or Ctrl-C or an error ends it. limit: most tokens; -1: until the context
        is full; logprobs: as in completion.Request. ContextFullError: nothing was done.
        """
        w = written if written is not None else Written()
        prompt = self._fitted(limit)
        words = _Words([*self.template.stops, *self.stops])
        form = constraint(self.tokenizer, self.grammar, self._ends)
        self._last, w.finish = w, "interrupted"

        def plan() -> TextPlan:
            left = limit if limit < 0 else limit - len(w.ids)
            return TextPlan(left, self._ends, self.draft, progress, watch(w.logprobs, logprobs), form, self.engine.silent)

        try:
            yield from self._written(prompt, limit, sampler, words, w, plan)
            if not w.closed:
                w.finish = "stop" if words.stopped else w.timings.finish
                w.stopped_by = words.stopped if words.stopped in self.stops else None
        finally:
            if w.ids or w.finish == "stop":
                self.messages.append(Message("assistant", words.text, self._kept(w.ids, words)))

    def _written(
        self, prompt: list[int], limit: int, sampler: Sampler, words: _Words, written: Written, plan: Callable[[], TextPlan]
    ) -> Generator[str, None, None]:
        """Generates into `words` and `written`. Where the context gets full in the middle, goes on with fewer old turns."""
        ids, t = written.ids, written.timings
        decoded = IncrementalDecoder(self.tokenizer, at_start=False)
        while True:
            for token in generate(self._scheduler, prompt, sampler, plan(), t):
                ids.append(token)
                yield words.push(decoded.push(token))
                if words.stopped or written.closed:
                    return
            full = t.finish == "length" and (limit < 0 or len(ids) < limit)
            if not full or not self.shift or not self._leave_out_one():
                break
            prompt = self._fitted(limit) + ids
            if len(prompt) >= self.engine.context:
                break
            t.finish, t.new_tokens = "length", 0
        yield words.push(decoded.finish(), last=True)

    def _fitted(self, limit: int) -> list[int]:
        """Ids of what the model sees, and the beginning of an answer, with room for it."""
        context = self.engine.context
        room = min(ROOM, context // 4, limit if limit > 0 else context)
        ids = encode_chat(self.tokenizer, self.template, self.seen())
        if len(ids) + room <= context:
            return ids
        if self.shift:
            # Down to a half: one turn fewer each time would compute nearly the whole chat again in each turn.
            while len(ids) > context // 2 and self._leave_out_one():
                ids = encode_chat(self.tokenizer, self.template, self.seen())
        if len(ids) >= context or (not self.shift and len(ids) + room > context):
            raise ContextFullError(f"the chat has {len(ids)} tokens, and the context holds {context}, of which {room} are for the answer")
        return ids

    def _leave_out_one(self) -> bool:
        """Leave out the oldest turn: a message of the user and what follows it. False where it is the only one."""
        head = 1 if self.system is not None else 0
        users = [i for i in range(max(self.first, head) + 1, len(self.messages)) if self.messages[i].role == "user"]
        if users:
            self.first = users[0]
        return bool(users)

    def _kept(self, ids: Sequence[int], words: _Words) -> tuple[int, ...]:
        """The ids of the answer without what a stop text cut off."""
        if words.stopped is None:
            return tuple(ids)
        decoded, length, wanted = IncrementalDecoder(self.tokenizer, at_start=False), 0, len(words.raw)
        for count, token in enumerate(ids):
            length += len(decoded.push(token))
            if length > wanted:
                return tuple(ids[:count])  # at most one token's beginning is lost
        return tuple(ids)


class _Words:
    """Text of an answer: without the spaces around it, up to a stop text. What may be the beginning of either is held back.

    text     what has been given out
    raw      the same with the spaces around it
    """

    def __init__(self, stops: Sequence[str]):
        self._stops, self._spaces = StopStrings(stops), ""
        self.text = self.raw = ""

    @property
    def stopped(self) -> str | None:
        """The stop text that has come, if any."""
        return self._stops.found

    def push(self, new: str, *, last: bool = False) -> str:
        """What may be shown now."""
        ready = self._stops.push(new) + (self._stops.finish() if last else "")
        self.raw += ready
        ready = self._spaces + ready if self.text else ready.lstrip()
        shown = ready.rstrip()
        self._spaces = ready[len(shown) :]
        self.text += shown
        return shown


def resumed(old: Chat, new: Sequence[Message]) -> tuple[list[Message], int]:
    """`new`, with the ids that `old` knows of the same messages, from the first one on; and which turn is then the oldest seen."""
    result = list(new)
    for i, (before, now) in enumerate(zip(old.messages, new, strict=False)):
        if (before.role, before.content, before.given) != (now.role, now.content, now.given):
            return result, old.first if old.first <= i else 0
        result[i] = before
    return result, min(old.first, len(result) - 1)
