"""Start-up beside llama-cpp-python: time to the first token and peak memory of a whole process, and time of `--help`.

    python scripts/compare_start.py MODEL... [--threads 2] [--rounds 7] [--folder build/start]

Each measurement is a fresh process with warm files and compiled kernels: read the model, compute a prompt, print the first token, end
(`bitnet run -n 1`; for llama-cpp-python a few lines that do the same with its `Llama` class). The two take turns. llama.cpp does not read
I2_S, and knows the architecture `bitnet` with SiLU only: it gets the same weights as tq2_0 under that name, so the same work, though its
text is another. Peak memory is the operating system's (maximum resident set, memory-mapped pages of the model among it).

Prints a Markdown table of medians with the range; budgets are those of the project: first token of an embedded model within 1.5 s, help
within 0.25 s, memory within file + KV cache + 250 MB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.names import find
from bitnet_cli.model.sequence import Sequence

PROMPT = "And the king said unto the people"
LLAMA = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=int(sys.argv[2]), n_threads=int(sys.argv[3]), n_threads_batch=int(sys.argv[3]), verbose=False)
for piece in model.create_completion(sys.argv[4], max_tokens=1, temperature=0.0, stream=True):
    print(piece["choices"][0]["text"], flush=True)
"""


def for_llama(model: Path, folder: Path) -> Path:
    """The model as tq2_0, by the name of an architecture that llama.cpp reads."""
    target, ours = folder / f"{model.stem}-llama.gguf", folder / f"{model.stem}-tq2.gguf"
    if target.exists():
        return target
    quantize(model, ours, "tq2_0", force=True, quiet=True)
    with open_gguf(ours) as file:
        name = file.require_str("general.architecture")
        renamed = {"general.architecture", f"{name}."}
        metadata = {
            key.replace(f"{name}.", "bitnet.", 1) if key.startswith(f"{name}.") else key: value
            for key, value in file.typed_metadata.items()
            if key not in renamed
        }
        tensors = [OutputTensor(i.name, i.type, i.shape, lambda name=i.name: file.raw(name)) for i in file.tensors.values()]
        write_gguf(target, "bitnet", metadata, tensors)
    ours.unlink()
    return target


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds to the first byte on stdout and to the end, and peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.read(1)
    seen = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        error = process.stderr.read().decode() if process.stderr else ""
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {error}")
    return seen, time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def middle(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def compare(model: Path, options: argparse.Namespace) -> dict[str, list[tuple[float, float, int]]]:
    """Both programs in turn, after one start of each that warms files and caches."""
    with open_gguf(model) as file:
        decoder = Sequence(Engine(file, threads=1, cache_type="f16"))
        context, cache = decoder.engine.context, decoder.engine.cache_bytes()
    threads = str(options.threads)
    ours = [sys.executable, "-m", "bitnet_cli", "run", "-m", str(model), "-p", PROMPT, "-n", "1", "--temp", "0", "-q", "-t", threads]
    commands = {"bitnet": ours}
    if not options.alone:
        converted = for_llama(model, options.folder)
        commands["llama-cpp-python"] = [sys.executable, "-c", LLAMA, str(converted), str(context), threads, PROMPT]
    results: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, command in commands.items():
            result = measure(command)
            if number:
                results[name].append(result)
    budget = (model.stat().st_size + cache + 250e6) / 1e6
    for name, rows in results.items():
        first, whole, memory = ([row[i] for row in rows] for i in range(3))
        peak = statistics.median(memory) / 1e6
        limit = f" of {budget:.0f}" if name == "bitnet" else ""
        print(f"| {model.stem}, {name} | {middle(first)} | {middle(whole)} | {peak:.0f}{limit} |")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny"], help="files or names; default: the embedded model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("build/start"))
    parser.add_argument("--alone", action="store_true", help="without llama-cpp-python")
    parser.add_argument("--prepare", action="store_true", help="only make llama.cpp's files")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.prepare:
        for name in options.models:
            print(for_llama(find(name), options.folder))
        return
    print("| model, program | first token, s | whole process, s | peak memory, MB |\n|---|---|---|---|")
    results = {name: compare(find(name), options) for name in options.models}
    helps = [measure([sys.executable, "-m", "bitnet_cli", "--help"])[1] for _ in range(options.rounds + 1)][1:]
    print(f"\n`bitnet --help`: {middle(helps, 3)} s")
    (options.folder / "start.json").write_text(json.dumps(results | {"help": helps}))


if __name__ == "__main__":
    main()
