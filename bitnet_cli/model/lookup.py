"""Guesses of the next tokens from the text itself (prompt lookup decoding): what followed the last few tokens when they came before.

In: the ids of a text, as they come. Out: a draft of some ids that may follow. The decoder computes a whole draft in one step, and every
token is still chosen from its own logits: a wrong guess costs time and changes nothing. Good where a text repeats what stands in it
(summaries, corrections, code), useless elsewhere.
"""

from collections.abc import Iterable, Sequence

LONGEST, SHORTEST = 4, 2  # tokens that must agree; a single one agrees by chance too often
START = 2  # tokens of a first draft


class Lookup:
    """Remembers where each run of LONGEST .. SHORTEST tokens came last. `most`: tokens of a draft at most."""

    def __init__(self, most: int):
        self._most = most
        self._size = min(START, most)
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # run of tokens -> place of what followed it

    def extend(self, ids: Iterable[int]) -> None:
        """The text goes on."""
        for token in ids:
            # Runs that end before this token: now it is known what follows them.
            for length in range(SHORTEST, LONGEST + 1):
                if len(self._ids) >= length:
                    self._after[tuple(self._ids[-length:])] = len(self._ids)
            self._ids.append(token)

    def draft(self, room: int) -> Sequence[int]:
        """At most `room` tokens that may come next; none where the last tokens are new."""
        count = min(self._size, room)
        if count > 0:
            for length in range(min(LONGEST, len(self._ids)), SHORTEST - 1, -1):
                place = self._after.get(tuple(self._ids[-length:]))
                if place is not None:
                    return self._ids[place : place + count]
        return []

    def learn(self, drafted: int, right: int) -> None:
        """How a draft did: the next one is longer after one that was right, and shorter after one that was not."""
        if right == drafted:
            self._size = min(2 * self._size, self._most)
        elif right < drafted:
            self._size = max(right + 1, START) if right else max(self._size // 2, 1)
