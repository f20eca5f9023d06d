"""What the user sees while the kernels are compiled: a quarter of a minute on two cores the first time, less for what another kind of model
or cache needs besides (kernels/separate.py).

After a second of it: on a terminal a bar that goes away again, elsewhere one line on stderr. Loading compiled kernels
takes a few milliseconds and shows nothing.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from bitnet_kernels import compile_cache, isa

from bitnet_cli.commands.reporting import Bar, Reporter, say
from bitnet_cli.machine.terminal import dumb

PATIENCE = 1.0  # seconds before anything is said
EVERY = 0.25  # seconds between two counts


def _say(stop: threading.Event, terminal: bool) -> None:
    if stop.wait(PATIENCE):
        return
    what = f"bitnet: compiling the kernels ({isa.chosen()})"
    if not terminal:
        say(f"{what}; this takes about a quarter of a minute the first time, less for other models")
        return
    with Bar(f"compiling the kernels ({isa.chosen()})", "parts", patience=0) as bar:
        while not stop.wait(EVERY):
            done = compile_cache.compiled.done
            bar.update(done, done + max(compile_cache.compiled.waiting, 1))  # it does not end between two kernels


@contextlib.contextmanager
def compiling(quiet: bool) -> Iterator[None]:
    """Say what takes long while the body compiles, and afterwards if nothing could be kept for the next time."""
    if quiet:
        yield
        return
    stop, start = threading.Event(), time.perf_counter()
    teller = threading.Thread(target=_say, args=(stop, sys.stderr.isatty() and not dumb()), daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join()
    reason = compile_cache.refused.reason
    lost = reason is not None or compile_cache.folder() is None
    if lost and isa.chosen() != isa.NAIVE and time.perf_counter() - start > PATIENCE:
        why = f" ({reason})" if reason else ""
        Reporter(quiet).note(
            f"compiled kernels could not be kept{why}, so every start compiles them; BITNET_CACHE_DIR names a private folder"
        )
