"""A program for test_engine.py: greedy continuation of a prompt by a fresh process, whose environment chooses the instruction set.

python greedy.py MODEL THREADS COUNT ID...        prints a line of JSON: the chosen kernels, the tokens, the narrowest lead
"""

import json
import sys

import numpy as np
from bitnet_kernels import isa

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.sequence import Sequence


def main() -> None:
    path, threads, count, *ids = sys.argv[1:]
    tokens, lead = [], np.inf
    with open_gguf(path) as file:
        decoder = Sequence(Engine(file, threads=int(threads)))
        logits = decoder.feed([int(i) for i in ids])
        for _ in range(int(count)):
            second, first = np.sort(logits)[-2:]
            lead = min(lead, float((first - second) / np.abs(logits).max()))
            tokens.append(int(logits.argmax()))
            logits = decoder.feed(tokens[-1:])
        decoder.engine.close()
    print(json.dumps({"isa": isa.chosen(), "tokens": tokens, "lead": lead}))


if __name__ == "__main__":
    main()
