"""Before the first token: do the kernels of this process compute here what they should?

Machine code was right where it was tested. It may be damaged in a way that no checksum of a file shows, meet a CPU that nobody has tried,
or an emulator or hypervisor that does an instruction wrongly; then a model writes nonsense, in silence. So a model of a few rows
(micro_model.py), of the layout of the one that is to run, goes through the same machine code:

    prefill   19 tokens; each stage (projections of the input, cache, attention, gated units, residual stream, logits) is near what its
              NumPy twin makes of the numbers before it
    decode    the last of them again alone, and the last three, and alone by columns and base-3 rows where this run may read those: the
              same to the bit
    search    the largest logits by the head's planes, where it has some

Not tried: several threads, whose barriers every text depends upon, and texts that are longer than a block of the cache. Takes about 10 ms;
once in a process for each layout.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from bitnet_kernels import arrays, isa, kv_cache
from bitnet_kernels.control import Text, Wanted, new_control
from bitnet_kernels.frame import Frame
from bitnet_kernels.team import Step, Team
from numpy.typing import NDArray

from bitnet_cli.errors import WrongKernelsError
from bitnet_cli.model import base3_rows, columns, head
from bitnet_cli.model.micro_model import TOKENS, MicroModel, micro_model, shapes

Floats = NDArray[np.float32]
# Largest difference over the largest number expected. Floats are added up in another order, which is 2e-5; but a sum next to a half may
# round to another code, which is a hundredth of the largest product for INT8, and a twentieth to a fifth for others. One product left out
# of 256 is a tenth.
FLOATS = 1e-3
BY_CODES = {int(arrays.INT8): 0.01, int(arrays.INT4): 0.05, int(arrays.FP4): 0.1}
BY_CACHE = {
    "f32": 1e-4,
    "f16": 1e-3,
    "q8": 0.6 / 127,
    "q4": 0.6 / 7.5,
    "q3": 0.6 / 3.5,
}  # of the largest key: half a step, and its rounding
BY_QUERIES = 0.1  # where queries are rounded to 4 bits: one may be the next
TOP = 8
_passed: set[Any] = set()


EngineArrays = tuple[arrays.Sizes, arrays.Weights, kv_cache.AnyCache, arrays.Scratch]


class Layouts(NamedTuple):
    """What this run may read besides the file's rows of projections and head."""

    planes: bool
    columns: bool
    base3: bool


def check(engine_arrays: EngineArrays, cache_type: str, base3: bool) -> None:
    """Raises WrongKernelsError. base3: whether this run may build base-3 rows.

    The kernels are compiled, or loaded; nothing is compiled here.
    """
    sizes, weights, *_ = engine_arrays
    if isa.chosen() == isa.NAIVE:
        return
    layout, layouts = _layout(engine_arrays), Layouts(len(weights.planes.scales) > 0, len(weights.columns) > 0, base3)
    known = layout, layouts, cache_type, sizes, len(weights.part_at) > 0
    if known in _passed:
        return
    model = micro_model(sizes, weights, cache_type)
    if _layout(model[:4]) != layout:  # it would be compiled; tests see to it that this does not happen
        return
    for what in _wrong(model, cache_type, layouts):
        raise WrongKernelsError(isa.chosen(), what)
    _passed.add(known)


def _layout(step: EngineArrays) -> Any:
    return Frame(Step(*step, new_control())).layout


def _near(found: NDArray[Any], expected: NDArray[Any], most: float) -> bool:
    return bool(np.abs(found - expected).max() <= most * np.abs(expected).max())  # never of NaN


class _Run:
    """A team of one thread over the micro-model's arrays."""

    def __init__(self, model: MicroModel):
        self.model, self._team = model, Team(*model[:4], 1)
        model.scratch.tables[0] = model.table.numbers

    def step(self, first: int, last: int, wanted: list[Wanted]) -> tuple[Floats, Floats]:
        """Tokens first <= t < last: the residual stream after them, and logits."""
        s = self.model.scratch
        s.x[: last - first] = self.model.inputs[first:last]
        self._team.run([Text(0, last - first, first)], 0, 1, wanted)
        return s.x[: last - first].copy(), s.logits[: len(wanted)].copy()


def _wrong(model: MicroModel, cache_type: str, layouts: Layouts) -> Iterator[str]:
    """What is wrong, in words."""
    run = _Run(model)
    states, logits = run.step(0, TOKENS, [Wanted(TOKENS - 3 + i, 0, i) for i in range(3)])
    yield from _stages(model, cache_type, states, logits)
    same = [("decode", TOKENS - 1, TOKENS), ("decode of three tokens", TOKENS - 3, TOKENS)]
    for what, first, last in same:
        x, y = run.step(first, last, [Wanted(last - first - 1)])
        if not (np.array_equal(x, states[first:last]) and _near(y[-1], logits[-1], FLOATS)):
            yield what
    if layouts.planes:
        head.build_planes(model.sizes, model.weights, 1)
        found = run.step(TOKENS - 1, TOKENS, [Wanted(0, TOP)])[1][0]
        there = np.flatnonzero(found > -np.inf)
        largest = np.argsort(-logits[-1])[:TOP]
        if not (np.isin(largest, there).all() and _near(found[there], logits[-1][there], FLOATS)):
            yield "search for the largest logits"
    yield from _other_rows(model, layouts, states[-1:])


def _other_rows(model: MicroModel, layouts: Layouts, expected: Floats) -> Iterator[str]:
    """Decode that reads columns of `down`, and base-3 rows. expected: (1, hidden)."""
    z, w = model.sizes, model.weights
    if layouts.columns:
        w = w._replace(columns=columns.room(z))
        columns.build_columns(z, w, 1)
        if not np.array_equal(_Run(model._replace(weights=w)).step(TOKENS - 1, TOKENS, [])[0], expected):
            yield "decode by columns"
    if layouts.base3:
        packed = [(rows, arrays.packed_width(cols)) for rows, cols in shapes(z)]
        w = base3_rows.room(w, z.layers, packed)
        base3_rows.build(w, base3_rows.Base3Plan(packed, 0, True), 1, "the micro-model")
        if not np.array_equal(_Run(model._replace(weights=w)).step(TOKENS - 1, TOKENS, [])[0], expected):
            yield "decode by base-3 rows"


def _stages(model: MicroModel, cache_type: str, states: Floats, logits: Floats) -> Iterator[str]:
    """Each stage of the prefill that has just run, by its twin, from what the kernels gave the stage."""
    from bitnet_kernels.naive import attention, norm
    from bitnet_kernels.naive import step as twin
    from bitnet_kernels.naive.folds import fold

    z, w, s, x = model.sizes, model.weights, model.scratch, model.inputs
    qkv, mixed, units = s.qkv[:TOKENS], s.mixed[:TOKENS], s.gate[:TOKENS]
    usual = BY_CODES[int(z.codes)]
    if not _near(qkv, twin.attention_inputs(z, w, 0, x), usual):
        yield "projections of queries, keys and values"
    q, *made = twin.rotated(z, w, 0, qkv, 0)
    kept = attention.stored(model.cache, 0, TOKENS, z.head_dim, model.table)
    if not all(_near(a, b.swapaxes(0, 1), BY_CACHE[cache_type]) for a, b in zip(kept, made, strict=True)):
        yield "keys and values"
    if not _near(mixed, attention.attend(q, *kept, 0, int(w.windows[0])), BY_QUERIES if z.query_bits else FLOATS):
        yield "attention"
    between = twin.after_attention(z, w, 0, x, mixed)
    if not _near(units, twin.hidden_units(z, w, 0, between), 2 * max(usual, BY_CODES[int(z.codes_o)])):  # its own codes, and those of O
        yield "feed-forward units"
    expected = twin.after_feed_forward(z, w, 0, between, units)
    if not _near(states, expected, max(BY_CODES[int(z.codes_o)], BY_CODES[int(z.codes_down)])):
        yield "residual stream"
    last = int(w.norm_offsets[1, 0])
    for i, state in enumerate(states[-3:]):
        normed = fold(w.folds, 1, 0, norm.rms_norm(state[None], w.norms[last : last + z.hidden], z.norm_eps))[0]
        row = np.empty(z.vocab, np.float32)
        twin.logits(z, w, normed, row)
        if not _near(logits[i], row, FLOATS if w.head_groups is None else BY_CODES[int(arrays.INT8)]):
            yield "logits"
