"""A program for test_same_text.py: what models compute in this process, whose environment chooses the instruction set -> hashes, as JSON.

    python golden_hashes.py THREADS NAME=FILE...        THREADS: 1, or 1,2: one after the other, of which each gets its hashes

Of every model: logits of a prompt that is read at once, 1,000 tokens of greedy text and as many of sampled text, log-probabilities, and
embeddings. A text that fills its context begins again.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from bitnet_kernels import isa

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import head
from bitnet_cli.model.embedding import normalized, pooled
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.logprobs import target_logprobs, token_logprob
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.model.sequence import Sequence

LENGTH = 1000  # tokens of a text
SAMPLED = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(seed=1),
    "surprise": Sampling(seed=2, mirostat=2, repeat_penalty=1.1),  # all logits, and probabilities of all tokens
}
SHORT = 100  # tokens, where all logits are needed of each


def digest(values: Any) -> str:
    """A hash of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def prompt(vocab: int, count: int) -> list[int]:
    return [1 + 37 * i * i % (vocab - 8) for i in range(count)]


def text(sequence: Sequence, sampling: Sampling, count: int) -> list[int]:
    """`count` tokens after a short prompt, which begins again where the context is full."""
    start, ids, sampler = prompt(sequence.engine.config.vocab, 12), list[int](), Sampler(sampling)
    sampler.silence(sequence.engine.silent)
    while len(ids) < count:
        sequence.rewind(0)
        logits = sequence.feed(start, sampler.top)
        for _ in range(min(count - len(ids), sequence.engine.context - len(start))):
            ids.append(sampler.choose(logits))
            logits = sequence.feed(ids[-1:], sampler.top) if sequence.position < sequence.engine.context else logits
    return ids


def hashes(path: str, threads: int) -> dict[str, str]:
    with open_gguf(path) as file:
        engine = Engine(file, threads=threads)
        sequence = Sequence(engine)
        ids = prompt(engine.config.vocab, 150)
        logits, found = sequence.feed_all(ids), dict[str, str]()
        found["logits"] = digest(logits)
        found["log-probabilities"] = digest(target_logprobs(logits, ids[1:], engine.silent)[0])
        named = [token_logprob(row, token, 5) for row, token in zip(logits[:20], ids[1:], strict=False)]
        found["likeliest"] = digest([value for one in named for value in (one.logprob, *(number for pair in one.top for number in pair))])
        sequence.rewind(0)
        states = sequence.states(ids)
        found["states"], found["embedding"] = digest(states), digest(normalized(pooled(states, "mean")))
        for name, sampling in SAMPLED.items():
            found[name] = digest(np.array(text(sequence, sampling, SHORT if sampling.mirostat else LENGTH), np.int64))
        engine.close()
    return found


def main() -> None:
    threads, *named = sys.argv[1:]
    head.SMALLEST = 1 << 19  # weights: so a small model's head has planes
    result = {}
    for number in map(int, threads.split(",")):
        result[str(number)] = {name: hashes(path, number) for name, _, path in (pair.partition("=") for pair in named)}
    json.dump({"isa": isa.chosen(), "threads": result}, sys.stdout)


if __name__ == "__main__":
    main()
