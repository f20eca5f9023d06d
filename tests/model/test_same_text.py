"""The same text on every CPU that has fused multiply-adds: hashes of what models compute, tests/golden/same_text.json, hold on every
instruction set, with one thread and two, and whatever NumPy may use of the CPU. golden_hashes.py computes them, in a process for each set.

A change that is meant to change them: scripts/make_golden_hashes.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.embedded import EMBEDDED

from . import golden_models

PROGRAM = Path(__file__).parent / "golden_hashes.py"
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "same_text.json").read_text())
AVAILABLE = isa.supported(isa.cpu_features())
OTHERS = ("portable", isa.NAIVE)  # without fused multiply-adds
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(argument...): what golden_hashes.py prints of all models; keywords are variables of its environment."""
    folder = tmp_path_factory.mktemp("golden")
    golden_models.write(folder)
    files = [f"{name}={model.path}" for name, model in EMBEDDED.items()] + [f"{path.stem}={path}" for path in sorted(folder.glob("*.gguf"))]

    def run(*arguments: str, **variables: str) -> str:
        clean = {
            key: value for key, value in os.environ.items() if key not in ("BITNET_ISA", "NUMBA_DISABLE_JIT", "NPY_DISABLE_CPU_FEATURES")
        }
        command = [sys.executable, "-W", "error", str(PROGRAM), *arguments, *files]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean | variables, timeout=600)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == AVAILABLE[0] else [pytest.mark.slow]) for name in isa.REQUIRED_FEATURES]
)
def test_every_instruction_set_writes_the_golden_text(run: Run, name: str) -> None:
    if name not in AVAILABLE:
        pytest.skip(f"this CPU lacks {', '.join(sorted(isa.REQUIRED_FEATURES[name] - isa.cpu_features()))}")
    found = json.loads(run("1,2", BITNET_ISA=name))
    expected = GOLDEN["portable" if name == "portable" else "fused"]
    assert found == {"isa": name, "threads": {"1": expected, "2": expected}}


def test_numpys_choice_of_instructions_does_not_show(run: Run) -> None:
    core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    there = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    found = json.loads(run("1", NPY_DISABLE_CPU_FEATURES=",".join(there)))
    assert found["threads"]["1"] == GOLDEN["portable" if found["isa"] == "portable" else "fused"]


def test_how_far_apart_others_are(run: Run, tmp_path: Path) -> None:
    """Without fused multiply-adds logits differ by roundings, 4e-7 of the largest, until an activation falls on the other side of a half.

    Then by what a step of one activation is worth: docs/log.md#same-text has what was seen, 1e-2, and 8e-2 where activations have 4 bits.
    """
    logits = {}
    for name in (AVAILABLE[0], *OTHERS):
        run("logits", str(tmp_path / name), BITNET_ISA=name)
        with np.load(tmp_path / f"{name}.npz") as file:
            logits[name] = dict(file)
    for name in OTHERS:
        for model, expected in logits[AVAILABLE[0]].items():
            off = np.abs(logits[name][model] - expected).max(1) / np.abs(expected).max()
            assert off.min() < 4e-7, (name, model)
            assert off.max() < (0.3 if model == "tiny-a4.8" else 0.03), (name, model)
