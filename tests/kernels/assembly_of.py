"""Script: kernels compiled for an instruction set that this machine may lack -> {name of kernel or symbol: assembly}, as JSON.

    assembly_of.py NAME step          all parts of a decoder step in the set NAME
    assembly_of.py NAME operations    some kernels by themselves

Numba's own pipeline does the work, with its passes and the target's cost model. Only the engine that links code into this process is
replaced; what is compiled is never called. A process of its own, because LLVM aborts where a target has no instruction.
"""

import ctypes
import json
import platform
import sys
from typing import Any

import numpy as np

TRIPLES = {"avx": "x86_64-unknown-linux-gnu", "arm": "aarch64-unknown-linux-gnu"}


class NoLinking:
    """In place of LLVM's execution engine and of Numba's wrapper around it. Addresses are those of memory that nobody runs."""

    def __init__(self, module: Any, machine: Any):
        self._module, self._nowhere = module, ctypes.create_string_buffer(64)
        self.target_data = machine.target_data

    def get_function_address(self, name: str) -> int:
        return ctypes.addressof(self._nowhere)

    get_global_value_address = get_function_address

    def is_symbol_defined(self, name: str) -> bool:
        return False

    def nothing(self, *arguments: Any) -> None:
        pass

    add_module = add_global_mapping = set_object_cache = finalize_object = _load_defined_symbols = nothing


def pretend(name: str) -> None:
    """Make Numba and the kernels take this machine for one of the set's kind, and make code for the set."""
    triple = TRIPLES["avx" if name.startswith(("amx", "avx")) else "arm"]
    machine: Any = platform
    machine.machine = lambda: triple.split("-")[0]

    from bitnet_kernels import isa
    from llvmlite import binding
    from numba.core import codegen, config

    isa.assume(name)
    settings: Any = config
    settings.CPU_NAME, settings.CPU_FEATURES = "", ""  # of Numba's own code generator, which makes nothing here
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    numba_codegen: Any = codegen
    llvm = numba_codegen.ll
    llvm.get_process_triple = lambda: triple
    llvm.Target.from_default_triple = lambda: llvm.Target.from_triple(triple)
    llvm.create_mcjit_compiler = lambda module, machine, **options: NoLinking(module, machine)
    numba_codegen.JitEngine = lambda engine: engine


# The kernels whose loops are looked at; what they call, and who calls them, is compiled only as a part of them.
LOOKED_AT = (
    "four_rows", "four_base3_rows", "sums_4", "sums_8", "staged_sums", "_packed_sums_8", "_sums_1", "_sums_some", "_sums_more",
    "_tile_sums", "_tile_sums_16", "six_bit_sums_2", "eight_bit_sums", "products", "float_products",
    "matmul_scaled", "matmul_tiles", "head_matvec", "quantise_row", "q8_0_rows",
)  # fmt: skip


def operations() -> dict[str, str]:
    """Assembly of kernels that tests look at, each compiled by itself."""
    from bitnet_kernels import base3, callees, dense, grouped, head_sums, peak, quantise, recode, staged, ternary
    from bitnet_kernels.frame import Frame
    from bitnet_kernels.group_rows import Groups
    from bitnet_kernels.operands import Codes, Destination, Inputs, Matrix
    from bitnet_kernels.records import Record
    from numba import typeof, types
    from numba.core.dispatcher import Dispatcher

    number, codes, values, sums = types.int64, types.int8[::1], types.float32[::1], types.int32[::1]
    ones, table, bytes_1 = np.ones(1, np.uint8), np.ones((1, 1), np.float32), types.uint8[::1]
    int8, int32, mapped = table.astype(np.int8), table.astype(np.int32), np.frombuffer(b"1", np.uint8)  # which nobody may write, as a file
    to, x, of_groups = Destination(table, 0, False), Inputs(int8, int32[0], table[0], 1), grouped.GroupInputs(int8, int32, table, 1)
    room = grouped.Room(ones, int32[0], table[0], table[0])
    matrix, many, by_groups = Matrix(mapped, 0, 1, table[0, 0]), (x, to), (Groups(128), of_groups, to, room)
    one_token = codes, types.int32, types.float32, values, types.boolean, number, number
    starts, at = types.UniTuple(number, head_sums.PACKED_ROWS), (number, typeof(Codes(int8[0], 0, 1)), sums, number)
    integers, reals = (peak.Operands(ones, ones.astype(kind), ones.astype(of)) for kind, of in ((np.int8, np.int32), (np.float32,) * 2))
    called = {
        ternary.matvec_scaled: (typeof(matrix), *one_token),
        base3.base3_matvec: (typeof(matrix), *one_token),
        ternary.matmul_scaled: (*map(typeof, (matrix, *many)), bytes_1, sums, number, number),
        grouped.matmul_packed: (*map(typeof, (matrix, *by_groups)), number, number),
        grouped.matmul_tiles: (*map(typeof, (matrix, *by_groups)), number, number),
        head_sums.six_bit_sums_2: (types.UniTuple(bytes_1, 2), starts, starts, *at),
        peak.products: (Record(Frame(integers).layout), number),
        peak.float_products: (Record(Frame(reals).layout), number),
        quantise.quantise_row: (values, number, codes, number),
        recode.q8_0_rows: (codes, values, values, number, bytes_1, number),
        dense.head_matvec: (typeof(dense.HeadRows(mapped, 0, 1, 1)), values, values, number, number),
    }
    if head_sums.WHOLE:
        starts = types.UniTuple(number, 2)
        called[head_sums.eight_bit_sums] = (types.UniTuple(bytes_1, 2), starts, starts, *at)
    if head_sums.MATRIX:
        rows, walk = staged.Rows((ones, ones), 0, 1, 1), staged.Walk(0, 0, 0, 0, 0)
        called[staged.staged_sums] = (*map(typeof, (rows, walk, staged.Columns(0, 1))), bytes_1, number, sums)
    for kernel, signature in called.items():
        callees.of(kernel).called(signature, {})
    modules = [module for name, module in sys.modules.items() if name.startswith("bitnet_kernels")]
    named = {name: item for module in modules for name, item in vars(module).items() if name in LOOKED_AT and isinstance(item, Dispatcher)}
    for kernel in named.values():
        for signature in callees.of(kernel).signatures():
            kernel.compile(signature)
    return {name: "".join(kernel.inspect_asm().values()) for name, kernel in named.items() if kernel.signatures}


def whole_step() -> dict[str, str]:
    """A thread's whole work, which needs every kernel that there is, and of every type of KV cache that has codes what attends to it."""
    from attending import new_work
    from bitnet_kernels import callees
    from bitnet_kernels.frame import Frame
    from bitnet_kernels.kv_cache import ONE_PAGE, QUANTISED_BITS, QuantisedCache, new_cache
    from bitnet_kernels.records import Record
    from bitnet_kernels.separate import Build, Part
    from numba import typeof, types
    from tiny_model import SHAPES, Model

    found: dict[str, str] = {}

    def object_code(library: Any, name: str, symbol: str) -> Any:
        code = own(library, name, symbol)
        found[symbol] = library._codegen._tm.emit_assembly(library._final_module)
        return code

    apart: Any = callees._Apart
    own, apart.object_code = apart.object_code, object_code
    number, row, work = types.int64, types.float32[::1], typeof(new_work(4, 64))
    roots = [Part("step", "serve", (Record(Frame(Model(SHAPES["relu2"]).team._arrays).layout), *[number] * 4))]
    for kind in QUANTISED_BITS:
        head = typeof(QuantisedCache(*(part[0, 0] for part in new_cache(1, 1, 64, 16, kind))))
        roots.append(Part("quantised_cache", "store_key", (head, number, number, row, number)))
        roots.append(Part("quantised_cache", "store_value", (head, number, number, row, number, number, row)))
        roots.append(Part("attention", "attend", (head, work, typeof(ONE_PAGE), *[number] * 6)))
    for root in roots:
        Build(found.__contains__).run(root, root.symbol, processes=1)
    return found


def main(name: str, what: str) -> None:
    pretend(name)
    json.dump({"operations": operations, "step": whole_step}[what](), sys.stdout)


main(*sys.argv[1:])
