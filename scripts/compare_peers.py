"""Speed beside the peers on this machine: the same shapes, the same random weights, the same head type, runs taken in turn.

    python scripts/compare_peers.py --shapes 2B-4T 0.7B 125M --threads 2 --rounds 5 --folder build/peers
    python scripts/compare_peers.py --shapes 2B-4T --prompt 256 --depths 0 2048 --batches 8 16 --tool llama-sweep-bench PATH MODEL
    python scripts/compare_peers.py --shapes bonsai-1.7B bonsai-8B --prompt 128 --program build/llama-bench --types TQ2_0 Q4_0 Q2_0

Peers: llama.cpp through llama-cpp-python (TQ2_0 weights; `pip install llama-cpp-python`); any llama-bench, llama-batched-bench or
llama-sweep-bench, of llama.cpp or of a fork, by --tool NAME PATH MODEL (peer_tools.py; figures of programs in one folder stand in one
line); a llama-bench by --program with files of the same shape in each of --types; and by --baselines PyTorch in bfloat16 and NumPy in
float32, only the products with the weight matrices, no norms and no attention, so more than either can reach. `bitnet` computes
the logits that the default sampler looks at (top 40), `bitnet, all logits` all of them, as llama.cpp does.

Each measurement is a process of its own: warm-up, then at each of --depths prefill of --prompt tokens and, from the same context as
llama-bench does, decode of --tokens tokens one at a time; logits of the last token computed, nothing sampled. --batches: so many texts
decode together, tokens/s of all; ours as one step of so many rows, each with its logits. Medians over --rounds, with the spread; the
processes alternate so that a change in the machine's mood meets all of them. Prints Markdown tables and writes all figures to
FOLDER/peers.json.
"""

import argparse
import ctypes
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peer_tools import SHORT, TOOLS, Figures, Setup, at_depth

WARM_UP = 8  # tokens
TOP = 40  # of the default sampler


def run_ours(model: Path, setup: Setup) -> Figures:
    """Our engine; also the read rate of the same file in the same process, bytes/s."""
    import numpy as np
    from bitnet_kernels.bandwidth import read_rate

    from bitnet_cli.gguf_file.reader import open_gguf
    from bitnet_cli.model.engine import Engine, Row
    from bitnet_cli.model.sequence import Sequence
    from bitnet_cli.model.traffic import bytes_a_token, head_rows, skipped_columns_share, skipped_share

    file = open_gguf(model)
    room = max(setup.depths) + setup.prompt + setup.tokens + WARM_UP
    decoder = Sequence(Engine(file, context=room, threads=setup.threads, cache_type="f16"))  # as llama.cpp
    engine, scratch = decoder.engine, decoder.engine.arrays.scratch
    engine.start()
    decoder.feed(range(3, 3 + WARM_UP), TOP)
    for _ in range(2 * WARM_UP):
        decoder.feed([3], TOP)  # also decides which layouts pay, and builds them
    figures = {}
    for depth in setup.depths:
        decoder.rewind(0)
        if depth:
            decoder.feed(prompt_of(depth), TOP)
        start = time.perf_counter()
        decoder.feed(prompt_of(setup.prompt), TOP)
        figures[at_depth("prefill", depth)] = setup.prompt / (time.perf_counter() - start)
        for name, top in (("decode", TOP), ("decode_all", 0)):
            decoder.rewind(depth)
            start = time.perf_counter()
            for token in prompt_of(setup.tokens):
                decoder.feed([token], top)
            figures[at_depth(name, depth)] = setup.tokens / (time.perf_counter() - start)
            if not depth:
                read = max(read_rate(np.asarray(file.file_bytes()), setup.threads))
                figures[f"{name}_read_share"] = figures[name] * bytes_a_token(engine, top > 0) / read
                figures["read_rate"] = read
    decoder.rewind(0)
    decoder.feed(prompt_of(SHORT), TOP)
    for texts in setup.batches:
        for name, top in (("together", TOP), ("together_all", 0)):
            seconds = 0.0
            for i in range(setup.tokens + 1):
                decoder.rewind(SHORT)
                row = Row(decoder, prompt_of(texts + i)[i:], tuple(range(texts)), top)
                start = time.perf_counter()
                engine.step([row])
                seconds += (time.perf_counter() - start) * (i > 0)  # the first is a warm-up
            figures[f"{name}@{texts}"] = texts * setup.tokens / seconds
    rows = head_rows(engine) / max(head_rows(engine)[0] / (engine.config.vocab - len(engine.silent)), 1)
    figures |= {"head_rows_exact": float(rows[2]), "skipped_up": skipped_share(scratch), "skipped_down": skipped_columns_share(scratch)}
    engine.close()
    return figures


def prompt_of(count: int) -> list[int]:
    """The same ids for every engine."""
    return [1 + i % 1000 for i in range(count)]


class Llama:
    """llama.cpp by its C interface, as llama-bench and llama-batched-bench drive it."""

    def __init__(self, model: Path, setup: Setup):
        import llama_cpp

        self.c, texts = llama_cpp, max(setup.batches, default=1)
        self.c.llama_log_set(ctypes.cast(None, self.c.llama_log_callback), ctypes.c_void_p())
        self.c.llama_backend_init()
        parameters = self.c.llama_model_default_params()
        parameters.use_mmap = True
        loaded = self.c.llama_load_model_from_file(str(model).encode(), parameters)
        options = self.c.llama_context_default_params()
        room = max(setup.depths) + setup.prompt + setup.tokens + WARM_UP
        options.n_ctx, options.n_seq_max, options.kv_unified = max(room, texts * (SHORT + setup.tokens)), texts, True
        options.n_batch, options.n_ubatch = max(setup.prompt, 512), min(max(setup.prompt, texts), 512)
        options.n_threads = options.n_threads_batch = setup.threads
        self.context = self.c.llama_new_context_with_model(loaded, options)
        self.batch = self.c.llama_batch_init(max(setup.prompt, 512), 0, 1)

    def feed(self, ids: list[int], position: int, texts: int = 1) -> float:
        """Seconds for tokens of one text from a position on, or for one of each of several texts at that position."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i], batch.seq_id[i][0] = (position, i) if texts > 1 else (position + i, 0)
            batch.logits[i] = texts > 1 or i == len(ids) - 1
        start = time.perf_counter()
        if self.c.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.c.llama_get_logits(self.context)  # waits for the computation
        return time.perf_counter() - start

    def forget(self, position: int = 0) -> None:
        """What the first text has from a position on; at 0 everything of all."""
        memory = self.c.llama_get_memory(self.context)
        if position:
            self.c.llama_memory_seq_rm(memory, 0, position, -1)
        else:
            self.c.llama_memory_clear(memory, True)


def run_llama(model: Path, setup: Setup) -> Figures:
    """llama.cpp through llama-cpp-python."""
    llama, figures = Llama(model, setup), {}
    llama.feed(list(range(3, 3 + WARM_UP)), 0)
    llama.feed([3], WARM_UP)
    for depth in setup.depths:
        llama.forget()
        for start in range(0, depth, 512):
            llama.feed(prompt_of(depth)[start : start + 512], start)
        figures[at_depth("prefill", depth)] = setup.prompt / llama.feed(prompt_of(setup.prompt), depth)
        llama.forget(depth)
        seconds = sum(llama.feed([token], depth + i) for i, token in enumerate(prompt_of(setup.tokens)))
        figures[at_depth("decode", depth)] = setup.tokens / seconds
    for texts in setup.batches:
        llama.forget()
        for position in range(SHORT):
            llama.feed(prompt_of(texts), position, texts)
        seconds = sum(llama.feed(prompt_of(texts), SHORT + i, texts) for i in range(setup.tokens))
        figures[f"together@{texts}"] = texts * setup.tokens / seconds
    return figures


def run_torch(model: Path, setup: Setup) -> Figures:
    """Products with bfloat16 matrices of the same shapes, by PyTorch."""
    import torch

    torch.set_num_threads(setup.threads)
    with torch.inference_mode():
        matrices = [torch.full(shape, 0.01, dtype=torch.bfloat16) for shape in matrix_shapes(model)]
        return run_matrices(matrices, lambda count, cols: torch.ones((cols, count), dtype=torch.bfloat16), setup)


def run_numpy(model: Path, setup: Setup) -> Figures:
    """Products with float32 matrices of the same shapes, by NumPy's BLAS; the caller's environment limits its threads."""
    import numpy as np

    matrices = [np.full(shape, 0.01, np.float32) for shape in matrix_shapes(model)]
    return run_matrices(matrices, lambda count, cols: np.ones((cols, count), np.float32), setup)


def matrix_shapes(model: Path) -> list[tuple[int, ...]]:
    """(rows, cols) of every weight matrix of a GGUF file; the head last."""
    from bitnet_cli.gguf_file.reader import open_gguf

    with open_gguf(model) as file:
        shapes = {name: info.shape for name, info in file.tensors.items() if len(info.shape) == 2}
    head = shapes.pop("token_embd.weight")
    return [*shapes.values(), head]


def run_matrices(matrices: list[Any], ones: Callable[[int, int], Any], setup: Setup) -> Figures:
    """All products of a prompt, with the head for its last token only, and of tokens one by one. ones(count, cols): (cols, count)."""
    inputs = {(count, m.shape[1]): ones(count, m.shape[1]) for m in matrices for count in (1, setup.prompt)}

    def step(count: int) -> None:
        for matrix in matrices[:-1]:
            matrix @ inputs[count, matrix.shape[1]]
        matrices[-1] @ inputs[1, matrices[-1].shape[1]]

    step(1)
    start = time.perf_counter()
    step(setup.prompt)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(setup.tokens):
        step(1)
    return {"prefill": setup.prompt / prefill, "decode": setup.tokens / (time.perf_counter() - start)}


RUNNERS = {"ours": run_ours, "llama": run_llama, "torch": run_torch, "numpy": run_numpy}
TITLES = {"ours": "bitnet", "llama": "llama.cpp TQ2_0", "torch": "PyTorch bf16, matrices only", "numpy": "NumPy f32, matrices only"}


def models(shape: str, head: str, folder: Path) -> dict[str, Path]:
    """Our file and llama.cpp's of one shape; made where they are absent."""
    from synthetic_model import SHAPES, write

    from bitnet_cli.gguf_file.types import TensorType

    paths = {}
    if shape not in SHAPES:
        return {"ours": typed_model(shape, "I2_S", folder)}
    for runner, weights in (("ours", TensorType.I2_S), ("llama", TensorType.TQ2_0)):
        paths[runner] = folder / f"{shape}-{weights.name}-{head}.gguf"
        if not paths[runner].exists():
            write(paths[runner], SHAPES[shape], weights, TensorType[head], shape)
    return paths


def typed_model(shape: str, kind: str, folder: Path) -> Path:
    """A file of a shape of `bitnet bench` in a type; made where it is absent."""
    from bitnet_cli.commands.bench.shapes import SHAPES, write_shape
    from bitnet_cli.gguf_file.types import TensorType

    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        write_shape(path, SHAPES[shape]._replace(context=4096), shape, kind=TensorType[kind])
    return path


def measure(args: argparse.Namespace, shape: str, head: str) -> dict[str, list[Figures]]:
    """All rounds of one shape: runner, or folder of programs -> figures."""
    paths, setup = models(shape, head, args.folder), setup_of(args)
    names = [name for name in paths if name == "ours" or importlib.util.find_spec("llama_cpp")] + args.baselines
    results: dict[str, list[Figures]] = {name: [] for name in names}
    typed = {f"llama.cpp {kind}": typed_model(shape, kind, args.folder) for kind in args.types}
    for number in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--runner", name, "--model", str(paths.get(name, paths["ours"]))]
            for option in ("threads", "prompt", "tokens", "depths", "batches"):
                value = getattr(setup, option)
                command += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
        for name, model in typed.items():
            results.setdefault(name, []).append(TOOLS["llama-bench"](args.program, model, setup))
        for tool, binary, model in args.tool:
            rounds = results.setdefault(Path(binary).parent.name or binary, [])
            figures = TOOLS[tool](Path(binary), Path(model), setup)
            rounds[number:] = [{**(rounds[number] if number < len(rounds) else {}), **figures}]
    return results


def setup_of(args: argparse.Namespace) -> Setup:
    """What the command line asks for."""
    return Setup(args.threads, args.prompt, args.tokens, tuple(args.depths), tuple(args.batches))


def summary(rounds: list[dict[str, float]], key: str) -> tuple[float, float]:
    """Median, and spread as half the range in percent of it."""
    values = [r[key] for r in rounds]
    middle = statistics.median(values)
    return middle, 50 * (max(values) - min(values)) / middle


def table(results: dict[str, Any], depth: int = 0) -> str:
    """Markdown: one line a shape and runner that has figures at a depth."""
    lines = ["| shape | head | engine | prefill tok/s | decode tok/s | decode, of the read loop |", "|---|---|---|---|---|---|"]
    for place, runners in results.items():
        shape, head = place.split("/")
        for name, rounds in runners.items():
            for decode, title in (("decode", TITLES.get(name, name)), ("decode_all", f"{TITLES.get(name, name)}, all logits")):
                keys = at_depth("prefill", depth), at_depth(decode, depth)
                if keys[1] not in rounds[0]:
                    continue
                cells = [cell(rounds, key) if key in rounds[0] else "" for key in keys]
                share = f"{100 * summary(rounds, f'{decode}_read_share')[0]:.0f} %" if "read_rate" in rounds[0] and not depth else ""
                lines.append(f"| {shape} | {head} | {title} | {cells[0]} | {cells[1]} | {share} |")
    return "\n".join(lines)


def cell(rounds: list[Figures], key: str) -> str:
    """Median and spread."""
    return "{:.1f} ± {:.0f} %".format(*summary(rounds, key))


def batch_table(results: dict[str, Any], batches: Sequence[int]) -> str:
    """Markdown: tokens/s of all texts that decode together, one line a shape and runner that has such figures."""
    lines = ["| shape | head | engine | " + " | ".join(f"{n} texts tok/s" for n in batches) + " |", "|---" * (3 + len(batches)) + "|"]
    for place, runners in results.items():
        for name, rounds in runners.items():
            for key, title in (("together", TITLES.get(name, name)), ("together_all", f"{TITLES.get(name, name)}, all logits")):
                cells = [cell(rounds, f"{key}@{n}") if f"{key}@{n}" in rounds[0] else "" for n in batches]
                if any(cells):
                    lines.append(f"| {place.replace('/', ' | ')} | {title} | {' | '.join(cells)} |")
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
    parser.add_argument("--depths", type=int, nargs="+", default=[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[])
    parser.add_argument("--tool", nargs=3, action="append", default=[], metavar=("NAME", "PROGRAM", "MODEL"), help=", ".join(TOOLS))
    parser.add_argument("--program", type=Path, help="a llama-bench")
    parser.add_argument("--types", nargs="*", default=[], help="of files for --program")
    parser.add_argument("--runner", choices=RUNNERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [name for name, *_ in args.tool if name not in TOOLS]:
        parser.error(f"--tool {unknown[0]}: expected {', '.join(TOOLS)}")
    if args.runner:
        print(json.dumps(RUNNERS[args.runner](args.model, setup_of(args))))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results = {f"{shape}/{head}": measure(args, shape, head) for shape in args.shapes for head in args.heads}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    (args.folder / "peers.json").write_text(json.dumps({"date": now, "machine": platform.processor(), "results": results}, indent=1))
    print(f"{now}, {args.threads} threads, prompt {args.prompt}, {args.tokens} tokens, {args.rounds} rounds in turn\n")
    for depth in args.depths:
        print(f"from {depth} tokens on:\n\n{table(results, depth)}\n")
    if args.batches:
        print(batch_table(results, args.batches))


if __name__ == "__main__":
    main()
