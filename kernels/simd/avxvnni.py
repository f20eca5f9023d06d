"""AVX-VNNI: 32 bytes a register, vpdpbusd."""

from . import _vnni, floats, trits, vectors
from .vectors import I8, I32, Vector

WIDTH = 32
REGISTERS = 16
UNSHIFTED = False
STEPS_PER_FOLD = 1 << 30
FUSED = True
ANY_BYTE = True
TILE_BLOCKS, TILE_TOKENS = 3, 4

Bytes, Wide = Vector(I8, 32), Vector(I32, 8)

load, load_half, store = vectors.loader(Bytes), vectors.half_loader(Bytes), vectors.storer(Bytes)
add_bytes, zero_bytes, total_bytes = vectors.binary(Bytes, "add"), vectors.constant(Bytes), vectors.byte_total(Bytes)
triple = trits.tripled(Bytes, "x")
field0, field1, field2, field3 = (vectors.two_bit_field(Bytes, shift) for shift in (6, 4, 2, 0))
zero_narrow = zero_wide = vectors.constant(Wide)
add_narrow = add_wide = fold = vectors.binary(Wide, "add")
total, totals, add_totals = vectors.integer_total(Wide), vectors.four_totals(Wide), vectors.four_totals_to_memory(Wide)
LaneSums, products, lane_fold = Wide, _vnni.emitted("llvm.x86.avx512.vpdpbusd.256", Wide), _vnni.lane_fold
dot = _vnni.dot_product(products, Bytes, Wide)
quad_dot = dot
load_f16, to_f16 = floats.half_precision_loader(FUSED), floats.half_precision_bits(FUSED)
one_f16 = floats.half_precision_scalar(FUSED)
load_float, fma = floats.float_loader(load_f16), floats.multiply_add(FUSED)
