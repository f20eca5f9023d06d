"""Script: another of this folder, with code of the portable set as for a CPU that has nothing but x86-64's first instructions.

oldest_cpu.py SCRIPT [ARGUMENTS]
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from bitnet_kernels import isa

module: Any = isa
module._LEVEL_2 = frozenset({"what no CPU has"})
del sys.argv[0]
runpy.run_path(str(Path(__file__).parent / sys.argv[0]), run_name="__main__")
