"""Vector types and operations: the only place with LLVM names. One module an instruction set, all with the same names.

    WIDTH, REGISTERS          bytes of one register: 32 or 64; how many there are
    UNSHIFTED                 how decode takes 2-bit fields apart, see row_sums.py
    ANY_BYTE                  whether `dot` takes codes up to 255, and wraps around where sums overflow
    load, load_half, store    bytes <-> array
    field0 .. field3          2-bit codes at bits 7-6, 5-4, 3-2, 1-0 of each byte (the order of weights in I2_S)
    triple(v)                 3 v modulo 256 in every byte
    FUSED                     whether a fused multiply-add is an instruction, and the conversion of float16 too. All sets where it is
                              give the same floats, to the bit: sums have one order (floats.py), and nothing is fused that is not said to be
    dot(narrow, codes, x)     sums of products of bytes; at most STEPS_PER_FOLD of them before
    fold(wide, narrow)        which widens to int32; total(wide), the sum over the lanes; totals, of four at once
    load_f16, one_f16, to_f16 float16 <-> float32
    load_float, fma           float32 from an array of either; a * b + c

`selected` is the module of this process (see kernels/isa.py). Of these names a module says itself what its CPU does in its own way; the
others follow from its types Bytes, Narrow (Wide, where it has none) and Wide: derived.py adds them.
"""

from importlib import import_module
from types import ModuleType

from .. import isa


def module_of(name: str) -> ModuleType:
    """The module of a set, with all of its names."""
    if name == isa.NAIVE:
        raise ImportError("the naive kernels use no vectors")
    module = import_module(f"{__name__}.{name}")
    for operation, emitted in import_module(f"{__name__}.derived").operations(module).items():
        vars(module).setdefault(operation, emitted)
    return module


selected = module_of(isa.chosen())
