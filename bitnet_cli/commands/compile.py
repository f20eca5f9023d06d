"""`bitnet compile`: machine code of kernels made before anybody needs it, for this CPU or any other of its kind."""

import time
from pathlib import Path

from bitnet_kernels import isa

from bitnet_cli.commands import ahead
from bitnet_cli.commands.reporting import Bar, Reporter
from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.model.names import find


def compile_kernels(models: list[str], sets: str, every: bool, into: Path | None, cache_type: str, quiet: bool) -> None:
    """Fill a folder, set after set. models: names or paths; sets: with commas.

    UsageError, UnsupportedError: there is no such set or model.
    """
    report, folder = Reporter(quiet), into.absolute() if into else None
    names, files = _names(sets, every), [(find(name).absolute(), cache_type) for name in models]
    for name in names:
        start, parts = time.perf_counter(), 0
        with Bar(f"compiling for {name}", "kernels", patience=0) as bar:
            for done, count, parts in ahead.compile_set(name, files, folder):  # noqa: B007
                if report.on_terminal:
                    bar.update(done, count)
        report.note(f"{name}: {parts} parts in {time.perf_counter() - start:.1f} s" if parts else f"{name}: all is there already")


def _names(sets: str, every: bool) -> list[str]:
    known = isa.of_this_platform()
    if every and sets:
        raise UsageError("--all and --isa: one or the other")
    if every:
        return known
    try:
        names = [name.strip().lower() for name in sets.split(",")] if sets else [isa.chosen()]
    except isa.InstructionSetError as error:
        raise UnsupportedError(str(error)) from None
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{unknown[0]}: no instruction set that is compiled for; there are {', '.join(known)}")
    return list(dict.fromkeys(names))
