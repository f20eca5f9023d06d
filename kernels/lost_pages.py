"""What a process says when pages of a mapped file are gone: the file became shorter, or the disk failed, while it was in use.

The system answers a read of such a page with SIGBUS, in the middle of a kernel or of NumPy, where no Python runs. So the handler is machine
code that LLVM makes of a few instructions: it writes a text that was made before, and ends the process. Where there is no SIGBUS (Windows),
or somebody else has a handler for it, nothing is done.
"""

import ctypes
import faulthandler
import signal
import sys
from typing import Any

ROOM = 4096  # bytes of the text: one write of so many is not divided
_CODE = """
define void @lost(i32 %number) {{
    %size = load i64, i64* inttoptr (i64 {size} to i64*)
    call i64 inttoptr (i64 {write} to i64 (i32, i8*, i64)*)(i32 2, i8* inttoptr (i64 {text} to i8*), i64 %size)
    call void inttoptr (i64 {leave} to void (i32)*)(i32 1)
    ret void
}}
"""
_size, _text = ctypes.c_int64(0), ctypes.create_string_buffer(ROOM)
_engines: list[Any] = []  # they own the machine code


def announce(text: str) -> bool:
    """From now on the process ends with `text`, a line on stderr, and exit code 1 where a page is lost. False: it does not."""
    number = getattr(signal, "SIGBUS", None)
    if number is None or sys.platform == "win32":
        return False
    line = text.encode("utf-8", "replace")[: ROOM - 1] + b"\n"
    if not _engines:
        if faulthandler.is_enabled() or signal.getsignal(number) is not signal.SIG_DFL:
            return False
        _text.raw, _size.value = line.ljust(ROOM, b"\0"), len(line)
        return _install(int(number))
    _size.value = 0  # a text that is half written is not shown
    _text.raw = line.ljust(ROOM, b"\0")
    _size.value = len(line)
    return True


def _install(number: int) -> bool:
    from llvmlite import binding

    system = ctypes.CDLL(None)
    addresses = {"write": ctypes.cast(system.write, ctypes.c_void_p).value, "leave": ctypes.cast(system._exit, ctypes.c_void_p).value}
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    code = _CODE.format(size=ctypes.addressof(_size), text=ctypes.addressof(_text), **addresses)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(code), machine)
    engine.finalize_object()
    _engines.append(engine)
    system.signal.restype, system.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    system.signal(number, engine.get_function_address("lost"))
    return True
