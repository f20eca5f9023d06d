"""What 300 tokens that are never chosen cost in the search for the largest logits: bytes and time of a head of BitNet 2B-4T's size.

    python scripts/measure_silent.py --threads 2

Prints, for 40 logits of a head with random weights: none silent; 300 silent, all over the vocabulary, and 300 at its end; as many logits
more asked for instead (340: past 256 the whole head is read), and 200 more. In turn, so that a busy machine is busy for all.
"""

import argparse
import statistics
import tempfile
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from synthetic_model import SHAPES, write

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.kernel_times import time_part
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import head_bytes_a_token, reset_counts
from bitnet_cli.text.vocabulary import TYPES, UNUSED

COUNT, TOP, TOKENS = 300, 40, 20


def decoder(path: Path, silent: NDArray[np.int64], threads: int) -> Sequence:
    """Over the file, as if it said that these tokens are unused."""
    with open_gguf(path) as file:
        kinds = np.ones(SHAPES["2B-4T"].vocab, np.int32)
        kinds[silent] = UNUSED
        file.metadata[TYPES] = array("i", kinds.tolist())
        made = Sequence(Engine(file, context=64, threads=threads))
    made.engine.start()
    made.feed(np.random.default_rng(0).integers(0, len(kinds), TOKENS).tolist(), top=TOP)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    shape = SHAPES["2B-4T"]._replace(layers=1)
    anywhere = np.sort(np.random.default_rng(1).permutation(shape.vocab)[:COUNT])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.gguf"
        write(path, shape, TensorType.I2_S, TensorType.F16, "head")
        nobody = decoder(path, anywhere[:0], args.threads)
        cases = {
            "none silent": (nobody, TOP),
            "300 silent, anywhere": (decoder(path, anywhere, args.threads), TOP),
            "300 silent, at the end": (decoder(path, np.arange(shape.vocab - COUNT, shape.vocab), args.threads), TOP),
            "200 more asked for": (nobody, TOP + 200),
            "300 more asked for": (nobody, TOP + COUNT),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        read: dict[str, float] = {}
        for _ in range(args.rounds):
            for name, (one, top) in cases.items():
                reset_counts(one.engine)
                times[name].append(time_part(one, 1, TOKENS - 1, 0, 1, top))
                read[name] = head_bytes_a_token(one.engine, searched=top <= 256)
        for name, seconds in times.items():
            low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
            print(
                f"{name:<24}{read[name] / 1e6:9.2f} MB a token  {middle:7.3f} ms  ({low:.3f} to {high:.3f}; least {1e3 * min(seconds):.3f})"
            )
        for one in {id(made): made for made, _ in cases.values()}.values():
            one.engine.close()


if __name__ == "__main__":
    main()
