"""Rows -> text on stdout: a table for people, Markdown as llama-bench prints it, CSV, JSON, JSON lines."""

import csv
import io
import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.errors import UsageError

FORMATS = ("table", "md", "csv", "json", "jsonl")
NAMES = {  # key -> title of its column
    "model_filename": "model",
    "n_threads": "threads",
    "type_k": "cache",
    "weights": "weights",
    "activations": "activations",
    "n_top": "top-k",
}


def require_writable(path: Path | None) -> None:
    """UsageError where a file cannot be written: better before an hour of measuring than after it."""
    if path is None:
        return
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise UsageError(f"{path}: cannot be written")


def write_rows(rows: Sequence[Row], kind: str) -> str:
    """All rows as one text, which ends with a line end. kind: of FORMATS."""
    writers = {"table": _table, "md": _markdown, "csv": _csv, "json": _json, "jsonl": _jsonl}
    return writers[kind](rows)


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), indent=1) + "\n"


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _csv(rows: Sequence[Row]) -> str:
    """Lists and objects as JSON in one field, so that no sample is lost."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in row.items()})
    return text.getvalue()


def scaled(value: float, unit: str, step: float = 1000.0) -> str:
    """1234567, "B" -> "1.23 MB"; three digits. step: 1024 with KiB and so on."""
    prefixes = ["", "Ki", "Mi", "Gi", "Ti"] if step == 1024 else ["", "k", "M", "G", "T"]
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / step, power + 1
    digits = 0 if value >= 99.95 or value == int(value) else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}".rstrip()


def _columns(rows: Sequence[list[str]], numbers_from: int) -> list[str]:
    """Rows of cells -> lines, columns as wide as needed; the first `numbers_from` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        padded = [c.ljust(w) if i < numbers_from else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return lines


def rate(row: Row) -> str:
    """Median with its spread: 64.8 +-3 %."""
    noise = "" if row.get("spread") is None else f" +-{100 * row['spread']:.0f} %"
    return f"{digits(row['median_ts'])}{noise}"


def digits(value: float) -> str:
    """Three to four digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(rows: Sequence[Row]) -> str:
    first = rows[0]
    models = {row["model_type"]: row for row in rows}
    lines = [_model(row) for row in models.values()]
    lines += [f"machine  {first['cpu_info']}, {first['isa']}; bitnet {first['versions']['bitnet']}, numba {first['versions']['numba']}", ""]
    # What differs between rows is a column; what does not is said once.
    varied = [key for key in NAMES if key == "n_threads" or len({row[key] for row in rows}) > 1]
    cells = [[*(NAMES[key] for key in varied), "test", "tok/s", "ms/token", "bytes/token", "read GB/s", "of limit"]]
    for row in rows:
        cells.append([*(str(row[key]) for key in varied), _test(row), rate(row), *_limits(row)])
    lines += _columns(cells, len(varied) + 1)
    lines += ["", *_parts(rows, varied), *_energy(rows, varied), *_notes(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _model(row: Row) -> str:
    size = f"{scaled(row['model_n_params'], '')} parameters, {scaled(row['model_size'], 'B')}, head {row['head_type']}"
    digest = f", sha256 {row['model_sha256'][:16]}" if row["model_sha256"] else ""
    return f"model    {row['model_type']}, {row['hidden_act']}, {size}{digest}"


def _test(row: Row) -> str:
    return str(row["test"]) + (" projected" if row.get("projected") else "")


def _limits(row: Row) -> list[str]:
    milliseconds = f"{1e3 / row['median_ts']:.3g}"
    if "bytes_a_token" not in row:
        return [milliseconds, "", "", ""]
    if row["n_prompt"]:
        share = f"{100 * row['share_of_peak_ops']:.0f} % ops" if "share_of_peak_ops" in row else ""
        return [milliseconds, scaled(row["bytes_a_token"], "B"), "", share]
    share = f"{100 * row['share_of_read']:.0f} % read" if "share_of_read" in row else ""
    return [milliseconds, scaled(row["bytes_a_token"], "B"), f"{row['bytes_per_s'] / 1e9:.1f}", share]


def _parts(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    """Decode: microseconds and bytes of each part of a token."""
    timed = [row for row in rows if "layers_ns_a_token" in row]
    if not timed:
        return []
    header = ["a decoded token", *("" for _ in varied), "layers", "attention", "head", "rest", "ternary bytes", "KV bytes", "head bytes"]
    cells = [header]
    for row in timed:
        times = [f"{row[f'{part}_ns_a_token'] / 1e3:.0f} us" for part in ("layers", "attention", "head", "rest")]
        sizes = [scaled(row[f"{part}_bytes_a_token"], "B") for part in ("ternary", "kv", "head")]
        cells.append([_test(row), *_said(row, varied), *times, *sizes])
    return [*_columns(cells, 1 + len(varied)), ""]


def _energy(rows: Sequence[Row], varied: Sequence[str]) -> list[str]:
    """A column a method, figure and range, and the notes that say what each is."""
    priced = [row for row in rows if "energy" in row]
    methods = list(dict.fromkeys(rung["method"] for row in priced for rung in row["energy"]))
    if not priced:
        return []
    cells = [["energy, J a token (range)", *("" for _ in varied), *methods, "CPU seconds a token"]]
    for row in priced:
        rungs = {rung["method"]: rung for rung in row["energy"]}
        figures = [_range(rungs[method]) if method in rungs else "" for method in methods]
        cells.append([_test(row), *_said(row, varied), *figures, f"{row['cpu_s_a_token']:.3g}"])
    notes = {rung["method"]: rung["note"] for row in priced for rung in row["energy"]}
    lines = [*_columns(cells, 1 + len(varied)), *_wrapped([f"{method}: {note}" for method, note in notes.items()])]
    reason = next((row["energy_not_measured"] for row in priced if "energy_not_measured" in row), "")
    return [*lines, *_wrapped([f"not measured: {reason}"] if reason else []), ""]


def _range(rung: Row) -> str:
    return f"{rung['joules']:.2g} ({rung['low']:.2g} to {rung['high']:.2g})"


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ")]


def _said(row: Row, varied: Sequence[str]) -> list[str]:
    return [f"{NAMES[key]} {row[key]}" for key in varied]


def _notes(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    lines = []
    read = sorted({row["read_bytes_per_s"] for row in rows if "read_bytes_per_s" in row})
    if read:
        span = f"{read[0] / 1e9:.1f}" if len(read) == 1 else f"{read[0] / 1e9:.1f} to {read[-1] / 1e9:.1f}"
        lines.append(f"limits: the read loop over the same bytes, {span} GB/s (best pass, by setup)")
    peak = sorted({row["peak_ops_per_s"] for row in rows if "peak_ops_per_s" in row})
    if peak:
        lines.append(
            f"        the matmul kernel on weights in the cache, {' to '.join(f'{p / 1e9:.0f}' for p in {peak[0], peak[-1]})} Gop/s"
        )
    skipped = [row for row in rows if row.get("skipped_up")]
    if skipped:
        row = skipped[-1]
        lines.append(f"not read: {100 * row['skipped_up']:.0f} % of `up` rows, {100 * row['skipped_down']:.0f} % of `down` columns (exact)")
    lines += _wrapped([f"projected, {row['model_filename']}: {row['method']}" for row in _first_of_each(rows) if row.get("method")])
    lines += _wrapped([f"tokens fed: {first['tokens']}"] if first["tokens"] != "text" else [])
    return lines


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    """One row a model."""
    return list({row["model_filename"]: row for row in reversed(rows)}.values())[::-1]


def _markdown(rows: Sequence[Row]) -> str:
    """llama-bench's columns, average and standard deviation."""
    head = ["model", "size", "params", "backend", "threads", "type_k", "weights", "test", "t/s"]
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        cells: list[Any] = [row["model_type"], scaled(row["model_size"], "B", 1024), scaled(row["model_n_params"], ""), row["backends"]]
        cells += [row["n_threads"], row["type_k"], row["weights"], _test(row), f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
