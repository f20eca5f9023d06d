"""The speed table of the bitnet.cpp papers (arXiv 2410.16144, table 4) redone on this machine: decode tokens/s of every published shape.

    python scripts/papers_table.py --shapes 2B-4T 7B 700M --threads 2 --rounds 3 --folder build/papers
    python scripts/papers_table.py --print --folder build/papers

Ours beside llama.cpp through llama-cpp-python (`pip install llama-cpp-python`) in F16, as the papers' baseline, and in Q4_0, TQ1_0, TQ2_0:
random weights, the same shape, float16 head, f16 KV cache, no ReLU² (llama.cpp's `bitnet` has SiLU), all logits. Ours also as `bitnet run`
computes: ReLU², of which zeros are skipped, and the top 40 logits. Each figure is a process of its own: warm-up, then tokens from an empty
context, as many as read READ bytes in float16. A round measures all engines of a shape, one after the other.

Where a model takes more than --memory, its layers are projected. Ours as `bitnet bench --projected` does; llama.cpp's from two files, of
a few layers and of MORE times as many, whose difference is that of the layers. The files of a shape exist at once, and are deleted when it
has its --rounds. FOLDER/papers.json keeps every sample as soon as its round is done: what was stopped goes on where it was, unless the
kernels have changed meanwhile. --wrap puts a command before each round, such as `taskset -c 0,1`. Prints lines of Markdown.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bitnet_kernels import compile_cache

from bitnet_cli.commands.bench.project import CACHES, LEAST
from bitnet_cli.commands.bench.shapes import SHAPES, Shape, write_shape
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.layer_table import projection_shapes
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
READ = 40e9  # bytes of float16 weights
MORE = 4  # times as many layers in the larger of two files
OURS = {"bitnet, same work": ("silu", 0), "bitnet run": ("relu2", 40)}  # title -> activation of hidden units, top logits


def run_ours(model: Path, whole: int, activation: str, top: int, threads: int, tokens: int) -> float:
    """Decode tokens/s of our engine on a file of `whole` layers or fewer. activation: of hidden units, whatever the file says."""
    from bitnet_cli.commands.bench.command import Choices, Run
    from bitnet_cli.commands.bench.plan import BenchPlan, Setup, Trial
    from bitnet_cli.commands.bench.project import Layers
    from bitnet_cli.commands.bench.rows import Power

    plan = BenchPlan([Setup(threads, "f16", "auto", "auto")], [Trial(0, tokens, 0, top)], 1, True)
    run = Run(plan, Choices(1, True, "json", None, None, Power(), True), 1)
    with open_gguf(model) as file:
        arch = file.require_str("general.architecture")
        file.metadata[f"{arch}.hidden_activation"] = activation
        measured = file.require_int(f"{arch}.block_count", 1, 4096)
        run.measure(file, Layers(measured, whole), {"projected": measured < whole})
    return float(run.table[0]["median_ts"])


def layers_for(shape: Shape, kind: TensorType, memory: float) -> list[int]:
    """Layers of the files to measure: all, or two numbers from which all are projected. None where memory does not hold two."""
    layer = sum(nbytes(kind, size) for size in projection_shapes(shape).values())
    head = 2 * shape.vocab * shape.hidden
    if layer * shape.layers + head <= memory:
        return [shape.layers]
    few = max(1, -(-max(LEAST, CACHES * last_cache_bytes()) // layer))
    if kind is TensorType.I2_S:
        return [few]
    many = min(int((memory - head) // layer), MORE * few)
    return [few, many] if many > few else []


def tokens_for(shape: Shape) -> int:
    """As many as take a few seconds with llama.cpp's F16, of so many layers."""
    return max(8, min(64, int(READ / (2 * (shape.ternary_weights() + shape.vocab * shape.hidden)))))


def files_of(args: argparse.Namespace, name: str) -> dict[str, list[tuple[int, Path]]]:
    """Engine -> its files, as layers and path. Written where they are absent."""
    shape, files = SHAPES[name], {}
    for title, kind in {**dict.fromkeys(OURS, TensorType.I2_S), **PEERS}.items():
        files[title] = [(n, args.folder / f"{name}-{kind.name}-{n}.gguf") for n in layers_for(shape, kind, args.memory * 1e9)]
        for layers, path in files[title]:
            if not path.exists():
                write_shape(path, shape._replace(layers=layers), name, "silu", kind)
    return files


def measure_round(args: argparse.Namespace, name: str) -> dict[str, dict[str, Any]]:
    """Engine -> layers of its files, and tokens/s of all layers. One process after the other."""
    found, shape = {}, SHAPES[name]
    for title, files in files_of(args, name).items():
        if not files:
            continue
        command = [sys.executable, __file__, "--shapes", name, "--runner", title, "--threads", str(args.threads), "--model"]
        done = [subprocess.run([*command, str(path)], check=True, capture_output=True, text=True) for _, path in files]
        rates, layers = [float(each.stdout.splitlines()[-1]) for each in done], [layers for layers, _ in files]
        found[title] = {"layers": layers, "rate": whole_rate(layers, rates, shape.layers)}
    return found


def measure(args: argparse.Namespace, name: str, kept: Path) -> None:
    """Rounds of one shape until there are as many as wanted, each kept as soon as it is done."""
    while True:
        results = json.loads(kept.read_text()) if kept.exists() else {}
        row = results.get(name, {})
        if row.get("kernels") != compile_cache.source_hash():
            row = {"kernels": compile_cache.source_hash(), "engines": {}}
        done = min((len(engine["rates"]) for engine in row["engines"].values()), default=0)
        if done >= args.rounds:
            break
        files_of(args, name)
        command = [*shlex.split(args.wrap), sys.executable, __file__, "--round", "--shapes", name, "--folder", str(args.folder)]
        command += ["--threads", str(args.threads), "--memory", str(args.memory)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for title, found in json.loads(output.splitlines()[-1]).items():
            engine = row["engines"].setdefault(title, {"layers": found["layers"], "rates": []})
            if engine["layers"] != found["layers"]:
                engine |= {"layers": found["layers"], "rates": []}
            engine["rates"].append(found["rate"])
        results[name] = row
        kept.write_text(json.dumps(results, indent=1))
        time.sleep(args.pause)
    for path in args.folder.glob(f"{name}-*.gguf"):
        path.unlink()


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
        spread = f" ± {50 * (max(rates) - min(rates)) / middle[title]:.0f} %" if len(rates) > 1 else ""
        cells.append(f"{middle[title]:.3g}{star}{spread}")
    ours = list(OURS)
    cells += [f"{middle[title] / middle['F16']:.2f}x" if "F16" in middle else "" for title in ours]
    cells.append(f"{PUBLISHED[name][1] / PUBLISHED[name][0]:.2f}x" if name in PUBLISHED else "")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="samples that each engine shall have, those of earlier calls included")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between rounds")
    parser.add_argument("--memory", type=float, default=6.0, help="GB that the weights of one engine may take")
    parser.add_argument("--folder", type=Path, default=Path("build/papers"))
    parser.add_argument("--wrap", default="")
    parser.add_argument("--print", action="store_true", help="print the rows there are, measure nothing")
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runner", choices=(*OURS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    name, shape = args.shapes[0], SHAPES[args.shapes[0]]
    if args.runner:
        with open_gguf(args.model) as file:
            measured = file.require_int(f"{file.require_str('general.architecture')}.block_count", 1, 4096)
        tokens = tokens_for(shape._replace(layers=measured))
    if args.runner in OURS:
        print(run_ours(args.model, shape.layers, *OURS[args.runner], args.threads, tokens))
    elif args.runner:
        from compare_peers import run_llama
        from peer_tools import Setup

        print(run_llama(args.model, Setup(args.threads, 8, tokens))["decode"])
    elif args.round:
        print(json.dumps(measure_round(args, name)))
    else:
        args.folder.mkdir(parents=True, exist_ok=True)
        kept = args.folder / "papers.json"
        titles = ["shape", *OURS, *(f"llama.cpp {kind}" for kind in PEERS), "same work / F16", "bitnet run / F16", "published, i7-13700H"]
        print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
        for name in args.shapes:
            if not args.print:
                measure(args, name, kept)
            results = json.loads(kept.read_text()) if kept.exists() else {}
            if name in results:
                print(line(name, results[name]["engines"]), flush=True)


if __name__ == "__main__":
    main()
