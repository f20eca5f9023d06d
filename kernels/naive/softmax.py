"""Twin of kernels/softmax.py."""

import numpy as np
from numpy.typing import NDArray


def sums_of_exp(logits: NDArray[np.float32], largest: NDArray[np.float32]) -> NDArray[np.float64]:
    """(tokens, vocab), (tokens,) -> (tokens,): sum over the vocabulary of exp(logit - largest)."""
    sums: NDArray[np.float64] = np.exp((logits - largest[:, None]).astype(np.float64)).sum(1)
    return sums
