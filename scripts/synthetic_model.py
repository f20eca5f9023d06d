"""GGUF files of published shapes with random ternary weights: for measuring speed where the real model is not at hand.

    python scripts/synthetic_model.py 2B-4T build/2b.gguf --weights I2_S --head F16

I2_S files are BitNet models as bitnet.cpp and `bitnet run` read them (arch `bitnet-b1.58`); TQ2_0 files are for llama.cpp (arch
`bitnet`). Both hold the same random weights. There is no vocabulary, token ids go in and logits come out; with --vocabulary it is the
embedded model's, filled up with words of no meaning, so that a server can be measured.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.commands.bench.shapes import SHAPES as PUBLISHED
from bitnet_cli.commands.bench.shapes import Producer, Shape, write_model
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType

# 0.7B: 1bitLLM/bitnet_b1_58-large has the shape of the papers' 700M. A short context keeps tables of angles small.
SHAPES = {name: PUBLISHED[of]._replace(context=4096) for name, of in (("2B-4T", "2B-4T"), ("0.7B", "700M"), ("125M", "125M"))}
SCALE = 1 / 32  # exact in float16, so both layouts mean the same weights


def ternary(seed: int, rows: int, cols: int) -> NDArray[np.int8]:
    """(rows, cols) in {-1, 0, 1}, a third of each."""
    return np.random.default_rng(seed).integers(-1, 2, (rows, cols), np.int8)


# Of the rows of `gate`, so many have no weights, and so many of the others few: hidden units whose gate is never open, and units whose
# gate opens so little that its square is rounded to zero. With random states 67.5 % of the gates are then closed and 84 % of the inputs
# of `down` zero, as in BitNet a4.8 at 7B: 67.5 % and 84.2 % (arXiv 2411.04965, table 2 and section 3.2).
CLOSED, WEAK, WEAK_DENSITY = 0.35, 0.4, 1 / 16


def sparse_gate(seed: int, rows: int, cols: int) -> NDArray[np.int8]:
    """(rows, cols) in {-1, 0, 1}, with the rows that CLOSED and WEAK say."""
    values, rng = ternary(seed, rows, cols), np.random.default_rng(seed + 1000)
    place = rng.random(rows)
    values[place < CLOSED] = 0
    weak = (place >= CLOSED) & (place < CLOSED + WEAK * (1 - CLOSED))
    values[weak] *= rng.random((int(weak.sum()), cols)) < WEAK_DENSITY
    return values


def pack_tq2_0(values: NDArray[np.int8], scale: float) -> NDArray[np.uint8]:
    """TQ2_0 as llama.cpp's own tools write it: the scale in every block, and in no tensor of its own."""
    from bitnet_cli.ternary import tq2_0

    blocks = tq2_0.pack_rows(values).reshape(-1, tq2_0.BLOCK_BYTES)
    blocks[:, tq2_0.SCALE_AT :] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(-1)


def _projection(seed: int, rows: int, cols: int, kind: TensorType, sparse: bool) -> Producer:
    def produce() -> NDArray[np.uint8]:
        from bitnet_cli.ternary import i2_s

        values = sparse_gate(seed, rows, cols) if sparse else ternary(seed, rows, cols)
        return i2_s.pack(values, SCALE) if kind is TensorType.I2_S else pack_tq2_0(values, SCALE)

    return produce


def _head(shape: Shape, kind: TensorType) -> Producer:
    def produce() -> NDArray[np.generic]:
        weights = np.random.default_rng(1).standard_normal((shape.vocab, shape.hidden), np.float32) / 50
        if kind is TensorType.F32:
            return weights
        if kind is TensorType.F16:
            return weights.astype(np.float16)
        import gguf

        quantised: NDArray[np.uint8] = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind.name])
        return quantised

    return produce


def write(
    path: Path,
    shape: Shape,
    weights: TensorType,
    head: TensorType,
    name: str,
    sparse: bool = False,
    keys: Mapping[str, Any] | None = None,
) -> int:
    """Write the model; returns its bytes. sparse: gates as `sparse_gate` makes them. keys: more metadata, without the architecture."""

    def projection(seed: int, part: str, rows: int, cols: int) -> Producer:
        return _projection(seed, rows, cols, weights, sparse and part == "ffn_gate")

    return write_model(path, shape, f"synthetic {name}", (head, _head(shape, head)), (weights, projection), keys or {})


def vocabulary(count: int) -> dict[str, Any]:
    """Metadata of a vocabulary with so many tokens."""
    with open_gguf(EMBEDDED_MODEL) as file:
        keys: dict[str, Any] = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    more = range(count - len(keys["tokenizer.ggml.tokens"]))
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], *(f"Ġword{number}" for number in more)]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], *(1 for _ in more)]
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", choices=("I2_S", "TQ2_0"), default="I2_S")
    parser.add_argument("--head", choices=("F32", "F16", "Q8_0"), default="F16")
    parser.add_argument("--vocabulary", action="store_true")
    args = parser.parse_args()
    shape, keys = SHAPES[args.shape], vocabulary(SHAPES[args.shape].vocab) if args.vocabulary else None
    print(write(args.out, shape, TensorType[args.weights], TensorType[args.head], args.shape, keys=keys), "bytes")


if __name__ == "__main__":
    main()
