"""Script: steps of small models by this process's kernels on one thread -> errors against the twin, and what is the same bits, as JSON.

Arguments: types of the KV cache (`f16,q8`: one after the other, in one process, which compiles what they share once), f32 without any; then
names of tiny_model.py's shapes, all without any, `plain`: all without groups.
"""

import json
import sys
from typing import Any

import numpy as np
from bitnet_kernels import isa, team
from bitnet_kernels.control import Text, Wanted
from bitnet_kernels.naive import norm
from bitnet_kernels.naive import step as naive_step
from numpy.typing import NDArray
from tiny_model import SHAPES, Model, Shape

from bitnet_cli.model import self_test

Floats = NDArray[np.float32]


def relative(value: Floats, expected: Floats) -> float:
    """Largest difference, in units of the largest expected value."""
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def layer_errors(model: Model) -> list[float]:
    """One error a layer and step. Each layer starts from the same numbers in both, so no error is carried on."""
    errors = []
    for position, tokens in model.plan():
        x = model.inputs[position : position + tokens].copy()
        for layer in range(model.shape.layers):
            model.scratch.x[:tokens] = x
            model.team.run([Text(0, tokens, position)], layer, layer + 1)
            result = model.scratch.x[:tokens].copy()
            kept = model.stored(layer, position, position + tokens)
            expected = model.naive_layer(layer, x, position)
            errors.append(relative(result, expected))
            errors += [relative(a, b) for a, b in zip(kept, model.stored(layer, position, position + tokens), strict=True)]
            x = expected
    return errors


def logit_error(model: Model) -> float:
    """Head and output norm only: no layer. One row of many, some in other places, and the other places left as they are."""
    last, rows = model.weights.norm_offsets[model.shape.layers, 0], model.shape.chunk
    model.scratch.x[:rows] = model.inputs[:rows]
    expected = np.full((rows, model.shape.vocab), 7, np.float32)
    for wanted in ([Wanted(0)], [Wanted(row, 0, rows - 1 - row) for row in range(rows - 1, 0, -2)]):
        model.scratch.logits[:] = 7
        model.team.run([Text(0, rows, 0)], 0, 0, wanted)
        expected[:] = 7
        for row, _, place in wanted:
            state = norm.rms_norm(model.inputs[row], model.weights.norms[last : last + model.shape.hidden], model.sizes.norm_eps)
            naive_step.logits(model.sizes, model.weights, state, expected[place])
    return relative(model.scratch.logits, expected)


def chained_error(shape: Shape, cache: str) -> float:
    """All layers and the head in one call, after other steps; the twin has a cache of its own."""
    model, twin = Model(shape, cache=cache), Model(shape, cache=cache)
    plan = model.plan()[:4]
    results = [model.run(*step)[1] for step in plan]
    expected = [twin.naive_run(*step)[1] for step in plan]
    return max(relative(a, b) for a, b in zip(results, expected, strict=True))


def sequence(shape: Shape, cache: str, mixed: bool, pieces: int, page: int = 0) -> list[bytes]:
    """Residual stream of 26 tokens, logits of the last, keys and values, after steps of some tokens each, of `pieces` calls each."""
    model = Model(shape, cache=cache, page=page)
    total = sum(tokens for _, tokens in model.plan()[:6])
    streams, logits = [], np.zeros(0, np.float32)
    for position, tokens in model.plan(mixed):
        if position < total:
            x, logits = model.run(position, tokens, pieces)
            streams.append(x)
    kept = [part.tobytes() for layer in range(shape.layers) for part in model.stored(layer, 0, total)]
    return [np.concatenate(streams).tobytes(), logits.tobytes(), *kept]


def compiled() -> bool:
    """Whether steps ran as machine code in this process."""
    return bool(team._SERVE._functions)


def passes_self_test(model: Model, cache: str) -> bool:
    """Whether the self-test of a model of this layout is run over that layout, and passes."""
    arrays = model.sizes, model.weights, model.cache, model.scratch
    self_test.check(arrays, cache, False)
    return len(self_test._passed) > 0


def found(cache: str, names: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"isa": isa.chosen(), "errors": {}, "chained": {}, "one by one": {}, "split": {}, "pages": {}, "skipped": {}}
    result["self-test"] = {}
    for name in names:
        shape = SHAPES[name]
        model = Model(shape, cache=cache)
        result["errors"][name] = [*layer_errors(model), logit_error(model)]
        result["chained"][name] = chained_error(shape, cache)
        whole = sequence(shape, cache, True, 1)
        result["one by one"][name] = sequence(shape, cache, False, 1) == whole
        result["skipped"][name] = int(model.scratch.counts[:, 1].sum())
        result["split"][name] = sequence(shape, cache, True, shape.layers) == whole
        self_test._passed.clear()
        result["self-test"][name] = passes_self_test(model, cache)
        result["pages"][name] = sequence(shape, cache, True, 1, page=16) == whole
    return {**result, "compiled": compiled()}


def main() -> None:
    kinds, names = (sys.argv[1] if len(sys.argv) > 1 else "f32").split(","), sys.argv[2:] or list(SHAPES)
    if names == ["plain"]:
        names = [name for name, shape in SHAPES.items() if shape.groups is None]
    results = {kind: found(kind, names) for kind in kinds}
    json.dump(results if len(kinds) > 1 else results[kinds[0]], sys.stdout)


main()
