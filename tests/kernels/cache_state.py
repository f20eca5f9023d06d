"""Script: uses some kernels -> where they are kept and what Numba compiled or found there, as JSON.

cache_state.py integers    the ternary kernels and the quantiser
cache_state.py team        whole steps by a team of two threads
cache_state.py barrier     one small kernel that Python calls; `barrier alone`: it cannot start a process
"""

import json
import sys

import numpy as np
from bitnet_kernels import child, compile_cache, isa


def row() -> bool:
    """Whether a row of codes is right."""
    from bitnet_kernels import quantise

    codes = np.zeros(256, np.int8)
    factor, total = quantise.quantise_row(np.linspace(-1, 1, 256).astype(np.float32), 256, codes, 256)
    return bool(factor == 127 and total == 0 and codes.min() == -127 and codes.max() == 127)


def team() -> bool:
    """Whether two threads finish prefill and decode."""
    from tiny_model import Model, Shape

    model = Model(Shape(), threads=2)
    finite = all(bool(np.isfinite(part).all()) for step in ((0, 13), (13, 1)) for part in model.run(*step))
    model.team.close()
    return finite


def barrier() -> bool:
    """Whether a step is announced, and nobody is asleep."""
    from bitnet_kernels.control import Shared, new_control
    from bitnet_kernels.frame import Frame
    from bitnet_kernels.native import Entry

    control = new_control()
    return Entry("barrier", "announce").over(Frame(Shared(control)), 2)(1, 1) == 0


def main() -> None:
    if "alone" in sys.argv:

        def start(*_: object) -> None:
            raise OSError("no more processes")

        child.start = start
    right = {"row": row, "team": team, "barrier": barrier}[sys.argv[1]]()
    numba = "numba" in sys.modules
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.startswith("bitnet_kernels")]
    kernels = {item for module in modules for item in vars(module).values() if isinstance(item, Dispatcher)}
    folder = compile_cache.folder()
    result = {
        "right": right,
        "isa": isa.chosen(),
        "numba": numba,
        "machine code": [] if folder is None else sorted(path.name for path in folder.glob("*.code")),
        "folder": None if folder is None else str(folder),
        "found": sorted(item.__name__ for item in kernels if item.stats.cache_hits),
        "compiled": sorted(item.__name__ for item in kernels if item.stats.cache_misses),
        "used": sorted(item.__name__ for item in kernels if item.signatures),
    }
    json.dump(result, sys.stdout)


main()
