"""The speed table of the bitnet.cpp papers (arXiv 2410.16144, table 4) redone on this machine: decode tokens/s of every published shape.

    python scripts/papers_table.py --shapes 125M 350M 700M 1B --threads 2 --rounds 3 --folder build/papers

Ours beside llama.cpp through llama-cpp-python (`pip install llama-cpp-python`) in F16, as the papers' baseline, and in Q4_0, TQ1_0, TQ2_0:
random weights, the same shape, float16 head, f16 KV cache, no ReLU² (llama.cpp's `bitnet` has SiLU), all logits. Ours also as `bitnet run`
computes: ReLU², of which zeros are skipped, and the top 40 logits. Each figure is a process of its own: warm-up, then --tokens tokens
from an empty context. Medians over --rounds, engines in turn.

Where a model takes more than --memory, its layers are projected. Ours as `bitnet bench --projected` does; llama.cpp's from two files, of
as many layers as --memory holds and of a quarter of them, whose difference is that of the layers. The files of a shape exist at once, and
are deleted. --wrap puts a command before each measuring process, such as `taskset -c 0,1`. Prints lines of Markdown; FOLDER/papers.json
keeps every sample of all calls.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitnet_cli.commands.bench.project import CACHES, LEAST
from bitnet_cli.commands.bench.shapes import SHAPES, Shape, write_shape
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.machine.cpu import last_cache_bytes

# Shape -> tokens/s of llama.cpp (float16) and bitnet.cpp on the Intel i7-13700H, all threads (arXiv 2410.16144, table 4).
PUBLISHED = {
    "125M": (164.04, 389.08),
    "350M": (56.67, 172.95),
    "700M": (30.73, 119.08),
    "1B": (22.31, 86.50),
    "1.5B": (15.02, 67.12),
    "2.5B": (11.07, 46.33),
    "3.8B": (5.85, 30.51),
    "7B": (3.30, 18.75),
    "13B": (1.78, 10.99),
}
PEERS = {"F16": TensorType.F16, "Q4_0": TensorType.Q4_0, "TQ1_0": TensorType.TQ1_0, "TQ2_0": TensorType.TQ2_0}
OURS = {"bitnet, same work": ("silu", 0), "bitnet run": ("relu2", 40)}  # title -> activation of hidden units, top logits


def run_ours(model: Path, whole: int, top: int, threads: int, tokens: int) -> float:
    """Decode tokens/s of our engine on a file of `whole` layers or fewer."""
    from bitnet_cli.commands.bench.command import Choices, Run
    from bitnet_cli.commands.bench.plan import Plan, Setup, Trial
    from bitnet_cli.commands.bench.project import Layers
    from bitnet_cli.commands.bench.rows import Power
    from bitnet_cli.gguf_file.reader import open_gguf

    plan = Plan([Setup(threads, "f16", "auto", "auto")], [Trial(0, tokens, 0, top)], 1, True)
    run = Run(plan, Choices(1, True, "json", None, None, Power(), True), 1)
    with open_gguf(model) as file:
        measured = file.require_int(f"{file.require_str('general.architecture')}.block_count", 1, 4096)
        run.measure(file, Layers(measured, whole), {"projected": measured < whole})
    return float(run.table[0]["median_ts"])


def layers_for(shape: Shape, kind: TensorType, memory: float) -> list[int]:
    """Layers of the files to measure: all, or two numbers from which all are projected."""
    layer = sum(nbytes(kind, size) for size in shape.projections().values())
    head = 2 * shape.vocab * shape.hidden
    if layer * shape.layers + head <= memory:
        return [shape.layers]
    few, many = max(1, -(-max(LEAST, CACHES * last_cache_bytes()) // layer)), int((memory - head) // layer)
    if kind is TensorType.I2_S:
        return [max(few, many // 4)]
    return [max(few, many // 4), many] if many > few else []


def rate(command: list[str]) -> float:
    """Tokens/s that a runner prints last."""
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Samples of every engine for one shape. The files of all engines exist at once, and are deleted at the end."""
    shape = SHAPES[name]
    found: dict[str, Any] = {}
    engines = {
        **{title: (TensorType.I2_S, *how) for title, how in OURS.items()},
        **{title: (kind, "silu", 0) for title, kind in PEERS.items()},
    }
    files: dict[str, list[tuple[int, Path]]] = {}
    for title, (kind, activation, _) in engines.items():
        counts = layers_for(shape, kind, args.memory * 1e9)
        files[title] = []
        for layers in counts:
            path = args.folder / f"{name}-{kind.name}-{activation}-{layers}.gguf"
            if not path.exists():
                write_shape(path, shape._replace(layers=layers), name, activation, kind)
            files[title].append((layers, path))
    try:
        for title in engines:
            if files[title]:
                found[title] = {"layers": [layers for layers, _ in files[title]], "rates": []}
        for _ in range(args.rounds):
            for title, result in found.items():
                rates = [rate(runner(args, title, path, shape.layers, engines[title][2])) for _, path in files[title]]
                result["rates"].append(whole_rate(result["layers"], rates, shape.layers))
    finally:
        for _, path in (pair for pairs in files.values() for pair in pairs):
            path.unlink(missing_ok=True)
    return found


def runner(args: argparse.Namespace, title: str, path: Path, whole: int, top: int) -> list[str]:
    """The command of one measurement."""
    command = [*shlex.split(args.wrap), sys.executable, __file__, "--runner", "ours" if title in OURS else "llama", "--model", str(path)]
    return [*command, "--whole", str(whole), "--top", str(top), "--threads", str(args.threads), "--tokens", str(args.tokens)]


def whole_rate(layers: list[int], rates: list[float], whole: int) -> float:
    """Tokens/s of all layers from those of one file, or of two with some of the layers."""
    if len(rates) == 1:
        return rates[0]
    few, many = (1 / r for r in rates)
    return 1 / (many + (whole - layers[1]) * (many - few) / (layers[1] - layers[0]))


def line(name: str, found: dict[str, Any]) -> str:
    """One row of the table: median ± half the range, * where projected; speed-up of ours over F16, beside the published one."""
    middle = {title: statistics.median(result["rates"]) for title, result in found.items()}
    cells = [name]
    for title in (*OURS, *PEERS):
        if title not in found:
            cells.append("")
            continue
        rates = found[title]["rates"]
        star = "*" if found[title]["layers"][0] < SHAPES[name].layers else ""
        cells.append(f"{middle[title]:.3g}{star} ± {50 * (max(rates) - min(rates)) / middle[title]:.0f} %")
    ours = list(OURS)
    cells += [f"{middle[title] / middle['F16']:.2f}x" if "F16" in middle else "" for title in ours]
    cells.append(f"{PUBLISHED[name][1] / PUBLISHED[name][0]:.2f}x" if name in PUBLISHED else "")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory", type=float, default=6.0, help="GB that the weights of one engine may take")
    parser.add_argument("--folder", type=Path, default=Path("build/papers"))
    parser.add_argument("--wrap", default="")
    parser.add_argument("--runner", choices=("ours", "llama"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--top", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner == "ours":
        print(run_ours(args.model, args.whole, args.top, args.threads, args.tokens))
        return
    if args.runner == "llama":
        from compare_peers import run_llama

        print(run_llama(args.model, args.threads, 8, args.tokens)["decode"])
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    kept = args.folder / "papers.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    titles = ["shape", *OURS, *(f"llama.cpp {kind}" for kind in PEERS), "same work / F16", "bitnet run / F16", "published, i7-13700H"]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in args.shapes:
        results[name] = measure(args, name)
        kept.write_text(json.dumps(results, indent=1))
        print(line(name, results[name]), flush=True)


if __name__ == "__main__":
    main()
