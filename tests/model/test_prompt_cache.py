"""The KV cache of a prompt in a file: the same logits as computing it, and nothing that was not written for this model is read."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError, BitnetError, UsageError
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.opening import OpenModel, Options, open_model

from .held import held, prefill

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 4000, 37)]
Open = Callable[..., OpenModel]


@pytest.fixture
def opened() -> Iterator[Open]:
    made: list[OpenModel] = []

    def make(path: Path = EMBEDDED_MODEL, context: int = 64, **options: Any) -> OpenModel:
        made.append(open_model(path, Options(context=context, threads=1, **options)))
        return made[-1]

    yield make
    for one in made:
        one.scheduler.close()


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8", "q4", "q3"])
def test_the_same_logits(opened: Open, cache_type: str, tmp_path: Path) -> None:
    """In a context of another size, and with another text after it."""
    writer, reader = opened(cache_type=cache_type), opened(cache_type=cache_type, context=50)
    prefill(writer.engine, [*IDS, 7, 8, 9])
    prompt_cache.save(writer, IDS, tmp_path / "cache")
    assert prompt_cache.load(reader, tmp_path / "cache") == len(IDS)
    assert held(reader.engine) == IDS
    logits, fed = prefill(reader.engine, [*IDS, 5, 6])
    assert fed == 2
    assert np.array_equal(logits, prefill(writer.engine, [*IDS, 5, 6])[0])


@pytest.fixture
def cache(opened: Open, tmp_path: Path) -> Path:
    model = opened()
    prefill(model.engine, IDS)
    prompt_cache.save(model, IDS, tmp_path / "cache")
    return tmp_path / "cache"


def test_of_another_kind(opened: Open, cache: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"cache_type": "f32"}, "--cache-type f16"),
        ({"activations": "a4"}, "--activations"),
        ({"context": 20}, "holds 37 tokens, the context has 20"),
    ):
        with pytest.raises(UsageError, match=words):
            prompt_cache.load(opened(**options), cache)
    changed = bytearray(EMBEDDED_MODEL.read_bytes())
    changed[-5000:-4000] = changed[-4000:-3000]
    (tmp_path / "other.gguf").write_bytes(changed)
    with pytest.raises(UsageError, match="another model"):
        prompt_cache.load(opened(tmp_path / "other.gguf"), cache)
    shutil.copy(EMBEDDED_MODEL, tmp_path / "copy.gguf")
    assert prompt_cache.load(opened(tmp_path / "copy.gguf"), cache) == len(IDS)


def test_by_another_version(opened: Open, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "__version__", "99")
    with pytest.raises(UsageError, match="another version"):
        prompt_cache.load(opened(), cache)


def test_damaged(opened: Open, cache: Path) -> None:
    """Any byte may be wrong, and any may be missing: one error, and a session that holds nothing."""
    model, good = opened(), cache.read_bytes()
    start = good.index(b"\n", len(prompt_cache.MAGIC)) + 1
    places = [*range(0, start, 7), start, start + 3, start + 150, len(good) // 2, len(good) - 33, len(good) - 1]
    for at in places:
        cache.write_bytes(good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :])
        with pytest.raises(BitnetError) as caught:
            prompt_cache.load(model, cache)
        assert caught.value.exit_code in (2, 3)
        assert str(cache) in str(caught.value)
        assert held(model.engine) == []
    for length in (0, 5, start - 1, start, start + 100, len(good) // 2, len(good) - 1):
        cache.write_bytes(good[:length])
        with pytest.raises(BadFileError):
            prompt_cache.load(model, cache)
    cache.write_bytes(good + b"x")
    with pytest.raises(BadFileError):
        prompt_cache.load(model, cache)
    cache.write_bytes(good)
    assert prompt_cache.load(model, cache) == len(IDS)


@pytest.mark.parametrize("tokens", [-1, 0, 10**15, "37", None, True])
def test_a_header_that_lies(opened: Open, cache: Path, tokens: Any) -> None:
    magic, header, rest = cache.read_bytes().split(b"\n", 2)
    cache.write_bytes(b"\n".join([magic, json.dumps(json.loads(header) | {"tokens": tokens}).encode(), rest]))
    with pytest.raises(BitnetError):
        prompt_cache.load(opened(), cache)


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_all_or_nothing(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that fails leaves the old file, and no part of the new one."""
    model, path = opened(), tmp_path / "cache"
    prefill(model.engine, IDS)
    path.write_bytes(b"old")
    rows = prompt_cache._rows

    def breaks(parts: Any) -> Iterator[Any]:
        yield next(rows(parts))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_cache, "_rows", breaks)
    with pytest.raises(OSError, match="No space"):
        prompt_cache.save(model, IDS, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nowhere_to_write(opened: Open, tmp_path: Path) -> None:
    model = opened()
    prefill(model.engine, IDS)
    with pytest.raises(BitnetError, match="cannot be written"):
        prompt_cache.save(model, IDS, tmp_path / "no" / "folder")
    with pytest.raises(BadFileError):
        prompt_cache.load(model, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")
def test_it_is_its_owners_alone(opened: Open, cache: Path) -> None:
    """It says what the prompt was: whatever the umask is, and whatever the file had before."""
    assert cache.stat().st_mode & 0o777 == 0o600
    cache.chmod(0o644)
    model = opened()
    prefill(model.engine, IDS)
    before = os.umask(0)
    try:
        prompt_cache.save(model, IDS, cache)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o600
