"""How far `bitnet bench --projected` is from a full run: both measured in turn, for shapes that memory holds.

    python scripts/projection_error.py --shapes 125M 350M 700M 1B 1.5B 2.5B 2B-4T 3.8B 7B --folder build/projection

Full and projected take turns in each of some processes, test after test. Prints a Markdown line a shape and test: medians of full and
projected tokens/s, half their ranges, and the projection's error: the median of the rounds', and their range.
--wrap puts a command before each measuring process.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bitnet_cli.commands.bench.project import Layers, layers_to_measure
from bitnet_cli.commands.bench.shapes import SHAPES, write_shape


def samples(name: str, files: list[Path], threads: int, rounds: int, prompt: int, tokens: int) -> dict[str, list[list[float]]]:
    """Test -> tokens/s of the full file and of the projection from the other, one figure a round each."""
    from bitnet_cli.commands.bench.measure import Result, Runner, token_ids
    from bitnet_cli.commands.bench.plan import BenchPlan, Setup, Trial
    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.machine.energy import Meter
    from bitnet_cli.model.config import read_config
    from bitnet_cli.model.engine import CHUNK_TOKENS, Engine
    from bitnet_cli.model.sequence import Sequence

    trials = [Trial(prompt, 0, 0, 40), Trial(0, tokens, 0, 40), Trial(0, tokens, 1024, 40)]
    plan = BenchPlan([Setup(threads, "f16", "auto", "auto")], trials, 1, True)
    runners = []
    for path in files:
        file = open_gguf(path)
        decoder = Sequence(Engine(file, context=plan.context + CHUNK_TOKENS, threads=threads, cache_type="f16"))
        ids, _ = token_ids(file, decoder.engine.config.vocab, plan.context + CHUNK_TOKENS)
        runners.append(Runner(decoder, ids, Meter(), Layers(read_config(file).layers, SHAPES[name].layers)))
        runners[-1].warm_up(plan)
    results = [[Result(trial) for trial in trials] for _ in runners]
    for number in range(len(trials)):
        for _ in range(rounds):
            for runner, own in zip(runners, results, strict=True):
                runner.sample(own[number])
    for runner in runners:
        runner.text.engine.close()
    rates = [[[1e9 * r.trial.tokens / s.ns for s in r.samples] for r in own] for own in results]
    return {trial.name: [rates[0][i], rates[1][i]] for i, trial in enumerate(trials)}


def line(name: str, test: str, layers: Layers, full: list[float], projected: list[float]) -> str:
    """One row of the table."""
    cells = [name, test, f"{layers.measured} of {layers.whole}"]
    for rates in (full, projected):
        cells.append(f"{statistics.median(rates):.4g} ± {50 * (max(rates) - min(rates)) / statistics.median(rates):.0f} %")
    errors = [100 * (b / a - 1) for a, b in zip(full, projected, strict=True)]
    cells.append(f"{statistics.median(errors):+.1f} % ({min(errors):+.0f} to {max(errors):+.0f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["125M", "350M", "700M", "1B"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processes", type=int, default=3, help="where arrays lie in memory differs from one to the next, and with it speed"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each process")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each process")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path("build/projection"))
    parser.add_argument("--wrap", default="")
    parser.add_argument("--runner", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner:
        print(json.dumps(samples(args.shapes[0], args.runner, args.threads, args.rounds, args.prompt, args.tokens)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    print("| shape | test | layers | full, tok/s | projected, tok/s | error |\n|---|---|---|---|---|---|")
    for name in args.shapes:
        shape = SHAPES[name]
        layers = layers_to_measure(shape, 0, forced=True)
        files = [args.folder / f"{name}-{count}.gguf" for count in (layers.whole, layers.measured)]
        try:
            for path, count in zip(files, (layers.whole, layers.measured), strict=True):
                write_shape(path, shape._replace(layers=count), name)
            command = [*shlex.split(args.wrap), sys.executable, __file__, "--shapes", name, "--runner", *map(str, files)]
            command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
            command += ["--prompt", str(args.prompt), "--tokens", str(args.tokens)]
            found: dict[str, list[list[float]]] = {}
            for _ in range(args.processes):
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for test, rates in json.loads(output.splitlines()[-1]).items():
                    found[test] = [before + now for before, now in zip(found.get(test, [[], []]), rates, strict=True)]
                time.sleep(args.pause)
            for test, (full, projected) in found.items():
                print(line(name, test, layers, full, projected), flush=True)
        finally:
            for path in files:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
