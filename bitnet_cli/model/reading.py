"""Reading: texts whose tokens are given, as jobs of a scheduler. What is wanted is logits or states of each token from a place on."""

from collections.abc import Callable
from collections.abc import Sequence as Ids

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.model.engine import Row
from bitnet_cli.model.scheduler import Again, Job

Use = Callable[[int, NDArray[np.float32]], None]  # (number of the first token, logits or states of it and those that follow)


class Reading(Job):
    """A text that is read.

    use     gets what is wanted, in order, as it is computed: (tokens, vocab) or (tokens, hidden) float32, valid until it returns
    first   number of the first token whose logits are wanted; those before it may be known already
    states  states after the output norm are wanted, in place of logits
    """

    def __init__(self, ids: Ids[int], use: Use, first: int = 0, *, states: bool = False, salt: str = ""):
        super().__init__(ids, salt)
        self._use, self._next, self._states = use, first, states

    @property
    def known(self) -> Ids[int]:
        """As Job.known. What is wanted must be computed."""
        return self.ids[: self._next + 1]

    def row(self, most: int) -> Row:
        """As Job.row."""
        at = self.sequence.position
        ids = self.ids[at : at + most]
        return Row(self.sequence, ids, range(max(self._next - at, 0), len(ids)), states=self._states)

    def took(self, row: Row, found: NDArray[np.float32], again: Again, seconds: float) -> None:
        """As Job.took."""
        if len(found):
            self._use(self._next, found)
            self._next += len(found)
        self.done = self.sequence.position == len(self.ids)
