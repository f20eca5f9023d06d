"""Texts -> embeddings: one vector a text, from what the last layer says of its tokens.

    tokens of the text, as the file wants them (with EOS where it says so)      token_ids
    -> states after the output norm, (tokens, hidden)                           reading.Reading
    -> the last one, or their mean                                              pooling
    -> divided by its length (L2)

What is done when a model has no pooling of its own, and with texts that are too long, is up to the caller. Short texts share steps;
a text's embedding is the same in any company.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.reading import Reading
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.text.tokenizer import Tokenizer


def token_ids(tokenizer: Tokenizer, text: str, limit: int) -> tuple[list[int], int]:
    """Ids of a text, and how many were cut off so that at most `limit` are left: from the end, but not the EOS that the model expects.

    UsageError: a text without tokens.
    """
    ids = tokenizer.encode(text, eos=None)
    if not ids:
        raise UsageError("a text without tokens: this model puts none before or after an empty text")
    cut = max(0, len(ids) - limit)
    if cut:
        ids = [*ids[: limit - 1], ids[-1] if tokenizer.add_eos else ids[limit - 1]]
    return ids, cut


def pooled(states: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    """(tokens, hidden) float32 -> (rows, hidden) float32: one row for `last` and `mean`, all for `none`."""
    if pooling == "mean":
        mean: NDArray[np.float32] = states.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)
        return mean
    return states[-1:] if pooling == "last" else states


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, hidden) float32, each divided by its length; a row of zeros stays."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(-1, keepdims=True))
    result: NDArray[np.float32] = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return result


def embed_ids(
    scheduler: Scheduler, texts: Sequence[Sequence[int]], pooling: str, normalize: bool, progress: Callable[[int, int], None] | None = None
) -> list[NDArray[np.float32]]:
    """Embedding of each text: (1, hidden) float32, or (tokens, hidden) with pooling `none`. progress(done, all): texts.

    BitnetError: the model computed what is no number.
    """
    rows: list[list[NDArray[np.float32]]] = [[] for _ in texts]

    def keeping(number: int) -> Reading:
        return Reading(texts[number], lambda _, states: rows[number].append(states.copy()), states=True)

    done = 0

    def count(_: object) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(texts))

    scheduler.finish([keeping(number) for number in range(len(texts))], count)
    vectors = [pooled(np.concatenate(parts), pooling) for parts in rows]
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise BitnetError("the model produced embeddings that are not finite")
    return [normalized(vector) for vector in vectors] if normalize else vectors


def embed(
    scheduler: Scheduler,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    pooling: str | None = None,
    normalize: bool = True,
    prompt: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """(len(texts), hidden) float32, a row a text; texts longer than the engine's context are cut (`token_ids`).

    pooling: `last` or `mean`; None: the model's own. prompt: put before every text. progress(done, all) is called after every text.
    UsageError: no such pooling, or the model has none; a text without tokens.
    """
    engine = scheduler.engine
    pooling = pooling or engine.config.pooling
    if pooling not in ("last", "mean"):
        raise UsageError(f"pooling {pooling or 'is not said by this model, which'}: expected last or mean")
    ids = [token_ids(tokenizer, prompt + text, engine.context)[0] for text in texts]
    rows = embed_ids(scheduler, ids, pooling, normalize, progress)
    return np.concatenate(rows) if rows else np.empty((0, engine.config.hidden), np.float32)
