"""Results -> rows: dictionaries with the keys of llama-bench, and ours beside them. docs/bench.md lists every key.

Rates are tokens/s, times nanoseconds, sizes bytes; `*_a_token` is of one token.
"""

import datetime
import hashlib
import math
import platform
import statistics
from dataclasses import dataclass, field
from typing import Any

from bitnet_kernels import compile_cache, isa

from bitnet_cli import __version__
from bitnet_cli.commands.bench.limits import Peak
from bitnet_cli.commands.bench.measure import Result
from bitnet_cli.commands.bench.plan import Setup
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorType
from bitnet_cli.layer_table import PROJECTIONS
from bitnet_cli.machine import energy
from bitnet_cli.machine.cpu import cpu_name, host_cpus
from bitnet_cli.model.config import read_config
from bitnet_cli.model.engine import CHUNK_TOKENS

NOISY = 0.10  # half the range of the samples, as a share of their median
HASH_WHOLE = 4 << 30  # bytes: SHA-256 of so many takes two seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Power:
    """What the user says of the machine's power; 0: nothing."""

    watts: float = 0.0
    tdp: float = 0.0
    cpus: int = 1  # of the package that `tdp` is of
    cpus_of_host: bool = True  # `cpus` was not given


def power_of(watts: float, tdp: float, cpus: int) -> Power:
    """Options --watts, --tdp and --tdp-cpus, 0 where they were not given. UsageError: below 0, not finite, or CPUs without --tdp."""
    if not all(0 <= value < math.inf for value in (watts, tdp, cpus)):
        raise UsageError("--watts, --tdp and --tdp-cpus must be positive numbers")
    if cpus and not tdp:
        raise UsageError("--tdp-cpus says what --tdp is of; give both")
    return Power(watts, tdp, cpus or host_cpus(), not cpus)


def spread(values: list[float]) -> float:
    """Half the range, as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def file_hash(file: GGUFFile) -> tuple[str, str]:
    """SHA-256 of a model file, and of what: the whole file up to 4 GiB, of larger ones the first 16 MiB and the size."""
    data = file.file_bytes()
    if file.size <= HASH_WHOLE:
        digest = hashlib.sha256()
        for place in file.files:
            digest.update(data[place.start : place.start + place.size].data)
        return digest.hexdigest(), "file" if len(file.files) == 1 else f"{len(file.files)} files, one after the other"
    return hashlib.sha256(data[: 16 << 20].tobytes() + str(file.size).encode()).hexdigest(), "first 16 MiB and size"


@dataclass
class Machine:
    """What all rows of a run share."""

    fixed: Row = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Machine":
        """This machine and these versions."""
        import llvmlite
        import numba
        import numpy

        versions = {"bitnet": __version__, "python": platform.python_version(), "numpy": numpy.__version__}
        versions |= {"numba": numba.__version__, "llvmlite": llvmlite.__version__}
        fixed = {
            "build_commit": compile_cache.source_hash()[:8],  # of the kernels' sources: what decides the speed
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": "",
            "backends": f"CPU ({isa.chosen()})",
            "isa": isa.chosen(),
            "system": platform.platform(),
            "versions": versions,
        }
        return cls(fixed)


def model_keys(file: GGUFFile, instead: Row) -> Row:
    """The keys that describe a model file. instead: of a shape, whose file has no name and perhaps not all layers."""
    config = read_config(file)
    kinds = {info.type.name for name, info in file.tensors.items() if name.startswith("blk.0.attn_q.")}
    head = file.tensors.get("output.weight", file.tensors["token_embd.weight"])
    more = instead.get("more_weights", 0)
    digest, of = file_hash(file) if not instead else ("", "nothing: random weights")
    keys = {
        "model_filename": str(file.path),
        "model_type": f"{config.name} {'/'.join(sorted(kinds))}",
        "model_size": sum(info.nbytes for info in file.tensors.values()) + more // 4,
        "model_n_params": sum(math.prod(info.shape) for info in file.tensors.values()) + more,
        "model_sha256": digest,
        "model_sha256_of": of,
        "architecture": config.architecture,
        "hidden_act": config.activation,
        "ternary_weights": config.ternary_weights,
        "head_type": TensorType(head.type).name,
        "layers": config.layers,
        "hidden": config.hidden,
        "inner": config.inner,
        "projected": False,
    }
    return keys | {key: value for key, value in instead.items() if key != "more_weights"}


def base_row(machine: Machine, model: Row, setup: Setup, result: Result) -> Row:
    """Keys that need no samples."""
    test = result.trial
    return {
        **machine.fixed,
        **model,
        "n_batch": CHUNK_TOKENS,
        "n_ubatch": CHUNK_TOKENS,
        "n_threads": setup.threads,
        "type_k": setup.cache_type,
        "type_v": setup.cache_type,
        "n_gpu_layers": 0,
        "use_mmap": True,
        "embeddings": False,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.depth,
        "test": test.name,
        "weights": setup.weights,
        "n_top": test.top,
        "test_time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def timing_keys(ns: list[int], tokens: int) -> Row:
    """Of the samples of one test, each of `tokens` tokens."""
    rates = [1e9 * tokens / t for t in ns]
    several = len(ns) > 1
    return {
        "avg_ns": round(statistics.mean(ns)),
        "stddev_ns": round(statistics.stdev(ns)) if several else 0,
        "avg_ts": statistics.mean(rates),
        "stddev_ts": statistics.stdev(rates) if several else 0.0,
        "median_ns": round(statistics.median(ns)),
        "median_ts": statistics.median(rates),
        "spread": spread([float(t) for t in ns]) if several else None,
        "noisy": several and spread([float(t) for t in ns]) > NOISY,
        "samples_ns": ns,
        "samples_ts": rates,
    }


def limit_keys(result: Result, read: list[float], peak: Peak) -> Row:
    """How near decode is to reading as fast as memory allows, and prefill to computing as fast as arithmetic in registers.

    read: bytes/s of the read loop; peak: zeros if not measured. Ternary operations have the limit of products of bytes, others of floats.
    """
    if result.traffic is None or result.operations is None:
        return {}
    seconds = statistics.median(s.ns for s in result.samples) / 1e9 / result.trial.tokens
    keys: Row = {
        "bytes_a_token": result.traffic.total,
        "ternary_bytes_a_token": result.traffic.ternary,
        "head_bytes_a_token": result.traffic.head,
        "kv_bytes_a_token": result.traffic.kv,
        "ops_a_token": result.operations.total,
        "ternary_ops_a_token": result.operations.ternary,
        "head_ops_a_token": result.operations.head,
        "attention_ops_a_token": result.operations.attention,
        "bytes_per_s": result.traffic.total / seconds,
        "ops_per_s": result.operations.total / seconds,
        "skipped_up": result.skipped_up,
        "skipped_down": result.skipped_down,
    }
    if read:
        keys |= {"read_bytes_per_s": max(read), "read_bytes_per_s_median": statistics.median(read), "read_samples": read}
        keys["share_of_read"] = keys["bytes_per_s"] / max(read)
    if peak.products and peak.floats:
        least = result.operations.ternary / peak.products + (result.operations.head + result.operations.attention) / peak.floats
        keys |= {"peak_ops_per_s": peak.products, "peak_float_ops_per_s": peak.floats, "share_of_peak_ops": least / seconds}
    if result.parts:
        keys |= {f"{name}_ns_a_token": 1e9 * value for name, value in result.parts.items()}
    return keys


def kernel_keys(result: Result, read: float, peak: Peak) -> Row:
    """Of each kernel, and of what stands outside them; share_of_limit: of reading in decode, of arithmetic in registers in prefill.

    read: bytes/s at most; it and the peak's are 0 if not measured.
    """
    kernels: list[Row] = []
    for name, seconds, size, operations in result.kernels:
        kernel: Row = {"name": name, "ns_a_token": 1e9 * seconds, "bytes_a_token": size, "ops_a_token": operations}
        work, most = (size, read)
        if result.trial.n_prompt:
            work, most = operations * (name != "head"), peak.products if name in PROJECTIONS else peak.floats
        if work and most:
            kernel["share_of_limit"] = work / seconds / most
        kernels.append(kernel)
    if kernels and result.parts.get("rest"):
        kernels.append({"name": "python", "ns_a_token": 1e9 * result.parts["rest"], "bytes_a_token": 0.0, "ops_a_token": 0.0})
    return {"kernels": kernels} if kernels else {}


def energy_keys(result: Result, model: Row, power: Power, idle_watts: float, reason: str) -> Row:
    """Every rung of the ladder that applies, best first, and the proxies."""
    tokens = result.trial.tokens
    seconds = statistics.median(s.ns for s in result.samples) / 1e9 / tokens
    cpu = statistics.median(s.cpu_ns for s in result.samples) / 1e9 / tokens
    rungs = []
    if result.joules and len(result.joules) == len(result.samples):
        rungs.append(energy.from_counters(result.joules, result.seconds, tokens * result.runs, idle_watts))
    if power.watts:
        rungs.append(energy.from_watts(power.watts, seconds))
    if power.tdp:
        rungs.append(energy.from_tdp(power.tdp, cpu, power.cpus, power.cpus_of_host))
    rungs.append(energy.from_arithmetic(model["ternary_weights"], model["layers"], model["inner"]))
    keys: Row = {"cpu_s_a_token": cpu, "energy": [rung._asdict() | {"unit": "J/token"} for rung in rungs]}
    return keys | ({} if result.joules else {"energy_not_measured": reason})
