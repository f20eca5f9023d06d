"""Which instruction set the kernels are written in: chosen once, before anything is compiled.

An LLVM intrinsic that the CPU lacks aborts the process while compiling, so the choice follows the CPU's real features.
`BITNET_ISA` forces one; forcing one that this CPU lacks is an error. With `NUMBA_DISABLE_JIT=1` there are no vectors at all, and
the naive NumPy kernels do the work.
"""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import NamedTuple

# Fastest first. Each needs all of its LLVM feature names, and its machine code is made for these; `portable` and `naive` need none. The
# levels are those of the x86-64 psABI: CPUs that have a set have the level too, of which code takes what it can use.
_LEVEL_2 = frozenset({"cx16", "popcnt", "sahf", "sse3", "ssse3", "sse4.1", "sse4.2"})
_LEVEL_3 = _LEVEL_2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
_AVX512VNNI = _LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni"}
_HINTS = frozenset({"prfchw"})  # prefetches before writes: where an x86-64 CPU has none, the instruction does nothing
REQUIRED_FEATURES: dict[str, frozenset[str]] = {
    "amx": _AVX512VNNI | {"amx-tile", "amx-int8"},
    "avx512vnni": _AVX512VNNI,
    "avxvnni": _LEVEL_3 | {"avxvnni"},
    "avx2": _LEVEL_3,
    "dotprod": frozenset({"neon", "dotprod"}),
    "neon": frozenset({"neon"}),
    "portable": frozenset(),
}
NAIVE = "naive"
WIDE = frozenset({"amx", "avx512vnni"})  # sets with registers of 64 bytes; the others have 32


class InstructionSetError(Exception):
    """BITNET_ISA names an instruction set that does not exist or that this CPU lacks."""


def has_dot_products() -> bool:
    """Whether the operating system names FEAT_DotProd for this aarch64 CPU. Windows has only LLVM's word, given since LLVM 22."""
    try:
        library = ctypes.CDLL(None)
        if platform.system() == "Linux":
            library.getauxval.restype = ctypes.c_ulong
            return bool(library.getauxval(ctypes.c_ulong(16)) & 1 << 20)  # AT_HWCAP, HWCAP_ASIMDDP
        if platform.system() == "Darwin":
            value, size = ctypes.c_int(0), ctypes.c_size_t(4)
            name = b"hw.optional.arm.FEAT_DotProd"
            return library.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0 and value.value == 1
    except (OSError, AttributeError, TypeError):
        pass
    return False


def may_use_tiles() -> bool:
    """Whether Linux lets this process use AMX's tiles, which it must be asked for (arch_prctl); other systems are not asked yet."""
    if platform.system() != "Linux" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    number, request, tile_data = 158, 0x1023, 18  # arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    try:
        return bool(ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.c_long(request), ctypes.c_long(tile_data)) == 0)
    except (OSError, AttributeError):
        return False


@cache
def cpu_features() -> frozenset[str]:
    """LLVM names of the features of this CPU, as the operating system lets them be used."""
    from llvmlite import binding

    try:
        features = {name for name, present in binding.get_host_cpu_features().items() if present}
    except RuntimeError:  # LLVM cannot tell, as on macOS with an ARM CPU
        features = set()
    if platform.machine().lower() in ("aarch64", "arm64"):
        # LLVM leaves dot products out on Linux and names nothing at all on macOS. NEON is part of aarch64.
        features |= {"neon", "dotprod"} if has_dot_products() else {"neon"}
    if "amx-tile" in features and not may_use_tiles():
        features -= {"amx-tile", "amx-int8"}
    return frozenset(features)


class Target(NamedTuple):
    """What machine code is made for: a CPU by LLVM's name, and features that it has besides."""

    cpu: str
    features: tuple[str, ...]


def target() -> Target:
    """That of the set of this process: any CPU that runs it. The portable set takes the second level of x86-64 where this CPU has that."""
    name = chosen()
    features = REQUIRED_FEATURES[name] or (_LEVEL_2 if cpu_features() >= _LEVEL_2 else frozenset())
    if features >= _LEVEL_3:
        features |= _HINTS
    return Target("x86-64" if platform.machine().lower() in ("x86_64", "amd64") else "generic", tuple(sorted(features)))


def of_this_platform() -> list[str]:
    """Sets that some CPU of this kind runs, fastest first."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return [name for name, needed in REQUIRED_FEATURES.items() if not needed or ("neon" in needed) is arm]


def supported(features: frozenset[str]) -> list[str]:
    """Instruction sets that a CPU with these features runs, fastest first; `naive` is always the last."""
    return [name for name, needed in REQUIRED_FEATURES.items() if needed <= features] + [NAIVE]


_assumed: list[str] = []


def assume(name: str) -> None:
    """Make code for a set from now on, which this CPU may lack: it can be compiled and kept, not run.

    RuntimeError: kernels are imported already, for the set that was chosen.
    """
    if f"{__package__}.simd" in sys.modules:
        raise RuntimeError(f"kernels for {chosen()} are imported already")
    _assumed[:] = [name]
    chosen.cache_clear()


@cache
def chosen() -> str:
    """The instruction set of this process. Raises InstructionSetError where BITNET_ISA cannot be met."""
    if _assumed:
        return _assumed[0]
    forced = os.environ.get("BITNET_ISA", "").strip().lower()
    if forced and forced != NAIVE and forced not in REQUIRED_FEATURES:
        raise InstructionSetError(f"BITNET_ISA={forced}: unknown; known are {', '.join([*REQUIRED_FEATURES, NAIVE])}")
    if forced == NAIVE or os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return NAIVE
    available = supported(cpu_features())
    if forced and forced not in available:
        missing = sorted(REQUIRED_FEATURES[forced] - cpu_features())
        raise InstructionSetError(f"BITNET_ISA={forced}: this CPU lacks {', '.join(missing)}; it runs {', '.join(available)}")
    return forced or available[0]


def width() -> int:
    """Bytes of a register of this process's instruction set."""
    return 64 if chosen() in WIDE else 32
