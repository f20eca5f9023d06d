"""Rows -> sections of words: what the table on a terminal and the HTML report show."""

from collections.abc import Sequence
from typing import NamedTuple

from bitnet_cli.commands.bench.rows import Row

NAMES = {  # key -> title of its column
    "model_filename": "model",
    "n_threads": "threads",
    "type_k": "cache",
    "weights": "weights",
    "activations": "activations",
    "n_top": "top-k",
}
KERNEL_TITLES = {  # of kernel_times.KERNELS
    **{f"attn_{name}": name for name in "qkv"},
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "attention": "attention",
    "kv_store": "RoPE of keys, KV store",
    "inputs": "norm, int8 of inputs",
    "glu": "GLU",
    "norms": "other norms",
    "head": "head",
    "waiting": "waiting at barriers",
    "python": "embedding, Python",
}
KERNELS_NOTE = (
    "mean of all threads in a step in the middle of the test, with a clock between kernels; the limit of decode is the read loop, that of "
    "prefill arithmetic in registers; operations of skipped rows count as done"
)
METHODS = {"rapl": "measured", "watts": "from --watts", "tdp": "TDP model"}  # of a column; the arithmetic model is a note


class Section(NamedTuple):
    """A table: a title, its cells with the header first, how many columns are words, and notes under it."""

    title: str
    cells: list[list[str]]
    words: int
    notes: list[str]


def sections(rows: Sequence[Row]) -> list[Section]:
    """Everything that is said about rows of one run: speed, the parts of a token, energy."""
    # What differs between rows is a column; what does not is said once, by `about`.
    varied = [key for key in NAMES if len({row[key] for row in rows}) > 1]
    made = [_speed(rows, varied), _parts(rows, varied), _kernels(rows, varied), _energy(rows, varied)]
    return [section for section in made if len(section.cells) > 1 or section.notes]


def about(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Models, machine and what all rows share, as pairs of a label and a text."""
    first = rows[0]
    said = []
    for row in {row["model_type"]: row for row in rows}.values():
        size = f"{scaled(row['model_n_params'], '')} parameters, {scaled(row['model_size'], 'B')}, head {row['head_type']}"
        digest = f", sha256 {row['model_sha256'][:16]}" if row["model_sha256"] else ""
        said.append(("model", f"{row['model_type']}, {row['hidden_act']}, {size}{digest}"))
    versions = ", ".join(f"{name} {first['versions'].get(name, 'unknown')}" for name in ("bitnet", "numba", "numpy", "python"))
    said.append(("machine", f"{first['cpu_info']}, {first['isa']}; {versions}"))
    same = [f"{title} {first[key]}" for key, title in NAMES.items() if key != "model_filename" and len({row[key] for row in rows}) == 1]
    said.append(("setup", ", ".join(same) + f"; tokens fed: {first['tokens']}"))
    return said


def scaled(value: float, unit: str, step: float = 1000.0) -> str:
    """1234567, "B" -> "1.23 MB"; three digits. step: 1024 for KiB and so on."""
    prefixes = ["", "Ki", "Mi", "Gi", "Ti"] if step == 1024 else ["", "k", "M", "G", "T"]
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / step, power + 1
    places = 0 if value >= 99.95 or value == int(value) else 1 if value >= 9.995 else 2
    return f"{value:.{places}f} {prefixes[power]}{unit}".rstrip()


def digits(value: float) -> str:
    """Three to four digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def name_of(row: Row) -> str:
    """The test, and whether its figures are projected."""
    return str(row["test"]) + (" projected" if row.get("projected") else "")


def _speed(rows: Sequence[Row], varied: Sequence[str]) -> Section:
    cells = [
        [*(NAMES[key] for key in varied), "test", "tok/s", "spread", "ms/token", "CPU ms/token", "bytes/token", "GB/s", "of the limit"]
    ]
    for row in rows:
        noise = "" if row["spread"] is None else f"+-{100 * row['spread']:.0f} %"
        times = [f"{1e3 / row['median_ts']:.3g}", f"{1e3 * row['cpu_s_a_token']:.3g}"]
        cells.append([*_choices(row, varied), name_of(row), digits(row["median_ts"]), noise, *times, *_limits(row)])
    return Section("", cells, len(varied) + 1, _limit_notes(rows))


def _choices(row: Row, varied: Sequence[str]) -> list[str]:
    return [str(row[key]) for key in varied]


def _limits(row: Row) -> list[str]:
    if "bytes_a_token" not in row:
        return ["", "", ""]
    size, speed = scaled(row["bytes_a_token"], "B"), f"{row['bytes_per_s'] / 1e9:.1f}"
    if row["n_prompt"]:
        return [size, "", f"{100 * row['share_of_peak_ops']:.0f} % arithmetic" if "share_of_peak_ops" in row else ""]
    return [size, speed, f"{100 * row['share_of_read']:.0f} % read" if "share_of_read" in row else ""]


def _limit_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for threads in dict.fromkeys(row["n_threads"] for row in rows if "read_bytes_per_s" in row):
        here = [row for row in rows if row["n_threads"] == threads]
        keys = ("read_bytes_per_s", "peak_ops_per_s", "peak_float_ops_per_s")
        read, most, floats = (max(row.get(key, 0.0) for row in here) / 1e9 for key in keys)
        peak = f"; arithmetic in registers, {most:.0f} Gop/s" + f", float32 {floats:.0f}" * bool(floats) if most else ""
        notes.append(f"limits, {threads} thread{'s' * (threads > 1)}: read loop over the same bytes, best pass {read:.1f} GB/s{peak}")
    skipped = [row for row in rows if row.get("skipped_up")]
    if skipped:
        up, down = (100 * skipped[-1][key] for key in ("skipped_up", "skipped_down"))
        notes.append(f"not read, because exact zeros meet it: {up:.0f} % of the `up` rows, {down:.0f} % of the `down` columns")
    for row in {row["model_filename"]: row for row in rows if row.get("method")}.values():
        notes.append(f"projected, {row['model_filename']}: {row['method']}")
    return notes


def _parts(rows: Sequence[Row], varied: Sequence[str]) -> Section:
    """Decode: microseconds and bytes of each part of a token."""
    header = ["test", "layers", "attention", "head", "rest", "ternary bytes", "KV bytes", "head bytes"]
    cells = [[*(NAMES[key] for key in varied), *header]]
    for row in rows:
        if "layers_ns_a_token" not in row:
            continue
        times = [f"{row[f'{part}_ns_a_token'] / 1e3:.0f} us" for part in ("layers", "attention", "head", "rest")]
        sizes = [scaled(row[f"{part}_bytes_a_token"], "B") for part in ("ternary", "kv", "head")]
        cells.append([*_choices(row, varied), name_of(row), *times, *sizes])
    return Section("Where a decoded token's time and bytes go", cells, len(varied) + 1, [])


def _kernels(rows: Sequence[Row], varied: Sequence[str]) -> Section:
    """A line a kernel, the slowest first."""
    timed = [row for row in rows if row.get("kernels")]
    cells = [[*(NAMES[key] for key in varied), "test", "kernel", "us/token", "share", "work/token", "rate", "of the limit"]]
    notes = []
    for row in timed:
        total = sum(kernel["ns_a_token"] for kernel in row["kernels"])
        named = [*_choices(row, varied), name_of(row)]
        for kernel in sorted(row["kernels"], key=lambda kernel: -float(kernel["ns_a_token"])):
            ns, size, operations = (kernel[key] for key in ("ns_a_token", "bytes_a_token", "ops_a_token"))
            line = [*named, KERNEL_TITLES.get(kernel["name"], kernel["name"]), digits(ns / 1e3), f"{100 * ns / total:.1f} %"]
            work, unit = (operations, "op") if row["n_prompt"] else (size, "B")
            share = f"{100 * kernel['share_of_limit']:.0f} %" if "share_of_limit" in kernel else ""
            cells.append([*line, scaled(work, unit), f"{scaled(1e9 * work / ns, unit)}/s", share] if work else [*line, "", "", ""])
            named = [""] * len(named)
        times = f"{total / 1e6:.3g} ms, {total / 1e6 * row['median_ts'] / 10:.0f} % of a token of the test"
        notes.append(f"{', '.join([*_choices(row, varied), name_of(row)])}: sum {times}")
    if timed:
        notes.append(KERNELS_NOTE)
    return Section("Time per kernel", cells, len(varied) + 2, notes)


def _energy(rows: Sequence[Row], varied: Sequence[str]) -> Section:
    """A column a method that says something about this machine, figure and range; notes say what each is."""
    priced = [row for row in rows if row.get("energy")]
    rungs = [{rung["method"]: rung for rung in row["energy"]} for row in priced]
    methods = [method for method in METHODS if any(method in each for each in rungs)]
    cells = [[*(NAMES[key] for key in varied), "test", *(f"{METHODS[method]}, J/token" for method in methods)]]
    for row, each in zip(priced, rungs, strict=True):
        if methods:
            cells.append([*_choices(row, varied), name_of(row), *(_range(each[m]) if m in each else "" for m in methods)])
    notes = [f"{METHODS[method]}: {next(each[method]['note'] for each in rungs if method in each)}" for method in methods]
    reason = next((row["energy_not_measured"] for row in priced if "energy_not_measured" in row), "")
    notes += [f"energy was not measured: {reason}"] if reason else []
    for row in {row["model_filename"]: row for row in priced}.values():
        computed = [rung for rung in row["energy"] if rung["method"] == "arithmetic"]
        notes += [f"arithmetic, {row['model_type']}: {_range(rung)} J/token: {rung['note']}" for rung in computed]
    return Section("Energy", cells, len(varied) + 1, notes)


def _range(rung: Row) -> str:
    return f"{rung['joules']:.2g} ({rung['low']:.2g} to {rung['high']:.2g})"
