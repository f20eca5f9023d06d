"""Guesses of the next tokens from the text itself (prompt lookup decoding): what followed the last few tokens when they came before.

In: the ids of a text, as they come, and what steps cost. Out: a draft of some ids that may follow. A whole draft is computed in
one step, and every token is still chosen from its own logits: a wrong guess costs time and changes nothing. Good where a text repeats
what stands in it (summaries, corrections, code), useless elsewhere.

Every token that comes tells, for nothing, whether a draft would have been right. From that share p and from the time of the steps so far, a
draft is as long as promises most tokens a second, and there is none where single steps are quicker:

    tokens that a draft of k brings     1 + p + p² + .. + p^k
    what it costs                       a step of k + 1 tokens with the logits of each
"""

from collections.abc import Iterable, Sequence

LONGEST, SHORTEST = 4, 2  # tokens that must agree; a single one agrees by chance too often
SIZES = (1, 3, 7, 15, 31, 63)  # tokens of a draft: with the one before it, steps that the kernels do best (docs/log.md#many-rows)
MEMORY = 0.85  # weight of the past in the share of right guesses, for each new one
GAIN = 1.1  # times as many tokens a second as single steps must be promised; 0: draft whenever there is something to
GUESS = 0.25  # of a single step: what each further token of a step is thought to cost before one was measured


class Lookup:
    """Remembers where each run of LONGEST .. SHORTEST tokens came last. `most`: tokens of a draft at most."""

    def __init__(self, most: int):
        self._sizes = sorted({*(size for size in SIZES if size < most), most})
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # run of tokens -> place of what followed it
        self._right = 0.5  # share of right guesses, the latest counted most
        self._guess: int | None = None  # of the token that comes next
        self._steps: dict[int, float] = {}  # tokens of a step -> seconds, with the logits of each
        self._single = 0.0  # seconds of a step of one token

    def extend(self, ids: Iterable[int]) -> None:
        """The text goes on."""
        for token in ids:
            if self._guess is not None:
                self._right = MEMORY * self._right + (1 - MEMORY) * (self._guess == token)
            # Runs that end before this token: now it is known what follows them.
            for length in range(SHORTEST, LONGEST + 1):
                if len(self._ids) >= length:
                    self._after[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(token)
            place = self._place()
            self._guess = None if place is None else self._ids[place]

    def draft(self, room: int) -> Sequence[int]:
        """At most `room` tokens that may come next; none where the last tokens are new, or where it would not pay."""
        place = self._place()
        if place is None:
            return []
        there = self._ids[place : place + min(room, self._sizes[-1])]
        fitting = sorted({min(size, len(there)) for size in self._sizes}) if there else []
        best = max(fitting, key=self._promise, default=0)
        return there[:best] if best and self._promise(best) * self._single >= GAIN else []

    def _place(self) -> int | None:
        """Of what followed the longest run that ends the text, when that came before."""
        for length in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
            place = self._after.get(tuple(self._ids[-length:]))
            if place is not None:
                return place
        return None

    def _promise(self, size: int) -> float:
        """Tokens a second that a draft promises."""
        tokens = sum(self._right**count for count in range(size + 1))
        return tokens / max(self._cost(size + 1), 1e-9)

    def _cost(self, tokens: int) -> float:
        """Seconds of a step: measured, or on the line through a single step and the nearest size that was measured."""
        known = self._steps.get(tokens)
        if known is not None:
            return known
        nearest = min(self._steps, key=lambda size: abs(size - tokens), default=None)
        each = GUESS * self._single if nearest is None else max(self._steps[nearest] - self._single, 0.0) / (nearest - 1)
        return self._single + each * (tokens - 1)

    def took(self, seconds: float, tokens: int = 1) -> None:
        """What a step of so many tokens cost, with the logits of each."""
        if tokens == 1:
            self._single = _smooth(self._single, seconds)
        else:
            self._steps[tokens] = _smooth(self._steps.get(tokens, 0.0), seconds)


def _smooth(before: float, now: float) -> float:
    """A mean in which the latest counts a quarter; outliers (another process, a table that is built) count as twice the mean."""
    return 0.75 * before + 0.25 * min(now, 2 * before) if before else now
