"""`bitnet --version`: the program's version, and what it computes with. Numba is not imported, its version is read from its metadata."""

import platform
from importlib import metadata

from bitnet_kernels import isa

from bitnet_cli import __version__
from bitnet_cli.machine.cpu import cpu_name
from bitnet_cli.machine.threads import physical_cores


def lines() -> list[str]:
    """What is printed."""
    try:
        chosen = isa.chosen()
    except isa.InstructionSetError as error:
        chosen = str(error)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numba", "llvmlite", "numpy"))
    return [
        f"bitnet {__version__}",
        f"CPU: {cpu_name()}, {physical_cores()} cores, instruction set {chosen}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {versions}",
    ]
