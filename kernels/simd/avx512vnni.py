"""AVX-512 with VNNI: 64 bytes a register, vpdpbusd."""

from . import _vnni, trits
from .vectors import I8, I32, Vector

WIDTH = 64
REGISTERS = 32
UNSHIFTED = True
STEPS_PER_FOLD = 1 << 30
FUSED = True
ANY_BYTE = True
TILE_BLOCKS, TILE_TOKENS = 3, 8

Bytes, Wide = Vector(I8, 64), Vector(I32, 16)

triple = trits.tripled(Bytes, "v")
LaneSums, products, lane_fold = Wide, _vnni.emitted("llvm.x86.avx512.vpdpbusd.512", Wide), _vnni.lane_fold
