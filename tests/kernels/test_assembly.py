"""The machine code of the kernels: the instruction that each set is chosen for, and inner loops that keep everything in registers.

Code is made for a set's features, never for the CPU that the tests run on (kernels/target.py), so sets that this CPU lacks are inspected as
well, and everywhere the same is seen. assembly_of.py does it, in a process of its own for each.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from bitnet_kernels import isa

SETS = [name for name in isa.REQUIRED_FEATURES if name != "portable"]
# The instruction that sums products of bytes, and the registers that it works on.
PRODUCTS = {
    "amx": (r"vpdpbusd\s.*%zmm", 16),
    "avx512vnni": (r"vpdpbusd\s.*%zmm", 16),
    "avxvnni": (r"\{vex\}\s+vpdpbusd\s.*%ymm", 16),
    "avx2": (r"vpmaddubsw\s.*%ymm", 16),
    "dotprod": (r"sdot\s+v\d+\.4s", 32),  # two a vector of 32 bytes
    "neon": (r"smlal2?\s+v\d+\.8h", 64),  # four
}
VNNI = r"(?:\{vex\}\s+)?vpdpbusd\s.*%ymm"  # with AVX-512 there are registers that VEX lacks
pytestmark = pytest.mark.slow  # two minutes together, and the same under every Python

PREFETCH = r"prefetch|prfm"
WITHIN = r"vpunpck|vpshuf|vperm|vpsr|vpand|zip|uzp|trn|ushr|and v"  # what sorts lanes, or takes fields apart
HALF_TO_FLOAT = {"x86": r"vcvtph2psx?\s", "arm": r"fcvtl2?\s"}
MULTIPLY_ADD = {"x86": r"vfmadd\w+ps\s", "arm": r"fmla\s"}
SPIN_HINT = r"isb\b"
MEMORY = re.compile(r"\(%|\[[xs]")
STACK = re.compile(r"\(%rsp|\[sp\b")
C_LIBRARY = re.compile(r"\b(?:fmaf?|__extendhfsf2|__gnu_h2f_ieee)\b")  # what LLVM calls where a CPU cannot do it

LABEL = re.compile(r"(\.?L\w+):")
BRANCH = re.compile(r"\s+(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s(?:.*,\s*)?(\.?L\w+)$")

Assembly = dict[str, str]


def innermost_loops(text: str) -> list[list[str]]:
    """Lines from each label to a later branch back to it, without loops around other loops."""
    lines = [line.split("#")[0].split("//")[0].rstrip() for line in text.splitlines()]
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        if found := LABEL.match(line):
            labels[found[1]] = number
        elif (found := BRANCH.match(line)) and found[1] in labels:
            loops.append((labels[found[1]], number))
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    return [lines[a : b + 1] for a, b in inner]


def count(loop: list[str], instruction: str) -> int:
    return sum(bool(re.match(rf"\s+(?:{instruction})", line)) for line in loop)


def loops_with(text: str, instruction: str) -> list[list[str]]:
    return [loop for loop in innermost_loops(text) if count(loop, instruction)]


def maker(name: str) -> str:
    return "x86" if name.startswith(("amx", "avx")) else "arm"


@pytest.fixture(scope="module")
def known() -> dict[str, Assembly]:
    """Filled as tests ask: compiling takes seconds."""
    return {}


@pytest.fixture(params=SETS)
def compiled(request: pytest.FixtureRequest, compile_script: Callable[..., Any], known: dict[str, Assembly]) -> tuple[str, Assembly]:
    """An instruction set and the assembly of kernels for it."""
    name = request.param
    if name not in known:
        known[name] = compile_script("assembly_of.py", name, "operations", BITNET_ISA=name)
    return name, known[name]


def test_decode_uses_the_instruction_and_keeps_its_registers(compiled: tuple[str, Assembly]) -> None:
    """Four rows a pass: for each a register of weights makes four products. All sums and all activations stay in registers.

    LLVM may put several passes into one turn of the loop. What has no prefetch is the half register at the end of a row, done once.
    """
    name, assembly = compiled
    instruction, products = PRODUCTS[name]
    loops = [loop for loop in loops_with(assembly["four_rows"], instruction) if count(loop, PREFETCH)]
    assert loops
    for loop in loops:
        passes, rest = divmod(count(loop, PREFETCH), 4)
        assert rest == 0
        assert count(loop, instruction) == products * passes
        assert [line for line in loop if STACK.search(line)] == []


def test_base3_rows_are_taken_apart_as_written(compiled: tuple[str, Assembly]) -> None:
    """Four rows a pass, a register of each: five digits, with ten products where none is taken out of its byte.

    On x86 nothing but products multiplies: LLVM would make 9 v and 27 v of 3 v by multiplying 16-bit lanes and putting them together.
    """
    name, assembly = compiled
    instruction, products = PRODUCTS[name]
    expected = products // 4 * (10 if "vnni" in name or name == "amx" else 5)
    loops = [loop for loop in loops_with(assembly["four_base3_rows"], instruction) if count(loop, PREFETCH)]
    assert loops
    for loop in loops:
        assert count(loop, instruction) * 4 == expected * count(loop, PREFETCH)
        assert count(loop, "vpmullw|vpermt2b") == 0
        # Digits that are taken out need more registers than AVX2 and NEON have: a few values of a pass lie on the stack.
        assert not ("vnni" in name or name == "amx") or [line for line in loop if STACK.search(line)] == []


def test_prefill_uses_the_instruction_and_keeps_its_registers(compiled: tuple[str, Assembly]) -> None:
    """Three registers of rows with 8 or 4 tokens have 24 or 12 sums (with NEON alone, 16 of 8 products). Nothing else computes."""
    name, assembly = compiled
    if name == "amx":
        return  # see test_tiles_of_amx
    instruction = VNNI if name == "avxvnni" else PRODUCTS[name][0]
    tiles = {kernel: text for kernel, text in assembly.items() if kernel in ("sums_4", "sums_8")}
    assert sorted(tiles) == (["sums_4", "sums_8"] if name == "avx512vnni" else ["sums_4"])
    for kernel, text in tiles.items():
        products = {"neon": 16, "dotprod": 24}.get(name, 3 * int(kernel[-1]))
        loops = loops_with(text, instruction)
        assert loops
        for loop in loops:
            # LLVM may put several steps into one turn of the loop.
            assert count(loop, instruction) == products * count(loop, PREFETCH)
            assert count(loop, WITHIN) == 0
            # With AVX2, 12 sums, 3 registers of codes, one of values and a product take one register more than there are.
            assert len([line for line in loop if STACK.search(line)]) <= (2 * count(loop, PREFETCH) if name == "avx2" else 0)


def test_tiles_of_amx(compiled: tuple[str, Assembly]) -> None:
    """Eight rows are unpacked, packed or of the head's planes, while 2 products of tiles are made with 16 tokens, or 4 with 32."""
    name, assembly = compiled
    if name != "amx":
        assert "staged_sums" not in assembly and not any("tmm" in text for text in assembly.values())
        return
    assert not {"sums_4", "sums_8", "_packed_sums_8", "eight_bit_sums"} & set(assembly)
    assert count(assembly["matmul_scaled"].splitlines(), "ldtilecfg|tilerelease") == 2
    lines = assembly["staged_sums"].splitlines()
    assert count(lines, "tilestore") == 2 * 4 and count(lines, "tileload") == 2 * (3 + 4)
    for instruction, asked in (("tdpbssd", 1), ("tdpbusd", 4)):
        assert count(lines, instruction) == 2 + 4
        loops = loops_with(assembly["staged_sums"], instruction)
        assert loops
        for loop in loops:  # either or both of the two, by how LLVM cuts them
            stages = count(loop, PREFETCH) // (8 * asked)
            assert stages and count(loop, PREFETCH) == 8 * asked * stages
            assert count(loop, r"vmov\S+\s+%zmm\d+, .*\((?!%rsp)") == 4 * 8 * stages
            assert count(loop, r"vmov\S+\s+%zmm\d+, .*\(%rsp") == 0


def test_tiles_of_amx_with_groups(compiled: tuple[str, Assembly]) -> None:
    """Sums begin with zero, are stored once, and are added to totals when they come from memory, by one multiply-add a register of rows."""
    name, assembly = compiled
    if name != "amx":
        assert "_tile_sums_16" not in assembly
        return
    assert "_tile_sums" not in assembly
    lines = assembly["_tile_sums_16"].splitlines()
    products = count(lines, "tdpbssd")
    assert products and products % 3 == 0
    assert count(lines, "tileload") == products // 3 * 4
    assert count(lines, "tilezero") == 3 and count(lines, "tilestore") == 3
    sums = count(lines, r"vcvtdq2ps\s.*\(")
    assert sums and sums % 3 == 0
    assert count(lines, r"vcvtdq2ps") == count(lines, MULTIPLY_ADD["x86"]) == sums
    assert count(assembly["matmul_tiles"].splitlines(), "ldtilecfg|tilerelease") == 2


def test_peak_loops_hold_nothing_but_arithmetic(compiled: tuple[str, Assembly]) -> None:
    """As many products as a step of the matmul has; neither they nor multiply-adds of floats wait for memory."""
    name, assembly = compiled
    products = {"amx": "tdpbssd", "avxvnni": VNNI}.get(name, PRODUCTS[name][0])
    for kernel, what in (("products", products), ("float_products", MULTIPLY_ADD[maker(name)])):
        loops = loops_with(assembly[kernel], what)
        assert loops
        for loop in loops:
            assert count(loop, what) % (6 if maker(name) == "x86" and what != "tdpbssd" else 4) == 0
            assert [line for line in loop if MEMORY.search(line)] == []


def test_few_tokens_meet_two_packed_rows_in_registers(compiled: tuple[str, Assembly]) -> None:
    """Two registers of packed weights make eight of codes, and these 64 products with the activations of eight tokens."""
    name, assembly = compiled
    if name != "avx512vnni":
        assert "_packed_sums_8" not in assembly
        return
    loops = [loop for loop in loops_with(assembly["_packed_sums_8"], PRODUCTS[name][0]) if count(loop, PREFETCH)]
    assert loops
    for loop in loops:
        assert count(loop, PRODUCTS[name][0]) == 32 * count(loop, PREFETCH)
        assert [line for line in loop if STACK.search(line) and "%zmm" in line] == []  # an address may lie there


def test_rows_with_groups_keep_their_sums_in_registers(compiled: tuple[str, Assembly]) -> None:
    """Decode, few tokens and tiles: loops over a unit of weights have its products, four for each register of words and token."""
    name, assembly = compiled
    instruction = VNNI if name == "avxvnni" else PRODUCTS[name][0]
    each = {"neon": 4, "dotprod": 2}.get(name, 1)  # instructions for the products of a register
    some = 2 * (2 if name == "neon" else 4)  # registers of words, times tokens
    packed = {"_sums_1": 2 if name == "neon" else 4, "_sums_some": some, "_sums_more": 16}
    assert ("_sums_more" in assembly) == (name in ("amx", "avx512vnni"))
    for kernel, sums in packed.items():
        for loop in loops_with(assembly.get(kernel, ""), instruction):
            passes = (1, 2) if kernel == "_sums_1" else (1,)  # LLVM makes two of one for Zen 4 and 5
            assert count(loop, instruction) in [4 * each * sums * number for number in passes]
            # AVX2 and NEON multiply and add in two instructions, for which they have few registers.
            kept = [line for line in loop if STACK.search(line) and ("%zmm" in line or name not in ("amx", "avx512vnni"))]  # or an address
            assert len(kept) <= (len(loop) // 8 if name in ("avx2", "neon") else 0)
    for loop in loops_with(assembly.get("_tile_sums", ""), instruction):
        # As in sums_4 and sums_8.
        assert count(loop, instruction) == {"avx512vnni": 24, "neon": 16, "dotprod": 24}.get(name, 12) * count(loop, PREFETCH)
        assert count(loop, WITHIN) == 0
        assert len([line for line in loop if STACK.search(line)]) <= (4 * count(loop, PREFETCH) if name == "avx2" else 0)
    if name == "avx512vnni":  # nor are totals, 24 of them, carried there from one unit to the next
        assert len([line for line in assembly["_tile_sums"].splitlines() if STACK.search(line) and "%zmm" in line]) <= 8
    kernels = ("_sums_1", "_sums_some", *(() if name == "amx" else ("_tile_sums",)))
    assert all(loops_with(assembly[kernel], instruction) for kernel in kernels)


def test_a_code_of_the_head_makes_one_product(compiled: tuple[str, Assembly]) -> None:
    """Of each row three or four registers of planes make four of codes, and these a product each with every vector."""
    name, assembly = compiled
    if maker(name) != "x86":
        return
    instruction = VNNI if name == "avxvnni" else PRODUCTS[name][0]
    # Vectors, rows, and lines that are asked for in a step.
    shapes = {"six_bit_sums_2": (2, 2, 4)}
    if name == "avxvnni":
        shapes["eight_bit_sums"] = (4, 2, 6)
    elif name in ("amx", "avx512vnni"):
        shapes = {"six_bit_sums_2": (2, 4, 12)} | ({"eight_bit_sums": (8, 2, 8)} if name == "avx512vnni" else {})
    for kernel, (vectors, rows, lines) in shapes.items():
        loops = [loop for loop in loops_with(assembly[kernel], instruction) if count(loop, PREFETCH)]
        assert loops
        for loop in loops:
            assert count(loop, instruction) * lines == 4 * rows * vectors * count(loop, PREFETCH)
            # 16 sums, 8 registers of planes, codes and masks: for some CPUs LLVM keeps two of those on the stack, no sum.
            assert len([line for line in loop if STACK.search(line) and "%zmm" in line]) <= 4


def test_the_head_needs_no_library(compiled: tuple[str, Assembly]) -> None:
    """float16 is converted, and products are added, by instructions."""
    name, assembly = compiled
    loops = loops_with(assembly["head_matvec"], MULTIPLY_ADD[maker(name)])
    assert any(count(loop, HALF_TO_FLOAT[maker(name)]) for loop in loops)
    assert {kernel: C_LIBRARY.findall(text) for kernel, text in assembly.items() if C_LIBRARY.search(text)} == {}


def families() -> list[str]:
    """Of each kind of registers that this CPU lacks, the set that asks for least; sets of a kind differ in nothing but `compiled` has."""
    kinds = (("avx512vnni", "amx"), ("avx2", "avxvnni"), ("neon", "dotprod"))
    return [kind[0] for kind in kinds if not set(kind) & set(isa.supported(isa.cpu_features()))]


@pytest.mark.parametrize("name", families())
def test_every_kernel_compiles(compile_script: Callable[..., Any], name: str) -> None:
    """A whole step, for the set's features and nothing newer: LLVM would abort at anything which a CPU that has them cannot do.

    tests/model/test_same_text.py compiles the same kernels for the sets of this CPU, and runs them; scripts/wheel compiles all.
    """
    assembly: Assembly = compile_script("assembly_of.py", name, "step")
    roots = {symbol.split("-")[0] for symbol in assembly}
    assert {"step.serve", "attention.attend", "ternary.matmul_scaled", "head_search.top_logits", "quantised_cache.store_key"} <= roots
    (serve,) = (text for symbol, text in assembly.items() if symbol.startswith("step.serve"))
    assert re.search(SPIN_HINT if maker(name) == "arm" else r"\spause\b", serve)
    assert {symbol: C_LIBRARY.findall(text) for symbol, text in assembly.items() if C_LIBRARY.search(text)} == {}
