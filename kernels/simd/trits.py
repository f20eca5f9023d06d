"""Operations on base-3 bytes (base3.py): a byte v is a fraction of 256 whose next digit in base 3 is 3 v / 256, rounded down."""

from typing import Any

from llvmlite import ir

from . import vectors
from .vectors import I16, Vector


def tripled(vector: Vector, register: str = "") -> Any:
    """`triple(v)`: 3 v modulo 256 in every byte. `register`: LLVM's letter for a register of this type, where LLVM must not see through.

    x86 has no multiplication of bytes. LLVM makes one of 9 v and 27 v all the same, from ten times as many instructions as the additions
    that were written, so an empty piece of assembly hides each step from it. NEON multiplies bytes: nothing to hide.
    """

    def emit(b: Any, value: Any) -> Any:
        result = b.add(b.add(value, value), value)
        kind = ir.FunctionType(vector.llvm, [vector.llvm])
        return b.asm(kind, "", f"={register},0", [result], side_effect=False) if register else result

    return vectors.lanewise(vector, vector, emit)


def next_digit(vector: Vector) -> Any:
    """`digit(s)`: the next digit of each byte, 0 to 2, where s is v - 128 as a signed byte (v with its highest bit turned).

    Signed, because AVX2 compares bytes only so. Tripling is the same with 128 taken off: 3 (v - 128) = 3 v - 128 modulo 256.
    """

    def emit(b: Any, value: Any) -> Any:
        over = [b.sext(b.icmp_signed(">", value, vector.splat(limit - 128)), vector.llvm) for limit in (85, 170)]
        return b.sub(b.sub(vector.splat(0), over[0]), over[1])  # 3 v >= 256, 3 v >= 512

    return vectors.lanewise(vector, vector, emit)


def signed(vector: Vector) -> Any:
    """`turn(v)`: v - 128 modulo 256."""
    return vectors.lanewise(vector, vector, lambda b, value: b.xor(value, vector.splat(128)))


def as_fraction(vector: Vector) -> Any:
    """`encode(n)`: 256 n / 243, rounded up, for n up to 242: the byte whose digits are those of n."""
    wide = Vector(I16, vector.lanes)

    def emit(b: Any, value: Any) -> Any:
        more = b.udiv(b.add(b.mul(b.zext(value, wide.llvm), wide.splat(13)), wide.splat(242)), wide.splat(243))
        return b.add(value, b.trunc(more, vector.llvm))

    return vectors.lanewise(vector, vector, emit)
