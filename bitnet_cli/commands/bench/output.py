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
from bitnet_cli.commands.bench.tables import about, name_of, scaled, sections
from bitnet_cli.errors import UsageError
from bitnet_cli.gguf_file.part_file import explain_write_errors, part_file

FORMATS = ("table", "md", "csv", "json", "jsonl")
WIDTH = 110  # columns of notes


def require_writable(path: Path | None) -> None:
    """UsageError where a file cannot be written: better before an hour of measuring than after it."""
    if path is None:
        return
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise UsageError(f"{path}: cannot be written")


def write_file(path: Path, data: bytes) -> None:
    """All of it or nothing, an old file staying; BitnetError names the file. Devices are written to as they are."""
    with explain_write_errors(path, len(data)):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with part_file(path.resolve(), len(data)) as part:
            part.write_bytes(data)


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


def aligned(rows: Sequence[list[str]], numbers_from: int) -> list[str]:
    """Rows of cells -> lines, columns as wide as needed; the first `numbers_from` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        padded = [c.ljust(w) if i < numbers_from else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return lines


def _table(rows: Sequence[Row]) -> str:
    lines = [line for label, text in about(rows) for line in _wrapped(f"{label:<9}{text}", 9)]
    for section in sections(rows):
        lines += ["", *([section.title] if section.title else [])]
        if len(section.cells) > 1:
            lines += aligned(section.cells, section.words)
        for note in section.notes:
            lines += _wrapped(f"  {note}", 4)
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False)


def _markdown(rows: Sequence[Row]) -> str:
    """llama-bench's columns, average and standard deviation."""
    head = ["model", "size", "params", "backend", "threads", "type_k", "weights", "test", "t/s"]
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        cells: list[Any] = [row["model_type"], scaled(row["model_size"], "B", 1024), scaled(row["model_n_params"], ""), row["backends"]]
        cells += [row["n_threads"], row["type_k"], row["weights"], name_of(row), f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
