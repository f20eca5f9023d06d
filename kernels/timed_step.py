"""Where the time of a step goes: the functions of step.py, with a clock read after each kernel. For measuring only.

The names in them that stand for kernels are bound to versions that add the time since the last reading to a slot. So it is the real
step, with its inputs, its cold caches and its skipped rows, and a clock of a few nanoseconds some 30 times a layer.
"""

import collections
import platform
import types as python_types
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from . import grouped, head_search, heads, logits, step
from .arrays import DOWN, PROJECTIONS, UP, Scratch, Sizes, Weights
from .barrier import barrier
from .control import Task
from .jit import entry, inlined, kernel
from .kv_cache import AnyCache
from .simd.vectors import call, intrinsic

# Slots of a thread's laps, the first as arrays.Q to arrays.DOWN. INPUTS: norm and rounding of what projections take; NORMS: of heads, and
# before something is added to the residual stream; WAITING: for other threads, at barriers.
ATTENTION, STORE, INPUTS, GLU, NORMS, HEAD, WAITING = range(PROJECTIONS, PROJECTIONS + 7)
SLOTS, LAST, WORDS = WAITING + 1, WAITING + 1, 16  # LAST: the clock when it was last read
MACHINE = platform.machine().lower()
HAS_CLOCK = MACHINE in ("x86_64", "amd64", "aarch64", "arm64")

_named_tuple: Any = collections.namedtuple  # mypy wants its fields as literals
TimedScratch = _named_tuple("TimedScratch", (*Scratch._fields, "laps"))


class TimedStep(NamedTuple):
    """The frame of `timed_steps`, as team.Step. states: (inputs, tokens, hidden) float32, what the layers begin with, in turn."""

    sizes: Sizes
    weights: Weights
    cache: AnyCache
    scratch: Any  # TimedScratch
    control: NDArray[np.int64]
    states: NDArray[np.float32]


def emit_clock(b: Any, machine: str) -> Any:
    """LLVM code that reads the clock of a machine, as platform.machine() names it in lower case."""
    i64 = ir.IntType(64)
    if machine in ("x86_64", "amd64"):
        return call(b, "llvm.readcyclecounter", i64, [])
    if machine in ("aarch64", "arm64"):  # not the cycle counter, which the operating system keeps to itself
        return call(b, "llvm.read_volatile_register.i64", i64, [b.module.add_metadata([ir.MetaDataString(b.module, "cntvct_el0")])])
    return ir.Constant(i64, 0)


@intrinsic
def clock(typingctx: Any) -> Any:
    """A counter of constant rate that a program may read: x86-64's time stamp, aarch64's virtual timer. 0 elsewhere."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return emit_clock(b, MACHINE)

    return types.int64(), codegen


@inlined
def lap(laps, slot):
    """Add the time since the last reading to a slot."""
    now = clock()
    laps[slot] += now - laps[LAST]
    laps[LAST] = now


def _bound(dispatcher: Any, make: Any, **names: Any) -> Any:
    """A kernel again, with some of the names in it bound to other functions."""
    source = dispatcher.py_func
    missing = [name for name in names if name not in source.__code__.co_names]
    if missing:
        raise NameError(f"{source.__name__} does not call {', '.join(missing)}")
    copy = python_types.FunctionType(source.__code__, source.__globals__ | names, f"timed_{source.__name__}", source.__defaults__)
    copy.__qualname__ = copy.__name__  # kept apart from the original's in the cache
    return make(copy)


def _barrier_after(slot: int) -> Any:
    """A barrier before which the time belongs to `slot`. It gets the frame, for the team's control and the thread's laps."""

    @inlined
    def timed_barrier(frame, threads):
        lap(frame.scratch.laps, slot)
        barrier(frame.control, threads)
        lap(frame.scratch.laps, WAITING)

    return timed_barrier


def _lapped(function: Any, slot: int) -> Any:
    """A kernel of Sizes, Weights, Scratch and others, after which the time so far belongs to `slot`."""

    @inlined
    def timed(z, w, s, *others):
        result = function(z, w, s, *others)
        lap(s.laps, slot)
        return result

    return timed


_append, _project = heads.append_to_cache, step.project
_digits = _bound(head_search._digits, inlined, barrier=_barrier_after(HEAD))
_top_logits = _bound(head_search.top_logits, inlined, _digits=_digits, barrier=_barrier_after(HEAD))


@inlined
def _timed_project(w, s, product, to, mine):
    _project(w, s, product, to, mine)
    lap(s.laps, product.which)


@inlined
def _timed_append(z, w, cache, s, layer, kv, row, scratch):
    lap(s.laps, ATTENTION)
    _append(z, w, cache, s, layer, kv, row, scratch)
    lap(s.laps, STORE)


_attention = _bound(heads.attention, inlined, append_to_cache=_timed_append, barrier=_barrier_after(ATTENTION))


@inlined
def _timed_attention(z, w, cache, s, layer, texts, mine, frame):
    _attention(z, w, cache, s, layer, texts, mine, frame)
    lap(s.laps, ATTENTION)


_run_layer = _bound(
    step.run_layer,
    inlined,
    prepare=_lapped(_bound(step.prepare, kernel, barrier=_barrier_after(INPUTS)), INPUTS),
    project=_timed_project,
    attention=_timed_attention,
    up_where_gate_is_open=_lapped(step.up_where_gate_is_open, UP),
    down_by_columns=_lapped(step.down_by_columns, DOWN),
    norm_heads=_bound(step.norm_heads, inlined, barrier=_barrier_after(NORMS)),
    add_branch=_bound(step.add_branch, inlined, barrier=_barrier_after(NORMS)),
    barrier=_barrier_after(GLU),  # which has no name of its own to bind: nothing else of weight stands before these barriers
)
_logits_of_rows = _bound(logits.logits_of_rows, inlined, top_logits=_top_logits, barrier=_barrier_after(HEAD))
_logits_by_groups = _bound(grouped.logits_by_groups, kernel, barrier=_barrier_after(HEAD))
_wanted_logits = _bound(logits.wanted_logits, kernel, logits_of_rows=_logits_of_rows, logits_by_groups=_logits_by_groups)
_run_step = _bound(step.run_step, inlined, run_layer=_run_layer, wanted_logits=_wanted_logits, barrier=_barrier_after(HEAD))


@entry
def timed_steps(frame, texts, wanted, steps, thread, threads):
    """This thread's part of `steps` steps through all layers and the head, each of so many tokens as frame.states have.

    s.texts lists `texts` texts, and s.wanted `wanted` logits. Returns the clock's ticks meanwhile.
    """
    z = frame.sizes
    w = frame.weights
    cache = frame.cache
    s = frame.scratch
    control = frame.control
    states = frame.states
    total, tokens = 0, states.shape[1]
    for number in range(steps):
        barrier(control, threads)
        if thread == 0:
            for t in range(tokens):
                for i in range(z.hidden):
                    s.x[t, i] = states[number % len(states), t, i]
        barrier(control, threads)
        begin = clock()
        s.laps[LAST] = begin
        _run_step(z, w, cache, s, Task(tokens, texts, 0, z.layers, wanted), frame, thread, threads)
        total += clock() - begin
    return total
