"""What kernels models need, told without running one: so that their machine code can be made ahead, and brought along.

Code depends on the types of a model's arrays, not on their sizes or values: KINDS and the types of the KV cache are all that published
models differ in. Each set is compiled by a process of its own, since kernels are written for one: this module is its beginning too.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bitnet_kernels import child, compile_cache, isa, kv_cache, native, separate
from bitnet_kernels.arrays import Folds
from bitnet_kernels.native import Asked
from bitnet_kernels.team import Team, compile_for_several

from bitnet_cli.commands.bench.shapes import Shape, write_shape
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import base3_rows, columns, head, logprobs, recode
from bitnet_cli.model.engine import Engine

NEEDED = ("bitnet_cli", "gguf", "yaml", *separate.NEEDED)  # gguf writes the small files, and reads YAML
BIASES = {"biases": np.zeros((1, 1), np.float32)}
FOLDS = {"folds": Folds(np.zeros(0, np.float32), np.zeros((2, 7), np.int64), 1)}
# A scale for a matrix or a row (BitNet, and what is quantised like it), Qwen2 of that; a scale for a group of weights, also of the head's,
# or not of them, or with folds (Bonsai). Whatever else a model may have, its arrays are always there.
KINDS: tuple[tuple[bool, dict[str, Any]], ...] = ((False, {}), (False, BIASES), (True, {}), (True, {"head_groups": None}), (True, FOLDS))
_SMALL = Shape(256, 256, 1, 2, 1, 256, context=128, head_size=128)


def of_published_models() -> list[Asked]:
    """What every kind of model asks for, with every cache, and `bitnet bench` too."""
    from bitnet_kernels import bandwidth, peak  # not before the other process knows for which set

    with native.noted() as asked, tempfile.TemporaryDirectory(prefix="bitnet-") as folder:
        for groups in (False, True):
            path = Path(folder) / f"{groups}.gguf"
            write_shape(path, _SMALL._replace(groups=groups), "small")
            with open_gguf(path) as file:
                engines = [Engine(file, cache_type=kind) for kind in kv_cache.CACHE_TYPES]
            for more in (more for kind, more in KINDS if kind == groups):
                for engine in engines:
                    sizes, weights, cache, scratch = engine.arrays
                    Team(sizes, weights._replace(**more), cache, scratch, 1).start()
        weights = engines[0].arrays.weights
        head.compile_builder()
        columns.compile_builder(weights)
        recode.compile_recoder()
        logprobs.compile_sums()
        if isa.chosen() in base3_rows.SETS:
            base3_rows.compile_builder(weights, base3_rows.Base3Plan(((1, 1),), 0, True))
        compile_for_several()
        peak.multiply_bytes(1)
        peak.multiply_floats(1)
        bandwidth.reader(np.zeros(64, np.uint8))
    return asked


def of_model(path: Path, cache_type: str) -> list[Asked]:
    """What one file asks for."""
    with native.noted() as asked, open_gguf(path) as file:
        Engine(file, cache_type=cache_type).compile()
        logprobs.compile_sums()
        compile_for_several()
    return asked


def compile_set(name: str, models: list[tuple[Path, str]], into: Path | None) -> Iterator[tuple[int, int, int]]:
    """Compile for a set, in another process: (kernels done, kernels in all, parts that are new so far), as it goes on.

    models: files and the types of their caches; none: what published models need. into: a folder for all users; None: the user's own.
    Raises BitnetError where it cannot be done.
    """
    try:
        process = child.start(__name__, "work", NEEDED)
    except (OSError, child.NoChildError) as error:
        raise BitnetError(f"no process can be started to compile: {error}") from None
    answer: Any = (0, 1, 0)
    with process:
        try:
            separate.send(process.stdin, separate.settings(name))
            separate.send(process.stdin, (models, into))
            assert process.stdout is not None
            for answer in separate.messages(process.stdout):
                if isinstance(answer, str):
                    break
                yield answer
        except OSError:
            pass
        finally:
            process.kill()
    if isinstance(answer, str):
        raise BitnetError(f"compiling for {name}: {answer}")
    if answer[0] < answer[1]:
        raise BitnetError(f"compiling for {name}: the process that did it has ended")


def work() -> None:
    """What the other process does."""
    (models, into), sink = next(separate.begin()), sys.stdout.buffer
    try:
        folder = compile_cache.made_within(into) if into else compile_cache.folder()
        if folder is None:
            separate.send(sink, f"nothing can be kept ({compile_cache.refused.reason})")
            return
        found = [asked for path, kind in models for asked in of_model(path, kind)] if models else of_published_models()
        every, parts = list(dict.fromkeys(found)), 0
        for number, asked in enumerate(every):
            separate.send(sink, (number, len(every), parts))
            parts += native.compile_ahead(asked, folder)
        separate.send(sink, (len(every), len(every), parts))
    except OSError as error:
        separate.send(sink, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, BitnetError) as error:
        separate.send(sink, str(error))
