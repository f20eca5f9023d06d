"""Fixtures of the kernel tests: running a script of this folder in a process of its own."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bitnet_kernels import compile_cache, isa

from . import kept_kernels

HERE = Path(__file__).parent
KEPT = os.environ.get("BITNET_CI_CACHE")  # a folder for what tests compile

# These call compiled kernels directly; with BITNET_ISA=naive or NUMBA_DISABLE_JIT=1 there are none.
collect_ignore = (
    [
        "test_base3.py",
        "test_sums.py",
        "test_grouped.py",
        "test_ternary.py",
        "test_quantise.py",
        "test_floats.py",
        "test_quantised_attention.py",
    ]
    if isa.chosen() == isa.NAIVE
    else []
)

if KEPT and isa.chosen() != isa.NAIVE:
    kept_kernels.install(Path(KEPT))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_python() -> Run:
    """Run Python with some arguments in a process of its own; keywords change the environment, None takes a variable out.

    The instruction set follows the CPU unless BITNET_ISA is given. A process that takes longer than `limit` seconds hangs: the test fails.
    """

    def run(*arguments: str, limit: float = 240, **changes: str | None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "BITNET_ISA": "", "NUMBA_DISABLE_JIT": "0", "PYTHONWARNINGS": "error"}
        for name, value in changes.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=limit, check=False)

    return run


@pytest.fixture
def run_script(run_python: Run) -> Callable[..., Any]:
    """Run a script of this folder, which must succeed without a word on stderr, and return the JSON that it printed.

    keep: kernels that it calls are kept where CI keeps what is compiled (kept_kernels.py).
    """

    def run(name: str, *arguments: str, keep: bool = False, **options: Any) -> Any:
        by = [str(HERE / "kept_kernels.py")] if KEPT and keep else []
        done = run_python(*by, str(HERE / name), *arguments, **options)
        assert (done.returncode, done.stderr) == (0, ""), f"{name} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
        return json.loads(done.stdout)

    return run


@pytest.fixture
def compile_script(run_script: Callable[..., Any]) -> Callable[..., Any]:
    """As run_script, of a script that only compiles: where CI keeps what is compiled, so is what it printed, of the same sources.

    No more than that decides it: code is made for a set's features, whatever CPU makes it.
    """
    if not KEPT:
        return run_script
    versions = " ".join((sys.version, platform.machine(), *map(importlib.metadata.version, ("numba", "llvmlite", "numpy"))))
    sources = hashlib.sha256(f"{compile_cache.source_hash()} {versions}".encode())
    for path in sorted(HERE.glob("*.py")):
        sources.update(path.read_bytes())

    def run(name: str, *arguments: str, **changes: str) -> Any:
        asked = sources.copy()
        asked.update(json.dumps([name, arguments, changes]).encode())
        kept = Path(KEPT) / f"printed-{asked.hexdigest()[:32]}.json"
        if not kept.exists():
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            part.write_text(json.dumps(run_script(name, *arguments, **changes)))
            part.replace(kept)
        return json.loads(kept.read_text())

    return run
