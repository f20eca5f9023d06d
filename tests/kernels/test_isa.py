"""The choice of an instruction set, and that every one which this CPU runs gives the same integers and nearly the same floats."""

import platform
from collections.abc import Callable
from typing import Any

import pytest
from bitnet_kernels import isa

from .test_step import assert_near

SSE = {"sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "cx16", "popcnt", "sahf"}
AVX2 = SSE | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512vl", "avx512dq"}
AVAILABLE = isa.supported(isa.cpu_features())


@pytest.mark.parametrize(
    ("features", "best"),
    [
        (set(), "portable"),
        (SSE | {"avx"}, "portable"),
        ({"neon"}, "neon"),
        ({"neon", "dotprod"}, "dotprod"),
        ({"dotprod"}, "portable"),
        (AVX2 - {"fma"}, "portable"),
        (AVX2 - {"f16c"}, "portable"),
        (AVX2 - {"bmi2"}, "portable"),
        (AVX2, "avx2"),
        (AVX512, "avx2"),
        (AVX2 | {"avxvnni"}, "avxvnni"),
        (AVX512 | {"avx512vnni"}, "avx512vnni"),
        (AVX512 | {"avx512vnni"} - {"avx512bw"}, "avx512vnni"),
        ((AVX512 | {"avx512vnni"}) - {"avx512bw"}, "avx2"),
        ((AVX512 | {"avx512vnni", "avxvnni"}) - {"avx512vl"}, "avxvnni"),
        (AVX512 | {"avx512vnni", "avxvnni"}, "avx512vnni"),
        (AVX512 | {"avx512vnni", "amx-tile"}, "avx512vnni"),
        (AVX512 | {"avx512vnni", "amx-tile", "amx-int8"}, "amx"),
    ],
)
def test_the_fastest_set_that_a_cpu_has_whole(features: set[str], best: str) -> None:
    assert isa.supported(frozenset(features))[0] == best


def test_tiles_are_left_alone_where_the_system_does_not_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first of their instructions a process must ask Linux, which may say no; other systems are not asked."""
    from llvmlite import binding

    names = isa.REQUIRED_FEATURES["amx"]
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: dict.fromkeys(names, True))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for allowed, best in ((True, "amx"), (False, "avx512vnni")):
        monkeypatch.setattr(isa, "may_use_tiles", lambda allowed=allowed: allowed)
        assert isa.supported(isa.cpu_features.__wrapped__())[0] == best
    monkeypatch.undo()
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert not isa.may_use_tiles()


def test_every_cpu_runs_the_last_two() -> None:
    for features in (frozenset[str](), frozenset(AVX2), isa.cpu_features()):
        assert isa.supported(features)[-2:] == ["portable", isa.NAIVE]


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a process with these features and variables would choose."""

    def choose(features: set[str], forced: str = "", disabled: str = "0") -> str:
        monkeypatch.setattr(isa, "cpu_features", lambda: frozenset(features))
        monkeypatch.setenv("BITNET_ISA", forced)
        monkeypatch.setenv("NUMBA_DISABLE_JIT", disabled)
        return isa.chosen.__wrapped__()

    return choose


def test_a_set_can_be_forced(chosen: Callable[..., str]) -> None:
    assert chosen(AVX512) == "avx2"
    assert chosen(AVX512, "portable") == "portable"
    assert chosen(AVX512, " AVX2 ") == "avx2"
    assert chosen(AVX512, "naive") == "naive"
    assert chosen(AVX512, disabled="1") == "naive"


@pytest.mark.parametrize(("forced", "reason"), [("sse9", "unknown; known are"), ("avx512vnni", "this CPU lacks avx512vnni; it runs avx2")])
def test_a_set_that_cannot_be_had_is_an_error(chosen: Callable[..., str], forced: str, reason: str) -> None:
    with pytest.raises(isa.InstructionSetError) as caught:
        chosen(AVX512, forced)
    assert str(caught.value).startswith(f"BITNET_ISA={forced}: {reason}")
    assert "\n" not in str(caught.value)


def test_an_unknown_set_is_one_line_for_the_user(run_python: Callable[..., Any]) -> None:
    done = run_python("-c", "import bitnet_kernels.step", BITNET_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "bitnet_kernels.isa.InstructionSetError: BITNET_ISA=sse9: unknown; known are amx, avx512vnni, "
    )


def test_a_set_that_this_cpu_lacks_is_refused_before_anything_is_compiled(run_python: Callable[..., Any]) -> None:
    """An intrinsic that the CPU lacks would abort the process."""
    missing = [name for name in isa.REQUIRED_FEATURES if name not in AVAILABLE]
    if not missing:
        pytest.skip("this CPU has every instruction set")
    done = run_python("-c", "import bitnet_kernels.step", BITNET_ISA=missing[0])
    assert done.returncode == 1
    assert f"BITNET_ISA={missing[0]}: this CPU lacks " in done.stderr.splitlines()[-1]


def test_without_a_compiler_the_naive_kernels_run(run_script: Callable[..., Any]) -> None:
    result = run_script("whole_steps.py", "f32", "narrow heads", NUMBA_DISABLE_JIT="1")
    assert result["isa"] == "naive"
    assert result["compiled"] is False


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs it: what the naive kernels give."""
    return {}


def naive_results(run_script: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    if not known:
        known.update(run_script("same_integers.py", keep=True, BITNET_ISA="naive"))
    return known


@pytest.mark.parametrize("name", AVAILABLE[:-1])
def test_the_same_integers(run_script: Callable[..., Any], definition: dict[str, Any], name: str) -> None:
    result = run_script("same_integers.py", keep=True, BITNET_ISA=name)
    assert result["isa"] == name
    assert result["digests"] == naive_results(run_script, definition)["digests"]


@pytest.mark.slow
@pytest.mark.skipif(
    isa.chosen() not in ("amx", "avx512vnni", "avxvnni"), reason="whole steps by AVX2 run in test_step.py here, or not at all"
)
def test_whole_steps_by_avx2(run_script: Callable[..., Any]) -> None:
    """The set with 16-bit sums and registers of 32 bytes; AVX-VNNI differs from it in nothing but integers."""
    result = run_script("whole_steps.py", keep=True, BITNET_ISA="avx2")
    assert result["isa"] == "avx2"
    assert_near(result)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86-64 has a baseline older than its vectors")
def test_the_oldest_cpu(run_script: Callable[..., Any], definition: dict[str, Any]) -> None:
    """Compiled for a CPU of 2003: no SSE3 and what came after it."""
    result = run_script("oldest_cpu.py", "same_integers.py", BITNET_ISA="portable")
    assert result["digests"] == naive_results(run_script, definition)["digests"]


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Callable[..., isa.Target]:
    """What a process would make code for, on such a machine."""

    def found(name: str, machine: str, features: set[str]) -> isa.Target:
        monkeypatch.setattr(isa, "chosen", lambda: name)
        monkeypatch.setattr(isa, "cpu_features", lambda: frozenset(features))
        monkeypatch.setattr(platform, "machine", lambda: machine)
        return isa.target()

    return found


def test_code_is_made_for_what_the_set_requires(target: Callable[..., isa.Target]) -> None:
    """Whatever this CPU has besides; only the portable set looks for as much as nearly every CPU has. Prefetches need not be there."""
    assert target("avx2", "x86_64", AVX512 - {"prfchw"}) == ("x86-64", tuple(sorted(AVX2 - {"sse2"} | {"prfchw"})))
    assert target("portable", "AMD64", AVX512) == ("x86-64", tuple(sorted(SSE - {"sse2"})))
    assert target("portable", "x86_64", {"sse2", "sse3"}) == ("x86-64", ())
    assert target("portable", "aarch64", {"neon"}) == ("generic", ())
    assert target("dotprod", "arm64", {"neon", "dotprod", "sve2"}) == ("generic", ("dotprod", "neon"))


def test_a_set_is_assumed_before_kernels_are_imported(run_python: Callable[..., Any]) -> None:
    """Also one that this CPU lacks; afterwards it would be too late."""
    lines = "from bitnet_kernels import isa; isa.assume('amx'); print(isa.chosen(), isa.width())"
    assert run_python("-c", lines).stdout == "amx 64\n"
    done = run_python("-c", "from bitnet_kernels import isa; import bitnet_kernels.simd; isa.assume('amx')", BITNET_ISA="portable")
    assert done.stderr.splitlines()[-1] == "RuntimeError: kernels for portable are imported already"
