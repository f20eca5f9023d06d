"""What the routes and the thread that computes say to each other.

Job     one text to write, wholly checked: nothing in it can be wrong for the kernels
Events  Prompted, then Written as often as there is something new, then Ended or Failed
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from bitnet_cli.model.constraint import Constraint
from bitnet_cli.model.generate import Timings
from bitnet_cli.model.logprobs import TokenLogprob
from bitnet_cli.model.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """One text.

    prompt    token ids, at least one, all of the vocabulary
    limit     new tokens at most; -1: until the context is full
    ends      tokens that end it; None: those of the model
    logprobs  None: none; else of every new token, with so many of the likeliest ones
    echo      the same of every token of the prompt; None: none
    grammar   the form of the text (model/constraint.py); form: its state, for this text alone
    salt      texts share what they begin with alike only where their salts are equal (one for each API key)
    """

    prompt: Sequence[int]
    sampling: Sampling
    limit: int
    stop: Sequence[str] = ()
    ends: Collection[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: int | None = None
    grammar: str | None = None
    form: Constraint | None = None
    salt: bytes = b""


@dataclass(frozen=True)
class Prompted:
    """The prompt is computed. logprobs: of its tokens from the second one on, where the job asks for them."""

    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Written:
    """The text goes on. ids: new tokens, also those whose text is held back; logprobs: of each, where the job asks for them."""

    text: str
    ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True)
class Ended:
    """The text is whole. finish: `stop`, `length` or `cancelled`; stopped_by: the stop string that ended it."""

    finish: str
    timings: Timings = field(default_factory=Timings)
    stopped_by: str | None = None


@dataclass(frozen=True)
class Failed:
    """Nothing more comes."""

    error: BaseException


Event = Prompted | Written | Ended | Failed
Tell = Callable[[Event], None]  # called by the thread that computes; must not block and not raise
