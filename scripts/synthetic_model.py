"""GGUF files of published shapes with random ternary weights: for measuring speed where the real model is not at hand.

    python scripts/synthetic_model.py 2B-4T build/2b.gguf --weights I2_S --head F16

I2_S files are BitNet models as bitnet.cpp and `bitnet run` read them (arch `bitnet-b1.58`); TQ2_0 files are for llama.cpp (arch
`bitnet`). Both hold the same random weights. There is no vocabulary: token ids go in and logits come out.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.commands.bench.shapes import SHAPES as PUBLISHED
from bitnet_cli.commands.bench.shapes import Shape
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

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


def _projection(seed: int, rows: int, cols: int, kind: TensorType, sparse: bool) -> Callable[[], NDArray[np.uint8]]:
    def produce() -> NDArray[np.uint8]:
        from bitnet_cli.ternary import i2_s

        values = sparse_gate(seed, rows, cols) if sparse else ternary(seed, rows, cols)
        return i2_s.pack(values, SCALE) if kind is TensorType.I2_S else pack_tq2_0(values, SCALE)

    return produce


def _head(shape: Shape, kind: TensorType) -> Callable[[], NDArray[np.generic]]:
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
    keys: Mapping[str, object] | None = None,
) -> int:
    """Write the model; returns its bytes. sparse: gates as `sparse_gate` makes them. keys: more metadata, without the architecture."""
    arch = "bitnet-b1.58" if weights is TensorType.I2_S else "bitnet"
    ones = {n: np.ones(n, np.float32) for n in (shape.hidden, shape.feed_forward)}
    tensors = [
        OutputTensor("token_embd.weight", head, (shape.vocab, shape.hidden), _head(shape, head)),
        OutputTensor("output_norm.weight", TensorType.F32, (shape.hidden,), lambda: ones[shape.hidden]),
    ]
    norms = {"attn_norm": shape.hidden, "attn_sub_norm": shape.hidden, "ffn_norm": shape.hidden, "ffn_sub_norm": shape.feed_forward}
    for layer in range(shape.layers):
        for i, (part, (rows, cols)) in enumerate(shape.projections().items()):
            produce = _projection(7 * layer + i, rows, cols, weights, sparse and part == "ffn_gate")
            tensors.append(OutputTensor(f"blk.{layer}.{part}.weight", weights, (rows, cols), produce))
        tensors += [OutputTensor(f"blk.{layer}.{n}.weight", TensorType.F32, (size,), lambda s=size: ones[s]) for n, size in norms.items()]
    metadata = {
        "general.name": f"synthetic {name}",
        f"{arch}.vocab_size": shape.vocab,
        f"{arch}.block_count": shape.layers,
        f"{arch}.context_length": shape.context,
        f"{arch}.embedding_length": shape.hidden,
        f"{arch}.feed_forward_length": shape.feed_forward,
        f"{arch}.attention.head_count": shape.heads,
        f"{arch}.attention.head_count_kv": shape.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "no_vocab",
    } | {f"{arch}.{key}": value for key, value in (keys or {}).items()}
    return write_gguf(path, arch, metadata, tensors, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", choices=("I2_S", "TQ2_0"), default="I2_S")
    parser.add_argument("--head", choices=("F32", "F16", "Q8_0"), default="F16")
    args = parser.parse_args()
    print(write(args.out, SHAPES[args.shape], TensorType[args.weights], TensorType[args.head], args.shape), "bytes")


if __name__ == "__main__":
    main()
