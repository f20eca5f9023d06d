"""How tokens are chosen: names, defaults and ranges, for the command line, Python and the server alike. sampler.py does it.

No NumPy here: options import it.
"""

import math
from dataclasses import dataclass

from bitnet_cli.errors import UsageError, option
from bitnet_cli.model import given

RANGES: dict[str, tuple[float, float]] = {  # both ends included; whole numbers where the default is one
    "temperature": (0.0, 100.0),
    "top_k": (0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "seed": (-1, 2**63 - 1),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
}


@dataclass(frozen=True)
class Sampling:
    """How to choose. Raises UsageError for a value out of range."""

    temperature: float = 0.8
    top_k: int = 40  # 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = -1  # -1: random
    repeat_last_n: int = 64  # tokens that the penalties look back at; 0: none, -1: all
    presence_penalty: float = 0.0  # taken off the logit of every recent token
    frequency_penalty: float = 0.0  # taken off once for each time that the token was there
    mirostat: int = 0  # 2: Mirostat 2.0 in place of top-k, top-p and min-p
    mirostat_tau: float = 5.0  # the surprise of a token that is aimed at, bits
    mirostat_eta: float = 0.1  # how quickly
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit), each id once

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            given.number(name, getattr(self, name), low, high, whole=isinstance(getattr(Sampling, name), int))
        if len({token for token, _ in self.logit_bias}) != len(self.logit_bias):
            raise UsageError(f"{option('logit_bias')} names a token twice")
        for token, bias in self.logit_bias:
            if token < 0 or not math.isfinite(bias):
                raise UsageError(f"{option('logit_bias')}: token {token} with {bias}, expected a token id and a number")
        if self.mirostat not in (0, 2):
            raise given.wrong("mirostat", self.mirostat, "0 (off) or 2 (Mirostat 2.0)")

    @property
    def penalises(self) -> bool:
        """Whether recent tokens change anything."""
        changes = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
        return changes and self.repeat_last_n != 0
