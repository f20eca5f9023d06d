"""Script: uses some kernels -> where they are kept, and how many parts were compiled (separate.py), as JSON.

cache_state.py team        whole steps by a team of two threads; `q8` after it: with that KV cache
cache_state.py barrier     one small kernel that Python calls; `alone` after it: it cannot start a process
"""

import json
import sys

import numpy as np
from bitnet_kernels import child, compile_cache, isa, native


def team() -> bool:
    """Whether two threads finish prefill and decode."""
    from tiny_model import Model, Shape

    model = Model(Shape(), threads=2, cache="q8" if "q8" in sys.argv else "f32")
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
    right = {"team": team, "barrier": barrier}[sys.argv[1]]()
    folder = compile_cache.folder()
    result = {
        "right": right,
        "isa": isa.chosen(),
        "numba": "numba" in sys.modules,
        "machine code": [] if folder is None else sorted(path.name for path in folder.glob("*.code")),
        "folder": None if folder is None else str(folder),
        "compiled": compile_cache.compiled.done,
        "linked": sorted(native._addresses),
    }
    json.dump(result, sys.stdout)


main()
