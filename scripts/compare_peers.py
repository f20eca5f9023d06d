"""Speed beside the peers on this machine: the same shapes, the same random weights, the same head type, runs taken in turn.

    python scripts/compare_peers.py --shapes 2B-4T 0.7B 125M --threads 2 --rounds 5 --folder build/peers

Peers: llama.cpp through llama-cpp-python (TQ2_0 weights; `pip install llama-cpp-python`); any other `llama-bench` binary by
--llama-bench PATH MODEL; and by --baselines PyTorch in bfloat16 and NumPy in float32, only the products with the weight matrices, no
norms and no attention, so more than either can reach. `bitnet` computes the logits that the default sampler looks at (top 40), `bitnet,
all logits` all of them, as llama.cpp does.

Each measurement is a process of its own: warm-up, then prefill of --prompt tokens, then, from an empty context as llama-bench does, decode
of --tokens tokens one at a time; logits of the last token computed, nothing sampled. Medians over --rounds, with the spread; the
processes alternate so that a change in the machine's mood meets all of them. Prints a Markdown table and writes all figures to
FOLDER/peers.json.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 8  # tokens
TOP = 40  # of the default sampler


def run_ours(model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """Our engine; also the read rate of the same file in the same process, bytes/s."""
    import numpy as np
    from bitnet_kernels.bandwidth import read_rate

    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.model.engine import Engine
    from bitnet_cli.model.sequence import Sequence
    from bitnet_cli.model.traffic import bytes_a_token, head_rows, skipped_columns_share, skipped_share

    file = open_gguf(model)
    decoder = Sequence(Engine(file, context=prompt + tokens + WARM_UP, threads=threads, cache_type="f16"))  # as llama.cpp
    decoder.engine.start()
    decoder.feed(range(3, 3 + WARM_UP), TOP)
    for _ in range(2 * WARM_UP):
        decoder.feed([3], TOP)  # also decides which layouts pay, and builds them
    decoder.rewind(0)
    start = time.perf_counter()
    decoder.feed([1 + i % 1000 for i in range(prompt)], TOP)
    figures = {"prefill": prompt / (time.perf_counter() - start)}
    for name, top in (("decode", TOP), ("decode_all", 0)):
        decoder.rewind(0)
        start = time.perf_counter()
        for i in range(tokens):
            decoder.feed([1 + i % 1000], top)
        figures[name] = tokens / (time.perf_counter() - start)
        read = max(read_rate(np.asarray(file.file_bytes()), threads))
        figures[f"{name}_read_share"] = figures[name] * bytes_a_token(decoder.engine, top > 0) / read
        figures["read_rate"] = read
    engine, scratch = decoder.engine, decoder.engine.arrays.scratch
    rows = head_rows(engine) / max(head_rows(engine)[0] / (engine.config.vocab - len(engine.silent)), 1)
    figures |= {"head_rows_exact": float(rows[3]), "skipped_up": skipped_share(scratch), "skipped_down": skipped_columns_share(scratch)}
    decoder.engine.close()
    return figures


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


def run_torch(model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """Products with bfloat16 matrices of the same shapes, by PyTorch."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        matrices = [torch.full(shape, 0.01, dtype=torch.bfloat16) for shape in matrix_shapes(model)]
        return run_matrices(matrices, lambda count, cols: torch.ones((cols, count), dtype=torch.bfloat16), prompt, tokens)


def run_numpy(model: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """Products with float32 matrices of the same shapes, by NumPy's BLAS; the caller's environment limits its threads."""
    import numpy as np

    matrices = [np.full(shape, 0.01, np.float32) for shape in matrix_shapes(model)]
    return run_matrices(matrices, lambda count, cols: np.ones((cols, count), np.float32), prompt, tokens)


def matrix_shapes(model: Path) -> list[tuple[int, ...]]:
    """(rows, cols) of every weight matrix of a GGUF file; the head last."""
    from bitnet_cli.gguf_file.reader import open_gguf

    with open_gguf(model) as file:
        shapes = {name: info.shape for name, info in file.tensors.items() if len(info.shape) == 2}
    head = shapes.pop("token_embd.weight")
    return [*shapes.values(), head]


def run_matrices(matrices: list[Any], ones: Callable[[int, int], Any], prompt: int, tokens: int) -> dict[str, float]:
    """All products of a prompt, with the head for its last token only, and of tokens one by one. ones(count, cols): (cols, count)."""
    inputs = {(count, m.shape[1]): ones(count, m.shape[1]) for m in matrices for count in (1, prompt)}

    def step(count: int) -> None:
        for matrix in matrices[:-1]:
            matrix @ inputs[count, matrix.shape[1]]
        matrices[-1] @ inputs[1, matrices[-1].shape[1]]

    step(1)
    start = time.perf_counter()
    step(prompt)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(tokens):
        step(1)
    return {"prefill": prompt / prefill, "decode": tokens / (time.perf_counter() - start)}


RUNNERS = {"ours": run_ours, "llama": run_llama, "torch": run_torch, "numpy": run_numpy}
TITLES = {"ours": "bitnet", "llama": "llama.cpp TQ2_0", "torch": "PyTorch bf16, matrices only", "numpy": "NumPy f32, matrices only"}


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
    names = [name for name in paths if name == "ours" or importlib.util.find_spec("llama_cpp")] + args.baselines
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--runner", name, "--model", str(paths.get(name, paths["ours"]))]
            command += ["--threads", str(args.threads), "--prompt", str(args.prompt), "--tokens", str(args.tokens)]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
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
            for decode, title in (("decode", TITLES.get(name, name)), ("decode_all", f"{TITLES.get(name, name)}, all logits")):
                if decode not in rounds[0]:
                    continue
                cells = [f"{m:.1f} ± {s:.0f} %" for m, s in (summary(rounds, k) for k in ("prefill", decode))]
                share = f"{100 * summary(rounds, f'{decode}_read_share')[0]:.0f} %" if "read_rate" in rounds[0] else ""
                lines.append(f"| {shape} | {head} | {title} | {cells[0]} | {cells[1]} | {share} |")
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
    parser.add_argument("--baselines", nargs="*", default=[], choices=("torch", "numpy"))
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
