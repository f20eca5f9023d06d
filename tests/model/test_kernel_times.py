"""Time per kernel: the step with a clock in it is the step, and its parts are all of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.kernel_times import KERNELS, KernelTimer, require_timed_kernels
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import kernel_work, projection_bytes_a_token

from .builder import Sizes, random_model, write_model

IDS = [256, *b"a text of some length"]


@pytest.mark.slow  # compiles the step a second time
@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="there is no compiled step")
def test_the_timed_step_is_the_step(tmp_path: Path, opened: Callable[[Path], GGUFFile]) -> None:
    file = opened(write_model(tmp_path / "m.gguf", random_model(Sizes(), seed=4)))
    decoder = Sequence(Engine(file, threads=2, cache_type="f16"))
    timer = KernelTimer(decoder.engine)
    decoder.feed(IDS[:9])
    for more in ([IDS[9]], IDS[10:16]):
        position, count = decoder.position, len(more)
        logits = decoder.feed(more).copy()
        states = decoder.engine.arrays.scratch.x[:count].copy()
        decoder.feed([more[0]] * count)
        decoder.rewind(position)
        seconds = timer.seconds([more], position, 0)
        assert decoder.position == position
        assert np.array_equal(decoder.engine.arrays.scratch.logits[0], logits)
        assert np.array_equal(decoder.engine.arrays.scratch.x[:count], states)
        assert np.array_equal(decoder.feed(more), logits)
        assert tuple(seconds) == KERNELS
        # All but the norms that this model does not have.
        assert {name for name, value in seconds.items() if value > 0} == set(KERNELS) - {"norms"}
    decoder.engine.close()


def test_kernels_need_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "chosen", lambda: isa.NAIVE)
    with pytest.raises(UnsupportedError, match="--kernels needs compiled kernels"):
        require_timed_kernels()


def test_work_by_hand(tmp_path: Path, opened: Callable[[Path], GGUFFile]) -> None:
    """2 layers, hidden 128, 4 query and 2 KV heads of 32, feed-forward 256: 2 bits a weight, two float32 values of 64 a position."""
    decoder = Sequence(Engine(opened(write_model(tmp_path / "m.gguf", random_model(Sizes(), seed=4))), cache_type="f32"))
    c = decoder.engine.config
    work = kernel_work(decoder.engine, 7, 1, 1.0, False)
    assert sum(work[name].bytes for name in KERNELS[:7]) == sum(projection_bytes_a_token(decoder.engine))
    assert work["attn_k"] == (c.layers * 64 * 128 / 4, 2 * c.layers * 64 * 128)
    assert work["ffn_down"] == (c.layers * 256 * 128 / 4, 2 * c.layers * 256 * 128)
    assert work["attention"] == (c.layers * 8 * 2 * 64 * 4, 4 * c.layers * 128 * 8)
    assert work["head"].operations == 2 * c.vocab * 128
    chunk = kernel_work(decoder.engine, 0, 16, 1 / 32, False)
    assert chunk["ffn_up"] == (work["ffn_up"].bytes / 16, work["ffn_up"].operations)
    assert chunk["head"].operations == work["head"].operations / 32


def test_bytes_of_skipped_rows_and_columns(tmp_path: Path, opened: Callable[[Path], GGUFFile]) -> None:
    """A quarter of `up`'s rows skipped in all tokens; `down` by columns in half of the tokens, and then half of its columns."""
    decoder = Sequence(Engine(opened(write_model(tmp_path / "m.gguf", random_model(Sizes(), seed=4)))))
    whole = projection_bytes_a_token(decoder.engine)
    scratch = decoder.engine.arrays.scratch
    scratch.counts[0] = (400, 100)
    scratch.column_counts[0] = (200, 100)
    assert projection_bytes_a_token(decoder.engine) == [*whole[:5], 0.75 * whole[5], 0.5 * whole[6] + 0.5 * 0.5 * whole[6]]
