"""The reader of safetensors and of shards against good files, and against files made to break it (faults 24 to 27)."""

import json
import os
import random
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.checkpoint.safetensors import BITS, read_table
from bitnet_cli.checkpoint.shards import read_tensors
from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, READ
from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def forge(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """`header`: text, bytes or an object; `length`: what the file says of it."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "F64": rng.normal(size=(3, 5)),
        "F32": rng.normal(size=(3, 5)).astype(np.float32),
        "F16": rng.normal(size=(3, 5)).astype(np.float16),
        "BF16": rng.integers(0, 1 << 16, (3, 5)).astype(np.uint16),
        "U8": rng.integers(0, 256, (3, 5)).astype(np.uint8),
        "I8": rng.integers(-128, 128, (3, 5)).astype(np.int8),
    }
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in arrays.items():
        header[name] = entry(name, value.shape, (len(data), len(data) + value.nbytes))
        data += value.tobytes()
    table = read_table(forge(tmp_path / "x.safetensors", header, data))
    assert set(arrays) == set(READ) == set(table)
    for name, value in arrays.items():
        assert np.array_equal(table[name].stored(), value)
        assert np.array_equal(table[name].stored(1, 2), value[1:2])
    for name in ("F64", "F32", "F16"):
        assert np.array_equal(table[name].float32(), arrays[name].astype(np.float32))
    # BF16 is the upper half of a float32: by integer arithmetic, NaN and Inf included.
    assert np.array_equal(table["BF16"].float32().view(np.uint32), arrays["BF16"].astype(np.uint32) << 16)
    with pytest.raises(BadFileError, match="dtype U8, expected one of"):
        table["U8"].float32()


@pytest.mark.live
def test_agrees_with_the_safetensors_package(folders: dict[str, Path]) -> None:
    package = pytest.importorskip("safetensors")
    table = read_table(folders["C"] / "model.safetensors")
    with package.safe_open(folders["C"] / "model.safetensors", "np") as reference:
        assert set(reference.keys()) == set(table)
        comparable = [tensor for tensor in table.values() if tensor.dtype in ("U8", "F32")]  # its NumPy side has no BF16
        assert len(comparable) == 28
        for tensor in comparable:
            assert np.array_equal(tensor.stored(), reference.get_tensor(tensor.name))


def test_chunks_are_the_whole_in_order(tmp_path: Path) -> None:
    rows, cols = 700, 3001  # more than one chunk, and the last one shorter
    value = np.arange(rows * cols, dtype=np.float32).reshape(rows, cols)
    path = forge(tmp_path / "x.safetensors", {"a": entry("F32", (rows, cols), (0, value.nbytes))}, value.tobytes())
    chunks = list(read_table(path)["a"].float32_chunks())
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK_ELEMENTS // cols] * (len(chunks) - 1) and len(chunks) == 3
    assert np.array_equal(np.concatenate(chunks), value)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = forge(tmp_path / "x.safetensors", {"s": entry("F32", (), (0, 4)), "e": entry("F32", (0, 4), (4, 4))}, np.float32(7).tobytes())
    table = read_table(path)
    assert table["s"].float32().tolist() == [7.0] and table["s"].elements == 1
    assert table["e"].stored().shape == (0, 4) and list(table["e"].float32_chunks()) == []


GOOD = {"a": entry("F32", (2,), (0, 8)), "b": entry("BF16", (4,), (8, 16))}
DEEP = '{"a":' * 100_000
HOSTILE = {  # name -> (header, data, header length, message)
    "header longer than the file": (GOOD, bytes(16), 10_000, "header length: 10000, but the file has"),
    "header length of 2^64 - 1": (GOOD, bytes(16), 2**64 - 1, "header length"),
    "header above 100 MB": (GOOD, bytes(16), 100_000_001, "header length: 100000001, expected 2 to 100000000"),
    "header of one byte": (GOOD, bytes(16), 1, "header length: 1, expected 2"),
    "not UTF-8": (b'{"\xff": 1}', b"", None, "header: not UTF-8"),
    "not JSON": ("{hello}", b"", None, "header: not JSON"),
    "not an object": ('["a"]', b"", None, "does not start with"),
    "leading space": (" {}", b"", None, "does not start with"),
    "text after the object": ("{} {}", b"", None, "not JSON"),
    "duplicate tensor": (json.dumps(GOOD)[:-1] + ', "a": ' + json.dumps(GOOD["a"]) + "}", bytes(16), None, "duplicate key 'a'"),
    "duplicate field": ('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8), None, "duplicate key"),
    "nested 100,000 deep": (DEEP + "1" + "}" * 100_000, b"", None, "nested too deep"),
    "NaN": ('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', bytes(8), None, "NaN is not JSON"),
    "Infinity": ('{"a": Infinity}', b"", None, "Infinity is not JSON"),
    "integer of 5,000 digits": ('{"a": ' + "9" * 5000 + "}", b"", None, "not JSON"),
    "entry is a number": ({"a": 7}, b"", None, "a: expected dtype, shape and data_offsets"),
    "entry lacks a field": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None, "a: expected dtype"),
    "entry has one more": ({"a": entry() | {"extra": 1}}, bytes(8), None, "a: expected dtype"),
    "unknown dtype": ({"a": entry("I4")}, bytes(8), None, "unknown dtype I4; F64, F32, F16, BF16, U8, I8 are read"),
    "dtype is a list": ({"a": entry() | {"dtype": ["F32"]}}, bytes(8), None, "unknown dtype"),
    "negative size": ({"a": entry(shape=(-2,))}, bytes(8), None, "shape must be"),
    "float size": ({"a": entry(shape=(2.0,))}, bytes(8), None, "shape must be"),
    "boolean size": ({"a": entry(shape=(True, 2))}, bytes(8), None, "shape must be"),
    "nine dimensions": ({"a": entry(shape=(1,) * 8 + (2,))}, bytes(8), None, "at most 8"),
    "sizes whose product wraps to 0": ({"a": entry(shape=(2**33, 2**33), offsets=(0, 0))}, b"", None, "needs 295147905179352825856 bytes"),
    "span too short": ({"a": entry(offsets=(0, 4))}, bytes(4), None, "needs 8 bytes, but data_offsets span 4"),
    "span too long": ({"a": entry(offsets=(0, 12))}, bytes(12), None, "needs 8 bytes, but data_offsets span 12"),
    "offsets backwards": ({"a": entry(offsets=(8, 0))}, bytes(8), None, "begin, end"),
    "offsets negative": ({"a": entry(offsets=(-8, 0))}, bytes(8), None, "begin, end"),
    "one offset": ({"a": entry(offsets=(0,))}, bytes(8), None, "begin, end"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None, "b: data_offsets: overlaps"),
    "twins": ({"a": entry(), "b": entry()}, bytes(8), None, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), None, "leaves 4 unused bytes"),
    "gap at the start": ({"a": entry(offsets=(4, 12))}, bytes(12), None, "leaves 4 unused bytes"),
    "data too short": (GOOD, bytes(15), None, "tensors end at byte"),
    "data too long": (GOOD, bytes(17), None, "tensors end at byte"),
    "empty name": ({"": entry()}, bytes(8), None, "empty, too long or not printable"),
    "escape in a name": ({"a\x1b[31m": entry()}, bytes(8), None, "not printable"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__: expected an object of strings"),
    "metadata is a list": ({"__metadata__": []}, b"", None, "__metadata__"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path: Path, name: str) -> None:
    header, data, length, message = HOSTILE[name]
    path = forge(tmp_path / "x.safetensors", header, data, length)
    start = time.perf_counter()
    with pytest.raises(BadFileError, match=message.replace("[", r"\[").replace("^", r"\^")) as caught:
        read_table(path)
    assert time.perf_counter() - start < 1
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_the_base_of_the_hostile_files_is_good(tmp_path: Path) -> None:
    """Otherwise each of them could be refused for a reason that is not its own."""
    assert set(read_table(forge(tmp_path / "x.safetensors", GOOD, bytes(16)))) == {"a", "b"}


def test_every_truncation_and_random_damage(folders: dict[str, Path], tmp_path: Path) -> None:
    good = forge(tmp_path / "good", GOOD, bytes(16)).read_bytes()
    path = tmp_path / "x.safetensors"
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(BadFileError):
            read_table(path)
    rng = random.Random(0)
    survived = 0
    for _ in range(500):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(good) - 16)] = rng.choice(b'0123456789abBFx,:[]{}" ')
        path.write_bytes(damaged)
        try:
            tensors = read_table(path)
        except BitnetError:
            continue
        survived += 1  # a changed name, say; what it describes must lie in the file
        assert all(t.offset + t.nbytes <= len(good) for t in tensors.values())
    assert 0 < survived < 250


def test_known_dtype_that_is_not_read_is_refused_on_use(tmp_path: Path) -> None:
    table = read_table(forge(tmp_path / "x.safetensors", {"a": entry("F8_E4M3", (8,), (0, 8))}, bytes(8)))
    with pytest.raises(UnsupportedError, match="a: dtype F8_E4M3 is not read; F64, F32, F16, BF16, U8, I8 are"):
        table["a"].stored()
    assert set(READ) < set(BITS)


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = forge(tmp_path / "x.safetensors", GOOD, bytes(16))
    table = read_table(path)
    os.truncate(path, path.stat().st_size - 4)
    assert table["a"].float32().tolist() == [0, 0]
    with pytest.raises(BadFileError, match="the file ended while it was read"):
        table["b"].float32()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "/dev/zero", str(tmp_path)):
        with pytest.raises(BadFileError, match="not a regular file"):
            read_table(tmp_path / name)
    for name in ("loop", "absent"):
        with pytest.raises(BitnetError, match=name):
            read_table(tmp_path / name)


@pytest.fixture
def sharded(tmp_path: Path, models: ModuleType) -> Path:
    """Two shards of two tensors each."""
    floats = np.ones((2, 2), np.float32)
    weight_map = {}
    for shard in (1, 2):
        name = f"model-{shard}-of-2.safetensors"
        tensors = {f"t{shard}{part}": ("F32", floats * shard) for part in "ab"}
        models.write_safetensors(tmp_path / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    write_index(tmp_path, weight_map)
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_map(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return result


def test_shards(sharded: Path) -> None:
    tensors = read_tensors(sharded)
    assert set(tensors) == {"t1a", "t1b", "t2a", "t2b"}
    assert tensors["t2b"].float32().tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("../outside.safetensors", "not a plain file name"),
        ("/etc/passwd", "not a plain file name"),
        ("sub/model.safetensors", "not a plain file name"),
        ("sub\\model.safetensors", "not a plain file name"),
        ("..", "not a .safetensors file"),
        ("", "not a plain file name"),
        ("a\x00.safetensors", "not a plain file name"),
        ("absent.safetensors", "shard absent.safetensors is missing"),
        ("config.json", "not a .safetensors file"),
        (7, "'7' is not a file name"),
        (["model-1-of-2.safetensors"], "is not a file name"),
    ],
)
def test_shard_names(sharded: Path, value: Any, message: str) -> None:
    (sharded.parent / "outside.safetensors").write_bytes((sharded / "model-1-of-2.safetensors").read_bytes())
    write_index(sharded, read_map(sharded) | {"t1a": value})
    with pytest.raises(BadFileError, match=message):
        read_tensors(sharded)


def test_shard_in_a_pickle_format(sharded: Path) -> None:
    write_index(sharded, read_map(sharded) | {"t1a": "pytorch_model.bin"})
    with pytest.raises(UnsupportedError, match="pickle is never loaded"):
        read_tensors(sharded)


def test_links_out_of_the_folder_are_refused_but_those_of_the_hub_cache_are_not(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / "model-1-of-2.safetensors"
    outside = tmp_path.parent / f"{tmp_path.name}-outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    with pytest.raises(BadFileError, match="a link to outside the folder"):
        read_tensors(sharded)
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(BadFileError, match="a loop of links"):
        read_tensors(sharded)
    # models--owner--name/snapshots/revision/file -> ../../blobs/digest
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    outside.rename(blobs / "digest")
    (snapshot / shard.name).symlink_to("../../blobs/digest")
    write_index(snapshot, dict.fromkeys(("t1a", "t1b"), shard.name))
    assert set(read_tensors(snapshot)) == {"t1a", "t1b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t9": "model-1-of-2.safetensors"}, "t9: not in model-1-of-2.safetensors"),
        ({"t1a": "model-2-of-2.safetensors"}, "t1a: said to be in model-2-of-2.safetensors, found in model-1-of-2.safetensors"),
    ],
)
def test_index_and_shards_disagree(sharded: Path, change: dict[str, str], message: str) -> None:
    write_index(sharded, read_map(sharded) | change)
    with pytest.raises(BadFileError, match=message):
        read_tensors(sharded)


def test_one_tensor_in_two_shards(sharded: Path) -> None:
    (sharded / "copy.safetensors").write_bytes((sharded / "model-1-of-2.safetensors").read_bytes())
    write_index(sharded, read_map(sharded) | {"t1a": "copy.safetensors"})
    with pytest.raises(BadFileError, match=r"t1[ab]"):
        read_tensors(sharded)


def test_index_without_a_map(sharded: Path) -> None:
    for weight_map in (None, [], {}):
        write_index(sharded, weight_map)
        with pytest.raises(BadFileError, match="weight_map: expected an object"):
            read_tensors(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.npz", "model.H5", "model.pkl"])
def test_pickle_is_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError, match="pickle is never loaded, use safetensors"):
        read_tensors(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"expected model\.safetensors"):
        read_tensors(tmp_path)
