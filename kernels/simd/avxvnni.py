"""AVX-VNNI: 32 bytes a register, vpdpbusd."""

from . import _vnni, trits
from .vectors import I8, I32, Vector

WIDTH = 32
REGISTERS = 16
UNSHIFTED = False
STEPS_PER_FOLD = 1 << 30
FUSED = True
ANY_BYTE = True
TILE_BLOCKS, TILE_TOKENS = 3, 4

Bytes, Wide = Vector(I8, 32), Vector(I32, 8)

triple = trits.tripled(Bytes, "x")
LaneSums, products, lane_fold = Wide, _vnni.emitted("llvm.x86.avx512.vpdpbusd.256", Wide), _vnni.lane_fold
