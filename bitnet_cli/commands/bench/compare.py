"""`bitnet bench compare A B`: the ratio of two runs, test by test, and whether it is more than noise.

Ratio: geometric means of the samples, B over A. Its uncertainty is Welch's 95 % interval of the difference of the logarithms, which holds
for what changes from sample to sample, not for what changed between the runs; for that the read loops of both runs are compared as well.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitnet_cli.commands.bench.output import aligned
from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.commands.bench.saved import read_rows
from bitnet_cli.commands.bench.tables import digits
from bitnet_cli.commands.reporting import Reporter, put
from bitnet_cli.errors import UsageError

SAME = ("test", "n_threads", "type_k", "weights", "activations", "n_top")  # what two rows must agree in to be compared
MACHINE = {"cpu_info": "CPUs", "isa": "instruction sets", "system": "systems", "versions": "versions", "build_commit": "kernels' sources"}
DRIFT = 0.1  # of the read loop, from which on the machine itself has changed


@dataclass
class Ratio:
    """B over A. low and high: 95 % interval; None where a run has one sample only."""

    test: str
    n_threads: int
    setup: str
    a: float  # tokens/s, geometric mean
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str


def t_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t: Cornish-Fisher expansion, and exact values up to 4 degrees (Abramowitz and Stegun, 26.7.5)."""
    if freedom < 4:
        exact = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
        below = max(1, math.floor(freedom))
        return exact[below] + (exact[below + 1] - exact[below]) * (max(freedom, 1.0) - below)
    z, v = 1.959964, freedom
    terms = [z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384]
    return sum(term / v**power for power, term in enumerate(terms))


def ratio_of(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Samples of two runs -> ratio of geometric means b / a, and its 95 % interval (None, None with fewer than two samples)."""
    x, y = [math.log(value) for value in a], [math.log(value) for value in b]
    difference = statistics.mean(y) - statistics.mean(x)
    if min(len(x), len(y)) < 2:
        return math.exp(difference), None, None
    parts = [statistics.variance(x) / len(x), statistics.variance(y) / len(y)]
    if not sum(parts):
        return (math.exp(difference),) * 3
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (x, y), strict=True))
    half = t_quantile(freedom) * math.sqrt(sum(parts))
    return math.exp(difference), math.exp(difference - half), math.exp(difference + half)


def compare_rows(first: Sequence[Row], second: Sequence[Row]) -> list[Ratio]:
    """A ratio for every test that both have. Where each file is of one model, the models may differ."""
    one_model = all(len({row["model_filename"] for row in rows}) == 1 for rows in (first, second))
    keys = SAME if one_model else (*SAME, "model_type")
    others = {tuple(row[key] for key in keys): row for row in second}
    found = []
    for row in first:
        other = others.get(tuple(row[key] for key in keys))
        if other is None:
            continue
        ratio, low, high = ratio_of(row["samples_ts"], other["samples_ts"])
        setup = " ".join(str(row[key]) for key in ("model_type", "type_k", "weights", "activations")[one_model:] if row[key])
        a, b = (statistics.geometric_mean(r["samples_ts"]) for r in (row, other))
        found.append(Ratio(row["test"], row["n_threads"], setup, a, b, ratio, low, high, _verdict(ratio, low, high)))
    return found


def _verdict(ratio: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "one sample: unknown"
    if low <= 1 <= high:
        return "within noise"
    return "faster" if ratio > 1 else "slower"


def differences(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    """What speaks against comparing two runs, each a sentence."""
    said = []
    for key, title in MACHINE.items():
        values = [{json.dumps(row[key], sort_keys=True) for row in rows} for rows in (first, second)]
        if values[0] != values[1] and all(value not in ('""', "{}") for side in values for value in side):
            a, b = (", ".join(sorted(side)).replace('"', "") for side in values)
            said.append(f"different {title}: {a} and {b}")
    hashes = [{row["model_sha256"] or row["model_type"] for row in rows} for rows in (first, second)]
    if hashes[0] != hashes[1]:
        names = [", ".join(sorted({row["model_type"] for row in rows})) for rows in (first, second)]
        said.append(f"different models: {names[0]} and {names[1]}" + (" (other weights under one name)" if names[0] == names[1] else ""))
    rates = [[row["read_bytes_per_s_median"] for row in rows if "read_bytes_per_s_median" in row] for rows in (first, second)]
    if all(rates):
        drift = statistics.median(rates[1]) / statistics.median(rates[0])
        if abs(drift - 1) > DRIFT and hashes[0] == hashes[1]:
            said.append(f"the read loop ran {drift:.2f} times as fast in the second: the machine was in another state")
    return said


def compare(first: Path, second: Path, kind: str) -> None:
    """Print the ratios as a table or as JSON; what speaks against them goes to stderr."""
    a, b = read_rows(first), read_rows(second)
    ratios = compare_rows(a, b)
    if not ratios:
        raise UsageError(f"{first} and {second} have no test in common: tests, threads and other choices must be the same")
    reporter = Reporter(False)
    warnings = differences(a, b)
    left_out = len(a) + len(b) - 2 * len(ratios)
    if left_out:
        warnings.append(f"{left_out} rows are in one of the files only, and are left out")
    if kind == "json":
        put(json.dumps({"ratios": [asdict(ratio) for ratio in ratios], "warnings": warnings}, indent=1))
    else:
        cells = [["test", "threads", "setup", "A tok/s", "B tok/s", "B / A", "95 % interval", ""]]
        for r in ratios:
            interval = "" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
            cells.append([r.test, str(r.n_threads), r.setup, digits(r.a), digits(r.b), f"{r.ratio:.3f}", interval, r.verdict])
        put("\n".join(aligned(cells, 3)))
    for warning in warnings:
        reporter.warn(warning)
