"""Speed beside the peers on this machine: the same shapes, the same random weights, the same head type, runs taken in turn.

    python scripts/compare_peers.py --shapes 2B-4T 0.7B 125M --threads 2 --rounds 5 --folder build/peers

Peers: llama.cpp through llama-cpp-python (TQ2_0 weights; `pip install llama-cpp-python`), any other `llama-bench` binary by
--llama-bench PATH MODEL. Each measurement is a process of its own: warm-up, then prefill of --prompt tokens, then, from an empty context
as llama-bench does, decode of --tokens tokens one at a time; logits of the last token computed, nothing sampled. Medians over --rounds,
with the spread; the processes alternate so that a change in the machine's mood meets all of them. Prints a Markdown table and writes all
figures to FOLDER/peers.json.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 8  # tokens


def run_ours(model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """Our engine; also the read rate of the same file in the same process, bytes/s."""
    import numpy as np
    from bitnet_kernels.bandwidth import read_rate

    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.model.decoder import Decoder

    file = open_gguf(model)
    decoder = Decoder(file, context=prompt + tokens + WARM_UP, threads=threads, cache_type="f16")  # as llama.cpp
    decoder.feed(range(3, 3 + WARM_UP))
    decoder.feed([3])
    decoder.rewind(0)
    start = time.perf_counter()
    decoder.feed([1 + i % 1000 for i in range(prompt)])
    prefill = time.perf_counter() - start
    decoder.rewind(0)
    times = []
    for i in range(tokens):
        start = time.perf_counter()
        decoder.feed([1 + i % 1000])
        times.append(time.perf_counter() - start)
    decoder.close()
    read = max(read_rate(np.asarray(file.file_bytes()), threads))
    decode = tokens / sum(times)
    return {"prefill": prompt / prefill, "decode": decode, "decode_bytes_rate": decode * decoder.bytes_a_token(), "read_rate": read}


def run_llama(model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """llama.cpp by its C interface, as llama-bench drives it."""
    import ctypes

    import llama_cpp

    llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_mmap = True
    loaded = llama_cpp.llama_load_model_from_file(str(model).encode(), parameters)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = prompt + tokens + WARM_UP, prompt, min(prompt, 512)
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_new_context_with_model(loaded, options)

    def feed(ids: list[int]) -> float:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        start = time.perf_counter()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_get_logits(context)  # waits for the computation
        return time.perf_counter() - start

    feed(list(range(3, 3 + WARM_UP)))
    feed([3])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    prefill = feed([1 + i % 1000 for i in range(prompt)])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    decode = sum(feed([1 + i % 1000]) for i in range(tokens))
    return {"prefill": prompt / prefill, "decode": tokens / decode}


def run_llama_bench(binary: Path, model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """A llama-bench binary of any fork; its own averages of one repetition."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-p", str(prompt), "-n", str(tokens), "-r", "1", "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}


RUNNERS = {"ours": run_ours, "llama": run_llama}


def models(shape: str, head: str, folder: Path) -> dict[str, Path]:
    """Our file and llama.cpp's of one shape; made where they are absent."""
    from synthetic_model import SHAPES, write

    from bitnet_cli.gguf_file.types import TensorType

    paths = {}
    for runner, weights in (("ours", TensorType.I2_S), ("llama", TensorType.TQ2_0)):
        paths[runner] = folder / f"{shape}-{weights.name}-{head}.gguf"
        if not paths[runner].exists():
            write(paths[runner], SHAPES[shape], weights, TensorType[head], shape)
    return paths


def measure(args: argparse.Namespace, shape: str, head: str) -> dict[str, list[dict[str, float]]]:
    """All rounds of one shape: runner -> figures."""
    paths = models(shape, head, args.folder)
    names = [name for name in paths if name == "ours" or importlib.util.find_spec("llama_cpp")]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--runner", name, "--model", str(paths[name])]
            command += ["--threads", str(args.threads), "--prompt", str(args.prompt), "--tokens", str(args.tokens)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
        for binary, model in args.llama_bench:
            figures = run_llama_bench(Path(binary), Path(model), args.threads, args.prompt, args.tokens)
            results.setdefault(Path(binary).parent.name or binary, []).append(figures)
    return results


def summary(rounds: list[dict[str, float]], key: str) -> tuple[float, float]:
    """Median, and spread as half the range in percent of it."""
    values = [r[key] for r in rounds]
    middle = statistics.median(values)
    return middle, 50 * (max(values) - min(values)) / middle


def table(results: dict[str, Any]) -> str:
    """Markdown: one line a shape and runner."""
    lines = ["| shape | head | engine | prefill tok/s | decode tok/s | decode, of the read loop |", "|---|---|---|---|---|---|"]
    for place, runners in results.items():
        shape, head = place.split("/")
        for name, rounds in runners.items():
            cells = [f"{m:.1f} ± {s:.0f} %" for m, s in (summary(rounds, k) for k in ("prefill", "decode"))]
            share = ""
            if "read_rate" in rounds[0]:
                share = f"{100 * statistics.median(r['decode_bytes_rate'] / r['read_rate'] for r in rounds):.0f} %"
            lines.append(f"| {shape} | {head} | {'bitnet' if name == 'ours' else name} | {cells[0]} | {cells[1]} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2B-4T", "0.7B", "125M"])
    parser.add_argument("--heads", nargs="+", default=["F16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--llama-bench", nargs=2, action="append", default=[], metavar=("BINARY", "MODEL"))
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runner:
        print(json.dumps(RUNNERS[args.runner](args.model, args.threads, args.prompt, args.tokens)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results = {f"{shape}/{head}": measure(args, shape, head) for shape in args.shapes for head in args.heads}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    (args.folder / "peers.json").write_text(json.dumps({"date": now, "machine": platform.processor(), "results": results}, indent=1))
    print(f"{now}, {args.threads} threads, prompt {args.prompt}, {args.tokens} tokens, {args.rounds} rounds in turn\n")
    print(table(results))


if __name__ == "__main__":
    main()
