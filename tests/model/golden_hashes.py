"""A program for test_same_text.py: what models compute in this process, whose environment chooses the instruction set.

    python golden_hashes.py THREADS NAME=FILE...       hashes as JSON, of each model; THREADS: 1, or 1,2: one after the other
    python golden_hashes.py logits OUT NAME=FILE...    logits of the prompts to OUT, an .npz file

Hashed are logits of a prompt that is read at once, 1,000 tokens of greedy and of sampled text, log-probabilities, and embeddings. A text
that fills its context begins again. Nothing here but NumPy is needed, so that it runs under emulation too.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np
from bitnet_kernels import isa
from numpy.typing import NDArray

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import head
from bitnet_cli.model.embedding import normalized, pooled
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.logprobs import target_logprobs, token_logprob
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Sequence

PROMPT = 150  # tokens: more than a chunk
TEXTS = {
    "greedy": (Sampling(temperature=0), 1000),
    "sampled": (Sampling(seed=1), 1000),
    "surprise": (Sampling(seed=2, mirostat=2, repeat_penalty=1.1), 100),  # all logits, and probabilities of all tokens
}


def digest(values: Any) -> str:
    """A hash of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def prompt(sequence: Sequence, count: int) -> list[int]:
    return [1 + 37 * i * i % (sequence.engine.config.vocab - 8) for i in range(count)]


def text(sequence: Sequence, sampling: Sampling, count: int) -> list[int]:
    """`count` tokens after a short prompt."""
    start, ids, sampler = prompt(sequence, 12), list[int](), Sampler(sampling)
    sampler.silence(sequence.engine.silent)
    while len(ids) < count:
        sequence.rewind(0)
        logits = sequence.feed(start, sampler.top)
        for _ in range(min(count - len(ids), sequence.engine.context - len(start))):
            ids.append(sampler.choose(logits))
            logits = sequence.feed(ids[-1:], sampler.top)
    return ids


def hashes(sequence: Sequence) -> dict[str, str]:
    ids, silent, found = prompt(sequence, PROMPT), sequence.engine.silent, dict[str, str]()
    logits = sequence.feed_all(ids)
    found["logits"] = digest(logits)
    found["log-probabilities"] = digest(target_logprobs(logits, ids[1:], silent)[0])
    likeliest = [token_logprob(row, token, 5) for row, token in zip(logits[:20], ids[1:], strict=False)]
    found["likeliest"] = digest([value for one in likeliest for value in (one.logprob, *(number for pair in one.top for number in pair))])
    sequence.rewind(0)
    found["embedding"] = digest(normalized(pooled(sequence.states(ids), "mean")))
    for name, (sampling, count) in TEXTS.items():
        found[name] = digest(np.array(text(sequence, sampling, count), np.int64))
    return found


def opened(path: str, threads: int, use: Any) -> Any:
    with open_gguf(path) as file:
        sequence = Sequence(Engine(file, threads=threads))
        result = use(sequence)
        sequence.engine.close()
    return result


def logits_of(sequence: Sequence) -> NDArray[np.float32]:
    return sequence.feed_all(prompt(sequence, PROMPT))


def main() -> None:
    what, *rest = sys.argv[1:]
    head.SMALLEST = 1 << 19  # weights: so that small heads have planes
    files = {name: path for name, _, path in (pair.partition("=") for pair in rest[what == "logits" :])}
    if what == "logits":
        np.savez(rest[0], **{name: opened(path, 1, logits_of) for name, path in files.items()})
        return
    result = {number: {name: opened(path, int(number), hashes) for name, path in files.items()} for number in what.split(",")}
    json.dump({"isa": isa.chosen(), "threads": result}, sys.stdout)


if __name__ == "__main__":
    main()
