"""The decoder: however the same tokens are fed, by however many threads and whichever kernels, the same logits come out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import control, isa
from numpy.typing import NDArray

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model import checks
from bitnet_cli.model import engine as module
from bitnet_cli.model.engine import CHUNK_TOKENS, Engine
from bitnet_cli.model.sequence import Sequence

from .builder import Model, Sizes, random_model, write_model
from .reference import assert_agree, forward

Make = Callable[..., Sequence]
GREEDY = Path(__file__).parent / "greedy.py"
LONG = [256, *(int(i) for i in np.random.default_rng(7).integers(0, 256, 2 * CHUNK_TOKENS + 2))]  # 2 * CHUNK_TOKENS + 3 tokens


def one_by_one(decoder: Sequence, ids: list[int]) -> NDArray[np.float32]:
    return np.stack([decoder.feed([token]).copy() for token in ids])


@pytest.fixture(scope="module")
def stepped(long_file: Path) -> NDArray[np.float32]:
    """Logits after each token of LONG, fed one at a time."""
    from bitnet_cli.gguf_file.reader import open_gguf

    with open_gguf(long_file) as file:
        return one_by_one(Sequence(Engine(file, context=400)), LONG)


def test_the_whole_text_against_the_formulas(long_model: Model, stepped: NDArray[np.float32]) -> None:
    result = forward(long_model, LONG)
    assert_agree(stepped, result.logits, result.margin)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS + 3])
def test_prefill_is_decode(long_file: Path, text_of: Make, stepped: NDArray[np.float32], count: int) -> None:
    """Integer products are exact and the float sums have one order, so the logits are the same to the bit."""
    decoder = text_of(long_file, context=400)
    assert np.array_equal(decoder.feed(LONG[:count]), stepped[count - 1])
    assert decoder.position == count


@pytest.mark.parametrize("cuts", [(1,), (CHUNK_TOKENS,), (CHUNK_TOKENS - 1, CHUNK_TOKENS + 1), (3, 200, 201), (130, 258)])
def test_feeding_in_pieces(long_file: Path, text_of: Make, stepped: NDArray[np.float32], cuts: tuple[int, ...]) -> None:
    decoder = text_of(long_file, context=400)
    for first, last in zip((0, *cuts), (*cuts, len(LONG)), strict=True):
        assert np.array_equal(decoder.feed(LONG[first:last]), stepped[last - 1])


@pytest.mark.parametrize("count", [1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 3])
def test_feed_all_gives_every_row(long_file: Path, text_of: Make, stepped: NDArray[np.float32], count: int) -> None:
    """The last norm and the head run in NumPy there, so the sums differ in their last bits."""
    decoder = text_of(long_file, context=400)
    logits = decoder.feed_all(LONG[:count])
    assert logits.shape == (count, 260)
    assert np.abs(logits - stepped[:count]).max() < 2e-6 * np.abs(stepped).max()
    assert decoder.position == count
    assert np.array_equal(decoder.feed([5]), text_of(long_file, context=400).feed([*LONG[:count], 5]))


def test_feed_all_owns_its_result(small_file: Path, text_of: Make) -> None:
    decoder = text_of(small_file)
    first = decoder.feed_all([1, 2, 3])
    kept = first.copy()
    decoder.feed_all([4, 5])
    assert np.array_equal(first, kept)


@pytest.mark.slow
@pytest.mark.parametrize("cache_type", ["f16", "q8", "q4", "q3"])
def test_every_cache_type_is_the_same_however_fed(long_file: Path, text_of: Make, cache_type: str) -> None:
    """Attention reads what is stored, also of tokens in the same chunk."""
    expected = one_by_one(text_of(long_file, context=400, cache_type=cache_type), LONG)
    for threads, cuts in ((1, (1, 5, CHUNK_TOKENS + 7)), (2, (CHUNK_TOKENS,)), (3, (2, 3, 9, 200))):
        other = text_of(long_file, context=400, cache_type=cache_type, threads=threads)
        for first, last in zip((0, *cuts), (*cuts, len(LONG)), strict=True):
            assert np.array_equal(other.feed(LONG[first:last]), expected[last - 1])


def test_an_unknown_cache_type(small_file: Path, text_of: Make) -> None:
    with pytest.raises(UsageError, match="cache type q5: expected f32, f16, q8, q4 or q3"):
        text_of(small_file, cache_type="q5")


def test_a_context_smaller_than_a_chunk(small_file: Path, text_of: Make) -> None:
    for context in (1, 2, 3, 5, 63):
        small, whole = text_of(small_file, context=context), text_of(small_file)
        assert small.engine.context == context
        assert np.array_equal(small.feed(LONG[:context]), whole.feed(LONG[:context]))


def test_rewind(small_file: Path, text_of: Make) -> None:
    decoder, fresh = text_of(small_file), text_of(small_file)
    decoder.feed(LONG[:40])
    decoder.rewind(10)
    assert decoder.position == 10
    assert np.array_equal(decoder.feed([7, 8, 9]), fresh.feed([*LONG[:10], 7, 8, 9]))
    decoder.rewind(0)
    assert np.array_equal(decoder.feed([3]), text_of(small_file).feed([3]))
    for position in (-1, 2, 100):
        with pytest.raises(ValueError, match=f"position must be 0 to 1, not {position}"):
            decoder.rewind(position)


def test_the_context_is_full(small_file: Path, text_of: Make) -> None:
    decoder = text_of(small_file)
    with pytest.raises(UsageError, match="65 tokens do not fit the context of 64"):
        decoder.feed(LONG[:65])
    assert decoder.position == 0
    last = decoder.feed(LONG[:64]).copy()
    for call in (decoder.feed, decoder.feed_all):
        with pytest.raises(UsageError, match="65 tokens do not fit the context of 64"):
            call([1])
    decoder.rewind(63)
    assert np.array_equal(decoder.feed(LONG[63:64]), last)


@pytest.mark.parametrize("bad", [-1, 260, 2**31, 2**63, 2**70, -(2**70)])
@pytest.mark.parametrize("ids", [[], [5], [5] * 30])
def test_ids_outside_the_vocabulary(small_file: Path, text_of: Make, bad: int, ids: list[int]) -> None:
    decoder = text_of(small_file)
    for call in (decoder.feed, decoder.feed_all):
        with pytest.raises(UsageError, match="token ids must be 0 to 259"):
            call([*ids, bad])
        assert decoder.position == 0
    assert np.isfinite(decoder.feed([0, 259])).all()


def test_no_tokens(small_file: Path, text_of: Make) -> None:
    for call in (text_of(small_file).feed, text_of(small_file).feed_all):
        with pytest.raises(UsageError, match="no tokens"):
            call([])


@pytest.mark.parametrize("context", [-1, 65, 2**40])
def test_a_context_that_the_model_has_not(small_file: Path, text_of: Make, context: int) -> None:
    with pytest.raises(UsageError, match=f"context {context}: .* 1 to 64 tokens"):
        text_of(small_file, context=context)


@pytest.mark.parametrize("threads", [0, -1, control.MAX_THREADS + 1, 10**9])
def test_an_impossible_number_of_threads(small_file: Path, text_of: Make, threads: int) -> None:
    """Before anything is allocated: 10^9 threads' scratch memory would be terabytes."""
    with pytest.raises(UsageError, match=f"{threads} threads: expected 1 to {control.MAX_THREADS}"):
        text_of(small_file, threads=threads)


def test_the_default_context(tmp_path: Path, small_file: Path, text_of: Make) -> None:
    assert text_of(small_file).engine.context == 64
    large = write_model(tmp_path / "m.gguf", random_model(Sizes(layers=1)), metadata={"context_length": 1 << 20})
    assert text_of(large).engine.context == 2048


def test_a_cache_larger_than_memory(tmp_path: Path, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 tables x 4 bytes x 2 layers x 2 KV heads x 32 numbers x 2^20 tokens = 1 GiB."""
    path = write_model(tmp_path / "m.gguf", metadata={"context_length": 1 << 20})
    monkeypatch.setattr(checks, "available_bytes", lambda: 2**30 - 1)
    with monkeypatch.context() as guard:
        guard.setattr(module, "load_weights", lambda *_: pytest.fail("allocated"))
        guard.setattr(module, "rope_tables", lambda *_: pytest.fail("allocated"))
        with pytest.raises(BitnetError) as caught:
            text_of(path, context=1 << 20)
    told = "a context of 1048576 tokens needs 1.0 GiB of memory, 1.0 are free; use a smaller context (up to 1048575 tokens)"
    assert str(caught.value) == f"{told}, or cache_type q8: 0.3 GiB" and caught.value.exit_code == 1
    assert text_of(path, context=1000).engine.cache_bytes() == 2 * 4 * 2 * 2 * 32 * 1024  # whole pages


def test_memory_that_is_not_known(small_file: Path, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: None)
    assert text_of(small_file).engine.context == 64


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_do_not_change_a_bit(long_file: Path, text_of: Make, stepped: NDArray[np.float32], threads: int) -> None:
    decoder = text_of(long_file, context=400, threads=threads)
    assert np.array_equal(decoder.feed(LONG[:131]), stepped[130])
    for at in range(131, 141):
        assert np.array_equal(decoder.feed(LONG[at : at + 1]), stepped[at])


def test_a_decoder_that_was_closed_starts_its_threads_again(small_file: Path, text_of: Make) -> None:
    decoder = text_of(small_file, threads=2)
    first = decoder.feed([1, 2, 3]).copy()
    decoder.engine.close()
    decoder.rewind(0)
    assert np.array_equal(decoder.feed([1, 2, 3]), first)


def test_layers_in_several_calls(small_file: Path, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models return to Python between layers, so that Ctrl-C is answered."""
    whole = text_of(small_file).feed(LONG[:50]).copy()
    monkeypatch.setattr(module, "WORK_A_CALL", 1.0)
    decoder = text_of(small_file)
    calls: list[Any] = []
    team_run = decoder.engine.team.run
    monkeypatch.setattr(decoder.engine.team, "run", lambda *a: (calls.append(a), team_run(*a)))
    assert np.array_equal(decoder.feed(LONG[:50]), whole)
    assert [(*call[1:3], len(call[3])) for call in calls] == [(0, 1, 0), (1, 2, 1)]


def test_an_interrupted_step_leaves_a_usable_decoder(small_file: Path, text_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = text_of(small_file)
    decoder.feed(LONG[:10])
    with monkeypatch.context() as patch:
        patch.setattr(decoder.engine.team, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decoder.feed(LONG[10:20])
    assert decoder.position == 10
    assert np.array_equal(decoder.feed(LONG[10:20]), text_of(small_file).feed(LONG[:20]))


def test_two_decoders_over_one_file(small_file: Path, text_of: Make) -> None:
    one, two = text_of(small_file), text_of(small_file)
    first = one.feed([1, 2]).copy()
    two.feed([9, 9, 9])
    assert np.array_equal(first, two.feed([4]) * 0 + first)
    assert np.array_equal(one.feed([3]), text_of(small_file).feed([1, 2, 3]))


@pytest.fixture(scope="module")
def talkative_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its head is not its embedding, so that it does not repeat what it hears. The seed is one whose choices are no near ties."""
    return write_model(tmp_path_factory.mktemp("talk") / "talk.gguf", random_model(seed=7, tied=False))


@cache
def greedy(path: Path, threads: int = 1, **environment: str) -> dict[str, Any]:
    """What greedy.py prints; both the prompt (in a chunk) and the 24 tokens after it (one by one) run through the kernels."""
    ids = [str(token) for token in LONG[:20]]
    command = [sys.executable, str(GREEDY), str(path), str(threads), "24", *ids]
    clean = {key: value for key, value in os.environ.items() if key not in ("BITNET_ISA", "NUMBA_DISABLE_JIT")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean | environment, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["lead"] > 0.01, "a near tie: choose another seed, this one proves nothing"
    return result


def test_kernels_and_twins_write_the_same_text(talkative_file: Path) -> None:
    """Of the other sets, test_same_text.py has hashes of what they write."""
    result, twins = greedy(talkative_file), greedy(talkative_file, BITNET_ISA="naive")
    assert (result["isa"], twins["isa"]) == (isa.supported(isa.cpu_features())[0], "naive")
    assert result["tokens"] == twins["tokens"]
    assert len(set(result["tokens"])) > 4


def test_without_the_compiler(talkative_file: Path) -> None:
    result = greedy(talkative_file, NUMBA_DISABLE_JIT="1")
    assert result["isa"] == "naive"
    assert result["tokens"] == greedy(talkative_file, BITNET_ISA="naive")["tokens"]


def test_threads_write_the_same_text(talkative_file: Path) -> None:
    assert greedy(talkative_file, threads=2)["tokens"] == greedy(talkative_file, threads=1)["tokens"]


def test_scratch_begins_at_cache_lines(text_of: Make) -> None:
    scratch = text_of(EMBEDDED_MODEL).engine.arrays.scratch
    written = [name for name, array in scratch._asdict().items() if isinstance(array, np.ndarray) and array.size and array.ctypes.data % 64]
    assert set(written) <= {"factors", "fine_factors"}  # a float a token
