"""What 4-bit activations gain: BitNet a4.8 beside b1.58 at a published shape, with the paper's sparsity in random weights.

    python scripts/compare_activations.py --shape 2B-4T --isa avx512vnni avx2 --threads 2

Three engines over the same ternary weights (synthetic_model.py, sparse gates), in one process and in turn:

    b1.58, SiLU     int8, nothing is zero: every weight is read (the b1.58 of the paper)
    b1.58, ReLU²    int8; `up` rows of closed gates and `down` columns of zeros are not read
    a4.8            as that, with INT4 inputs of q, k, v, gate and up, and the largest half of the inputs of o

Prefill of --prompt tokens, then decode of --tokens tokens one at a time with the logits that the default sampler needs, --rounds times.
"of the read loop": bytes of weights read a second, of the fastest pass of a read loop over the file in the same process. "if only bytes
counted": decode over the first engine's, if time were bytes read. Zeros are counted in the model's own states. Prints a Markdown table.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 8  # tokens
TOP = 40  # of the default sampler
ENGINES = {"b1.58, SiLU": ("silu", "a8"), "b1.58, ReLU²": ("relu2", "a8"), "a4.8": ("relu2", "a4")}


def model(folder: Path, shape: str, activation: str) -> Path:
    """The file; made where it is absent."""
    from synthetic_model import SHAPES, write

    from bitnet_cli.gguf_file.types import TensorType

    path = folder / f"{shape}-sparse-{activation}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, SHAPES[shape], TensorType.I2_S, TensorType.F16, shape, sparse=True, keys={"hidden_activation": activation})
    return path


def zeros(decoder: Any, ids: list[int]) -> dict[str, float]:
    """Share of zeros among the inputs of q, k, v, of o, of `up` (with those that no open gate asks for) and of `down`, layer by layer."""
    from bitnet_kernels import arrays
    from bitnet_kernels.naive import inputs, norm, quantise

    c, w, s, z = decoder.engine.config, decoder.engine.arrays.weights, decoder.engine.arrays.scratch, decoder.engine.arrays.sizes
    seen: dict[str, list[float]] = {"qkv": [], "o": [], "up": [], "down": []}
    decoder.rewind(0)
    decoder.feed(ids)
    for layer in range(c.layers):
        at = w.norm_offsets[layer]
        codes = quantise.quantise(norm.rms_norm(s.x[:1], w.norms[at[arrays.ATTENTION_NORM] :][: c.hidden], c.norm_eps), z.codes)[0]
        before = s.counts.sum(0)
        decoder.engine.team.run(1, decoder.position - 1, layer, layer + 1)
        rows, skipped = s.counts.sum(0) - before
        mixed = norm.rms_norm(s.mixed[:1], w.norms[at[arrays.ATTENTION_SUB_NORM] :][: c.inner], c.norm_eps)
        mixed = inputs.keep_largest(mixed, z.kept) if z.kept else mixed
        seen["qkv"].append(float((codes == 0).mean()))
        seen["o"].append(float((quantise.quantise(mixed, z.codes_o)[0] == 0).mean()))
        seen["up"].append(1 - (1 - seen["qkv"][-1]) * (1 - (skipped / rows if rows else 0)))
        seen["down"].append(1 - np.count_nonzero(s.codes[0, : arrays.padded(c.feed_forward)]) / c.feed_forward)
    return {name: statistics.mean(values) for name, values in seen.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All engines on this process's instruction set: engine -> figures, a list where there is one a round."""
    from bitnet_kernels.bandwidth import read_rate

    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.model.engine import Engine
    from bitnet_cli.model.sequence import Sequence
    from bitnet_cli.model.traffic import bytes_a_token

    decoders, results = {}, {}
    for name, (activation, bits) in ENGINES.items():
        file = open_gguf(model(args.folder, args.shape, activation))
        context = args.prompt + args.tokens + WARM_UP
        decoder = Sequence(
            Engine(file, context=context, threads=args.threads, cache_type="f16", weight_bits=args.weights, activations=bits)
        )
        decoder.engine.start()
        for _ in range(2 * WARM_UP):
            decoder.rewind(0)
            decoder.feed([3], TOP)  # also decides which layouts pay, and builds them
        decoders[name], results[name] = decoder, {"prefill": [], "decode": []}
    rates = []
    for _ in range(args.rounds):
        for name, decoder in decoders.items():
            decoder.rewind(0)
            start = time.perf_counter()
            decoder.feed([1 + i % 1000 for i in range(args.prompt)], TOP)
            results[name]["prefill"].append(args.prompt / (time.perf_counter() - start))
            decoder.rewind(0)
            start = time.perf_counter()
            for i in range(args.tokens):
                decoder.feed([1 + i % 1000], TOP)
            results[name]["decode"].append(args.tokens / (time.perf_counter() - start))
        rates += read_rate(np.asarray(file.file_bytes()), args.threads, repeats=1)
    for name, decoder in decoders.items():
        results[name] |= {"bytes": bytes_a_token(decoder.engine), "read_rate": max(rates), "zeros": zeros(decoder, [5, 6, 7])}
        decoder.engine.close()
    return results


def table(results: dict[str, Any]) -> str:
    """Markdown: one line an instruction set and engine."""
    lines = ["| set | engine | prefill tok/s | decode tok/s | ratio | if only bytes counted | MB a token | of the read loop |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for isa, engines in results.items():
        first = next(iter(engines.values()))
        for name, r in engines.items():
            middles = {key: statistics.median(r[key]) for key in ("prefill", "decode")}
            cells = [f"{middles[key]:.1f} ± {50 * (max(r[key]) - min(r[key])) / middles[key]:.0f} %" for key in middles]
            ratio = statistics.median(a / b for a, b in zip(r["decode"], first["decode"], strict=True))
            share = 100 * middles["decode"] * r["bytes"] / r["read_rate"]
            cells += [f"{ratio:.2f}", f"{first['bytes'] / r['bytes']:.2f}", f"{r['bytes'] / 1e6:.0f}", f"{share:.0f} %"]
            lines.append(f"| {isa} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2B-4T", choices=("2B-4T", "0.7B", "125M"))
    parser.add_argument("--isa", nargs="+", default=["avx512vnni", "avx2"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="auto", choices=("auto", "2", "1.6"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("build/activations"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    for activation in ("silu", "relu2"):
        model(args.folder, args.shape, activation)
    results = {}
    for isa in args.isa:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure"]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "BITNET_ISA": isa}).stdout
        results[isa] = json.loads(output.splitlines()[-1])
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    print(f"{now}, {args.shape}, {args.threads} threads, prompt {args.prompt}, {args.tokens} tokens, {args.rounds} rounds in turn\n")
    print(table(results))
    shares = next(iter(results.values()))["a4.8"]["zeros"]
    print("\nzeros of a4.8: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()))


if __name__ == "__main__":
    main()
