"""Instruction sets of aarch64: how they are chosen from what LLVM and operating systems report. test_assembly.py inspects their code."""

import ctypes
import platform
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bitnet_kernels import isa
from llvmlite import binding, ir

KERNELS = Path(isa.__file__).parent
ASIMDDP = 1 << 20  # in AT_HWCAP of Linux

# What LLVM reports: on Linux, of a Neoverse N1 and a Cortex-A53; on Windows since LLVM 22; on macOS nothing.
LINUX = {"neon": True, "fp-armv8": True, "crc": True, "lse": True, "aes": True, "sha2": True}
OLD_LINUX = {"neon": True, "fp-armv8": True, "crc": True}
WINDOWS = {"neon": True, "crc": True, "lse": True, "dotprod": True, "sve": False}


@pytest.mark.parametrize(
    ("features", "sets"),
    [
        ({"neon"}, ["neon", "portable", "naive"]),
        ({"neon", "fullfp16", "sve2", "i8mm"}, ["neon", "portable", "naive"]),
        ({"neon", "dotprod"}, ["dotprod", "neon", "portable", "naive"]),
        ({"dotprod"}, ["portable", "naive"]),
        (set(isa.REQUIRED_FEATURES["avx2"]), ["avx2", "portable", "naive"]),
    ],
)
def test_sets_of_a_cpu(features: set[str], sets: list[str]) -> None:
    assert isa.supported(frozenset(features)) == sets


@pytest.mark.parametrize(
    ("machine", "triple", "reads"), [("aarch64", "aarch64-linux-gnu", "CNTVCT_EL0"), ("x86_64", "x86_64-linux-gnu", "rdtsc")]
)
def test_the_clock_of_timed_steps(machine: str, triple: str, reads: str) -> None:
    """A register that programs may read; inline assembly would abort the process, since Numba loads no parser for it."""
    from bitnet_kernels.timed_step import emit_clock

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(ir.IntType(64), []), "clock").append_basic_block())
    builder.ret(emit_clock(builder, machine))
    target = binding.Target.from_triple(triple).create_target_machine()
    assert reads in target.emit_assembly(binding.parse_assembly(str(module)))


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> Callable[..., frozenset[str]]:
    """What isa.py would find on such a machine. `reported`: by LLVM; None: it cannot tell."""

    def find(machine: str, reported: dict[str, bool] | None, dot_products: bool = False) -> frozenset[str]:
        def report() -> dict[str, bool]:
            if reported is None:
                raise RuntimeError("failed to get host cpu features.")
            return reported

        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(binding, "get_host_cpu_features", report)
        monkeypatch.setattr(isa, "has_dot_products", lambda: dot_products)
        return isa.cpu_features.__wrapped__()

    return find


@pytest.mark.parametrize(
    ("machine", "reported", "dot_products", "best"),
    [
        ("aarch64", LINUX, True, "dotprod"),
        ("aarch64", OLD_LINUX, False, "neon"),
        ("aarch64", {}, True, "dotprod"),  # under emulation /proc/cpuinfo is the host's, and LLVM finds nothing in it
        ("arm64", {}, True, "dotprod"),
        ("arm64", None, True, "dotprod"),
        ("arm64", None, False, "neon"),
        ("ARM64", WINDOWS, False, "dotprod"),
        ("ARM64", {"neon": True, "dotprod": False}, False, "neon"),
        ("x86_64", {"sse2": True}, True, "portable"),
        ("riscv64", None, True, "portable"),
    ],
)
def test_the_best_set_of_a_machine(
    features: Callable[..., frozenset[str]], machine: str, reported: dict[str, bool] | None, dot_products: bool, best: str
) -> None:
    assert isa.supported(features(machine, reported, dot_products))[0] == best


def test_only_what_is_present_counts(features: Callable[..., frozenset[str]]) -> None:
    assert features("ARM64", WINDOWS) == {"neon", "crc", "lse", "dotprod"}
    assert features("x86_64", {"avx2": True, "fma": False}) == {"avx2"}


@pytest.mark.parametrize(("bits", "present"), [(ASIMDDP, True), (0xFFFFFFFF, True), (~ASIMDDP & 0xFFFFFFFF, False), (0, False)])
def test_linux_names_dot_products_in_hwcap(monkeypatch: pytest.MonkeyPatch, bits: int, present: bool) -> None:
    def getauxval(kind: Any) -> int:
        return bits if kind.value == 16 else 0

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(getauxval=getauxval))
    assert isa.has_dot_products() is present


@pytest.mark.parametrize(("status", "value", "present"), [(0, 1, True), (0, 0, False), (-1, 1, False)])
def test_macos_names_dot_products_in_sysctl(monkeypatch: pytest.MonkeyPatch, status: int, value: int, present: bool) -> None:
    """`status` is -1 where the name is unknown."""

    def sysctlbyname(name: bytes, out: Any, size: Any, new: Any, new_size: Any) -> int:
        assert (name, size._obj.value, new, new_size.value) == (b"hw.optional.arm.FEAT_DotProd", 4, None, 0)
        out._obj.value = value
        return status

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(sysctlbyname=sysctlbyname))
    assert isa.has_dot_products() is present


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "FreeBSD"])
def test_a_system_that_cannot_be_asked_has_none(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def no_library(name: None) -> Any:
        raise TypeError("on Windows a library must be named")

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert isa.has_dot_products() is False
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert isa.has_dot_products() is False


@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels use no vectors")
@pytest.mark.parametrize("name", list(isa.REQUIRED_FEATURES))
def test_every_set_has_every_operation(name: str) -> None:
    """Whatever the kernels take from the chosen set must be in each. Nothing is compiled, so this machine need not have it."""
    text = "".join(path.read_text(encoding="utf-8") for path in KERNELS.glob("*.py"))
    used = set(re.findall(r"\bselected\.(\w+)", text))
    assert {"WIDTH", "dot", "fold", "load_f16"} <= used
    module = import_module("bitnet_kernels.simd").module_of(name)
    assert sorted(operation for operation in used if not hasattr(module, operation)) == []
