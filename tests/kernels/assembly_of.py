"""Script: kernels compiled for an instruction set that this machine may lack -> {name of kernel: assembly}, as JSON.

    assembly_of.py NAME CPU step          all kernels of a decoder step in the set NAME, for one of LLVM's CPU names
    assembly_of.py NAME CPU operations    some of them, in a third of the time

Numba's own pipeline does the work, with its passes and the target's cost model. Only the engine that links code into this process is
replaced; what is compiled is never called. A process of its own, because LLVM aborts where a target has no instruction.
"""

import ctypes
import json
import os
import platform
import sys
from typing import Any

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


def pretend(name: str, cpu: str) -> None:
    """Make Numba and the kernels take this machine for one with that CPU, and choose the instruction set `name`."""
    triple = TRIPLES["avx" if name.startswith(("amx", "avx")) else "arm"]
    os.environ["BITNET_ISA"] = name
    machine: Any = platform
    machine.machine = lambda: triple.split("-")[0]

    from llvmlite import binding
    from numba.core import codegen, config

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    numba_codegen: Any = codegen
    llvm = numba_codegen.ll
    llvm.get_process_triple = lambda: triple
    llvm.Target.from_default_triple = lambda: llvm.Target.from_triple(triple)
    llvm.create_mcjit_compiler = lambda module, machine, **options: NoLinking(module, machine)
    numba_codegen.JitEngine = lambda engine: engine
    settings: Any = config
    settings.CPU_NAME, settings.CPU_FEATURES = cpu, ""

    from bitnet_kernels import isa

    choice: Any = isa
    choice.cpu_features = lambda: isa.REQUIRED_FEATURES[name]


def compile_operations() -> None:
    """The operations that tests call directly, and with them the kernels that they are made of."""
    from bitnet_kernels import base3, dense, grouped, head_sums, peak, quantise, recode, ternary
    from bitnet_kernels.group_rows import Groups
    from numba import typeof, types

    number, codes, values = types.int64, types.int8[::1], types.float32[::1]
    data, sums = types.Array(types.uint8, 1, "C", readonly=True), types.int32[::1]
    ternary.matvec.compile((data, number, number, codes, sums, number, number))
    factors = types.int32, types.float32, values, types.boolean
    base3.base3_matvec.compile((types.uint8[::1], number, number, codes, *factors, number, number))
    many = types.int8[:, ::1], sums, values, types.float32, number, types.float32[:, ::1], number, types.boolean, types.uint8[::1], sums
    ternary.matmul_scaled.compile((data, number, number, *many, number, number))
    floats, groups = types.float32[:, ::1], typeof(Groups(128))
    tokens = types.int8[:, ::1], types.int32[:, ::1], floats
    where = number, types.float32, floats, number, types.boolean
    grouped.matmul_packed.compile((data, number, number, groups, *tokens, number, *where, values, values, number, number))
    grouped.matmul_tiles.compile((data, number, number, groups, *tokens, *where, types.uint8[::1], values, values, number, number))
    starts, at = types.UniTuple(number, head_sums.PACKED_ROWS), (number, codes, number, number, sums, number, number, number)
    head_sums.six_bit_sums_2.compile((types.uint8[::1], types.uint8[::1], starts, starts, *at))
    if head_sums.MANY:
        starts = types.UniTuple(number, 2)
        head_sums.six_bit_sums_8.compile((types.uint8[::1], types.uint8[::1], starts, starts, *at))
    peak._products.compile((number, types.uint8[::1], codes, sums))
    peak._floats.compile((number, values, values))
    quantise.quantise_row.compile((values, number, codes, number))
    recode.q8_0_rows.compile((codes, values, values, number, types.uint8[::1], number))
    dense.head_matvec.compile((data, number, number, number, values, values, number, number))


def compile_step() -> None:
    """A thread's whole work, which needs every kernel that there is."""
    from bitnet_kernels import step
    from bitnet_kernels.frame import Frame
    from bitnet_kernels.records import Record
    from numba import types
    from tiny_model import SHAPES, Model

    frame = Frame(Model(SHAPES["relu2"]).team._arrays)
    step.serve.compile((Record(frame.layout), *[types.int64] * 4))
    compile_quantised_attention()


def compile_quantised_attention() -> None:
    """Of every type of KV cache that has codes."""
    from attending import WHOLE, new_work
    from bitnet_kernels import attention, quantised_cache
    from bitnet_kernels.kv_cache import QUANTISED_BITS, QuantisedCache, new_cache
    from numba import typeof, types

    number, row, work = types.int64, types.float32[::1], typeof(new_work(4, 64))
    for kind in QUANTISED_BITS:
        head = typeof(QuantisedCache(*(part[0, 0] for part in new_cache(1, 1, 64, 16, kind))))
        quantised_cache.store_key.compile((head, number, number, row, number))
        quantised_cache.store_value.compile((head, number, number, row, number, number, row))
        attention.attend.compile((head, work, typeof(WHOLE), *[number] * 7))


def assembly(alone: bool) -> dict[str, str]:
    """Name of each kernel that was compiled -> its assembly. alone: also of those that others call, each compiled by itself."""
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.startswith("bitnet_kernels")]
    kernels = {item for module in modules for item in vars(module).values() if isinstance(item, Dispatcher)}
    for callees in [kernel.get_call_template.__self__ for kernel in kernels] if alone else []:
        for signature in callees.signatures():
            callees.dispatcher.compile(signature)
    return {kernel.__name__: "".join(kernel.inspect_asm().values()) for kernel in kernels if kernel.signatures}


def main(name: str, cpu: str, what: str) -> None:
    os.environ["BITNET_CACHE_DIR"] = os.devnull  # what comes from the cache has no assembly, and what is for another CPU must not go there
    pretend(name, cpu)
    {"operations": compile_operations, "step": compile_step}[what]()
    json.dump(assembly(alone=what == "operations"), sys.stdout)


main(*sys.argv[1:])
