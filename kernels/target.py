"""What machine code is made for: every CPU that runs the instruction set of this process, not the one at hand.

Numba makes code for the CPU that it runs on, by name and with all features that it has. Here the features are those that the set requires
(isa.py), so code that is kept on one machine runs on another, and what a test sees does not depend on where it runs.
"""

from functools import cache
from typing import Any

from numba.core.codegen import JITCPUCodegen
from numba.core.registry import cpu_target

from . import isa


class _Codegen(JITCPUCodegen):
    """Numba's, for the set's target in place of this CPU."""

    def _get_host_cpu_name(self) -> str:
        return isa.target().cpu

    def _get_host_cpu_features(self) -> str:
        return ",".join(f"+{name}" for name in isa.target().features)


@cache
def context() -> Any:
    """Numba's context of this CPU, with the code generator of the set."""
    whole = cpu_target.target_context
    whole.refresh()  # types and functions that are known so far: what is copied knows them too
    return whole.subtarget(_internal_codegen=_Codegen("bitnet"))
