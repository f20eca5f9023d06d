"""Files of `bitnet bench --save`, `-o json` and `-o jsonl` -> rows, checked as far as comparing and drawing need."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet_cli.commands.bench.fields import wrong_field
from bitnet_cli.commands.bench.rows import Row
from bitnet_cli.errors import BadFileError, unreadable

MOST_BYTES = 256 << 20
NEEDED = ("test", "n_prompt", "n_gen", "n_depth", "n_threads", "type_k", "cpu_info", "model_filename", "model_type", "samples_ts")
# What files of other versions, or of llama-bench, do not say.
ABSENT: Row = {
    "weights": "",
    "activations": "",
    "n_top": 0,
    "isa": "",
    "versions": {},
    "model_sha256": "",
    "build_commit": "",
    "system": "",
}


def read_rows(path: Path) -> list[Row]:
    """Rows of a file. UsageError: there is none. BadFileError: cannot be read, or holds something else."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadFileError(path, "file", f"is larger than {MOST_BYTES >> 20} MiB, which no result of `bitnet bench` is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise BadFileError(path, "file", "is not text, expected JSON of `bitnet bench`") from None
    rows = _parse(path, text)
    if not rows:
        raise BadFileError(path, "rows", "are none")
    return [_checked(path, number, row) for number, row in enumerate(rows)]


def _parse(path: Path, text: str) -> Sequence[Any]:
    try:
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError):
        raise BadFileError(path, "file", "is not JSON; `bitnet bench --save FILE` and `-o json` write it") from None
    return whole if isinstance(whole, list) else [whole]


def _checked(path: Path, number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise BadFileError(path, f"row {number}", "is not an object of `bitnet bench`")
    if "test" not in row and isinstance(row.get("n_prompt"), int) and isinstance(row.get("n_gen"), int):  # llama-bench
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        row["test"] = f"{name} @ d{row['n_depth']}" if row.get("n_depth") else name
    if wrong := wrong_field(row):
        raise BadFileError(path, f"row {number}: {wrong:.40}", "is not as `bitnet bench` writes it")
    for key in NEEDED:
        if key not in row:
            raise BadFileError(path, f"row {number}: {key}", "is missing, expected a result of `bitnet bench`")
    return ABSENT | row
