"""`bitnet` as tests call it: in this process, where the interpreter and the libraries are loaded already, or in one of its own.

Half a second to a second of a process goes into starting, and refusals, reports and conversions need none. What is as in a process:
arguments, the three streams with their descriptors, the current folder, BITNET_ISA, warnings, the exit code and what an exception looks
like. Other variables, a time limit and signals want a process.
"""

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Done = subprocess.CompletedProcess[Any]
STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def bitnet(
    *arguments: str | Path,
    stdin: str | bytes = b"",
    text: bool = True,
    check: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    process: bool = False,
    terminals: Collection[str] = (),
    **options: Any,
) -> Done:
    """bitnet("convert", folder, ...): what the command wrote, as text (UTF-8) or bytes, and its exit code.

    terminals: names of streams that say they are terminals, in this process; what they show is for ../screen.py.
    process: in a process of its own. So it is also where `env` is another environment, but for BITNET_ISA, and with `options` of
    subprocess.run. CalledProcessError where `check` and the exit code is not 0.
    """
    words, data = [str(word) for word in arguments], stdin.encode() if isinstance(stdin, str) else stdin
    apart = dict(os.environ) if env is None else dict(env)
    isa = apart.get("BITNET_ISA", "")
    if process or options or _others(apart) != _others(os.environ):
        command = [sys.executable, "-m", "bitnet_cli", *words]
        done: Done = subprocess.run(command, input=data, capture_output=True, env=apart, cwd=cwd, check=False, **options)
    else:
        done = subprocess.CompletedProcess(["bitnet", *words], *_run_here(words, data, isa, cwd, terminals))
    if text:
        done.stdout, done.stderr = (data.decode().replace("\r\n", "\n") for data in (done.stdout, done.stderr))
    if check:
        done.check_returncode()
    return done


def _others(variables: Mapping[str, str]) -> dict[str, str]:
    """Without what may differ within one process: the instruction set, and pytest's name of the test."""
    return {name: value for name, value in variables.items() if name not in ("BITNET_ISA", "PYTEST_CURRENT_TEST")}


def _run_here(words: list[str], stdin: bytes, isa: str, cwd: Path | None, terminals: Collection[str]) -> tuple[int, bytes, bytes]:
    """Exit code, stdout, stderr."""
    from bitnet_cli.start import main

    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in STREAMS]
        files[0].write(stdin)
        files[0].seek(0)
        stack.enter_context(_as_at_the_start(["bitnet", *words], cwd))
        stack.enter_context(_instruction_set(isa))
        with _streams(files, terminals):
            try:
                main()
                code: Any = 0
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
                code = 1
        out, err = (file.seek(0) or file.read() for file in files[1:])
    return (code if isinstance(code, int) else int(code is not None)), out, err


@contextlib.contextmanager
def _streams(files: list[BinaryIO], terminals: Collection[str]) -> Iterator[None]:
    """Descriptors 0, 1 and 2, and Python's objects for them, are these files."""
    for name, _ in STREAMS[1:]:
        getattr(sys, name).flush()
    kept, ours = [os.dup(number) for number in range(3)], [getattr(sys, name) for name, _ in STREAMS]
    try:
        for number, (file, (name, mode)) in enumerate(zip(files, STREAMS, strict=True)):
            os.dup2(file.fileno(), number)
            errors = "backslashreplace" if name == "stderr" else "strict"
            raw = open(number, mode + "b", closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(raw, encoding="utf-8", errors=errors)
            if name in terminals:
                stream.isatty = lambda: True  # type: ignore[method-assign]
            setattr(sys, name, stream)
        yield
    finally:
        for name, _ in STREAMS[1:]:
            getattr(sys, name).flush()
        for number, ((name, _), before) in enumerate(zip(STREAMS, ours, strict=True)):
            setattr(sys, name, before)
            os.dup2(kept[number], number)
            os.close(kept[number])


@contextlib.contextmanager
def _as_at_the_start(words: list[str], cwd: Path | None) -> Iterator[None]:
    """What the command changes in its process is put back."""
    variables, before, folder, handler = dict(os.environ), sys.argv, Path.cwd(), signal.getsignal(signal.SIGTERM)
    try:
        sys.argv = words
        if cwd is not None:
            os.chdir(cwd)
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv = before
        os.chdir(folder)
        signal.signal(signal.SIGTERM, handler)
        gc.enable()
        gc.unfreeze()
        for name in set(os.environ) - set(variables):
            del os.environ[name]
        os.environ.update(variables)


@contextlib.contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    """`isa.chosen()` answers as BITNET_ISA says. What is loaded with the set of the whole test run is loaded before."""
    from bitnet_kernels import compile_cache, isa

    before = os.environ.get("BITNET_ISA")
    if before == name or (before is None and not name):
        yield
        return
    compile_cache.folder()
    if isa.chosen() != isa.NAIVE:
        import bitnet_kernels.simd  # noqa: F401
    isa.chosen.cache_clear()
    os.environ["BITNET_ISA"] = name
    try:
        yield
    finally:
        isa.chosen.cache_clear()
        if before is None:
            os.environ.pop("BITNET_ISA", None)
        else:
            os.environ["BITNET_ISA"] = before
