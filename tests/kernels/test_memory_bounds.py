"""Kernels check no bounds, so that they stay within their arrays is tested: with guard pages, and with Numba's own checks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bitnet_kernels import isa

pytestmark = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="NumPy checks its own bounds")


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of an anonymous map, as on Linux")
def test_nothing_past_the_end_of_an_array_is_touched(run_script: Callable[..., Any]) -> None:
    """Vector loads and stores included; prefetches may go past, they never fault."""
    assert run_script("memory_bounds.py", "guard", keep=True) is True


@pytest.mark.slow
def test_whole_steps_with_bounds_checks(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """Indexing of plain Python; this code is no other's, so it is in a folder of its own."""
    folder = Path(os.environ.get("BITNET_CI_CACHE", tmp_path)) / "bounds"
    assert run_script("memory_bounds.py", "check", keep=True, NUMBA_BOUNDSCHECK="1", BITNET_CACHE_DIR=str(folder)) is True
