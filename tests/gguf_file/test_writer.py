"""Writing: the bytes come back, other readers open them, and a failure at any point leaves the old target and nothing else."""

import os
import shutil
import stat
import subprocess
import sys
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.gguf_file import part_file, writer
from bitnet_cli.gguf_file.metadata import Typed, ValueType, with_type
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import BLOCKS, TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor, refuse_same_file, write_gguf

RANDOM = np.random.default_rng(1)
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, limits and locks of POSIX")


def tensor(name: str, kind: TensorType, shape: tuple[int, ...]) -> tuple[OutputTensor, np.ndarray]:
    """A tensor of random bytes, and these bytes."""
    data = RANDOM.integers(0, 256, nbytes(kind, shape)).astype(np.uint8)
    return OutputTensor(name, kind, shape, lambda: data), data


def fails(error: BaseException) -> Callable[[], np.ndarray]:
    def produce() -> np.ndarray:
        raise error

    return produce


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["ggml-vocab-llama-bpe.gguf", "ggml-vocab-llama-spm.gguf"])
def test_a_copy_of_a_real_vocabulary_is_the_same_file(shared_vocab: Path, tmp_path: Path, name: str) -> None:
    with open_gguf(shared_vocab / name) as source:
        write_gguf(tmp_path / "copy.gguf", source.require_str("general.architecture"), source.typed_metadata, [])
        with open_gguf(tmp_path / "copy.gguf") as copy:
            assert copy.typed_metadata == source.typed_metadata
            assert list(copy.typed_metadata) == list(source.typed_metadata)
    assert (tmp_path / "copy.gguf").read_bytes() == (shared_vocab / name).read_bytes()


def test_every_value_type_survives(tmp_path: Path) -> None:
    largest = {"UINT8": 255, "INT8": -128, "UINT16": 65535, "INT16": -32768, "UINT32": 2**32 - 1, "INT32": -(2**31)}
    largest |= {"UINT64": 2**64 - 1, "INT64": -(2**63)}
    codes = dict(zip(largest, "BbHhIiQq", strict=True))
    metadata = {f"scalar.{name}": Typed(value, ValueType[name]) for name, value in largest.items()}
    metadata |= {f"array.{n}": Typed(array(codes[n], [v, 0]), ValueType.ARRAY, ValueType[n]) for n, v in largest.items()}
    metadata |= {
        "float32": Typed(0.1 + 2**-30, ValueType.FLOAT64),
        "float64": Typed(1e300, ValueType.FLOAT64),
        "floats": Typed(array("d", [1e300, 0.1]), ValueType.ARRAY, ValueType.FLOAT64),
        "bool": Typed(False, ValueType.BOOL),
        "bools": Typed(array("B", [1, 0]), ValueType.ARRAY, ValueType.BOOL),
        "empty string": Typed("", ValueType.STRING),
        "strings": Typed(["", "ü", b"\xff\x80".decode("utf-8", "surrogateescape")], ValueType.ARRAY, ValueType.STRING),
        "bytes": Typed(b"\xc3".decode("utf-8", "surrogateescape"), ValueType.STRING),
        "no strings": Typed([], ValueType.ARRAY, ValueType.STRING),
        "no numbers": Typed(array("h"), ValueType.ARRAY, ValueType.INT16),
    }
    for architecture in ("llama", b"\xeclama".decode("utf-8", "surrogateescape")):  # a bit flipped: no UTF-8
        write_gguf(tmp_path / "a.gguf", architecture, metadata, [], force=True)
        with open_gguf(tmp_path / "a.gguf") as file:
            assert file.typed_metadata == {"general.architecture": Typed(architecture, ValueType.STRING), **metadata}


@pytest.mark.parametrize(
    ("value", "kind", "item"),
    [
        (True, "BOOL", None),
        (0, "UINT32", None),
        (2**32 - 1, "UINT32", None),
        (2**32, "UINT64", None),
        (-1, "INT32", None),
        (-(2**31) - 1, "INT64", None),
        (1.0, "FLOAT32", None),
        ("text", "STRING", None),
        (["a"], "ARRAY", "STRING"),
        ([1, -1], "ARRAY", "INT32"),
        ((1.5,), "ARRAY", "FLOAT32"),
        (array("I", [1]), "ARRAY", "UINT32"),
        (array("d"), "ARRAY", "FLOAT64"),
    ],
)
def test_types_of_plain_values(value: Any, kind: str, item: str | None) -> None:
    typed = with_type(value)
    assert (typed.type.name, typed.item_type and typed.item_type.name) == (kind, item)


@pytest.mark.parametrize("value", [[], [1, "a"], [True], [1, 1.5], array("l")])
def test_values_without_a_type(value: Any) -> None:
    with pytest.raises(ValueError, match=r"items of one type|has no GGUF type"):
        with_type(value)


def test_every_tensor_type_survives(tmp_path: Path) -> None:
    pairs = [tensor(kind.name, kind, (12, max(BLOCKS[kind][0], 128))) for kind in TensorType if kind < 2**32]
    size = write_gguf(tmp_path / "a.gguf", "bitnet-b1.58", {"x": 1}, [t for t, _ in pairs])
    assert size == (tmp_path / "a.gguf").stat().st_size
    with open_gguf(tmp_path / "a.gguf") as file:
        assert file.trailing == 0
        assert [(i.name, i.type, i.shape) for i in file.tensors.values()] == [(t.name, t.type, t.shape) for t, _ in pairs]
        for out, data in pairs:
            assert np.array_equal(file.raw(out.name), data)


def test_gguf_package_reads_it(tmp_path: Path) -> None:
    weights = RANDOM.standard_normal((4, 512)).astype(np.float32)
    kinds = {TensorType.Q8_0, TensorType.TQ2_0, TensorType.TQ1_0}
    made = {k: gguf.quants.quantize(weights, gguf.GGMLQuantizationType(int(k))) for k in kinds}
    made |= {TensorType.F32: weights, TensorType.F16: weights.astype(np.float16)}
    tensors = [OutputTensor(kind.name, kind, (4, 512), lambda d=data: d) for kind, data in made.items()]
    metadata = {"llama.block_count": 2, "tokenizer.ggml.tokens": ["a", "ü"], "general.alignment": 64, "flag": True, "eps": 0.5}
    write_gguf(tmp_path / "a.gguf", "llama", metadata, tensors)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.alignment == 64
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {"general.architecture": "llama", **metadata}
    assert [t.name for t in reader.tensors] == [t.name for t in tensors]
    for out in reader.tensors:
        assert [int(n) for n in out.shape] == [512, 4]
        back = gguf.quants.dequantize(out.data, out.tensor_type)
        assert np.array_equal(back, gguf.quants.dequantize(made[TensorType[out.name]], out.tensor_type))


def test_any_array_with_the_right_bytes_will_do(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    bits = matrix.view(np.uint32) >> 16
    tensors = [
        OutputTensor("transposed", TensorType.F32, (4, 3), lambda: matrix.T),
        OutputTensor("bf16", TensorType.BF16, (3, 4), lambda: bits.astype(np.uint16)),
        OutputTensor("scalar", TensorType.F32, (1,), lambda: np.array(2.5, np.float32)),
    ]
    write_gguf(tmp_path / "a.gguf", "llama", {}, tensors)
    with open_gguf(tmp_path / "a.gguf") as file:
        assert file.raw("transposed").view("<f4").tolist() == matrix.T.reshape(-1).tolist()
        assert file.raw("bf16").view("<u2").tolist() == bits.reshape(-1).tolist()
        assert file.raw("scalar").view("<f4").tolist() == [2.5]


def test_alignment_is_obeyed(tmp_path: Path) -> None:
    pairs = [tensor("a", TensorType.F32, (3,)), tensor("b", TensorType.F32, (5,))]
    write_gguf(tmp_path / "a.gguf", "llama", {"general.alignment": 1024}, [t for t, _ in pairs])
    with open_gguf(tmp_path / "a.gguf") as file:
        assert [info.offset % 1024 for info in file.tensors.values()] == [0, 0]
        assert file.alignment == 1024
    with pytest.raises(ValueError, match=r"general\.alignment is 48"):
        write_gguf(tmp_path / "b.gguf", "llama", {"general.alignment": 48}, [])


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    calls: list[tuple[str, int, int]] = []

    def produce() -> np.ndarray:
        assert not any(ref() is not None for ref in alive)
        data = np.zeros(1000, np.float32)
        alive.append(weakref.ref(data))
        return data

    tensors = [OutputTensor(f"t{i}", TensorType.F32, (1000,), produce) for i in range(3)]
    write_gguf(tmp_path / "a.gguf", "llama", {}, tensors, progress=lambda *call: calls.append(call))
    assert len(alive) == 3
    assert calls == [("t0", 4000, 12000), ("t1", 8000, 12000), ("t2", 12000, 12000)]


def test_target_that_exists(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"a\.gguf: exists already"):
        write_gguf(target, "llama", {}, [])
    assert target.read_bytes() == b"old"
    write_gguf(target, "llama", {}, [], force=True)
    assert target.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(("target", "text"), [("no/a.gguf", "does not exist"), ("folder", "is a folder")])
@pytest.mark.parametrize("force", [False, True])
def test_target_that_cannot_be(tmp_path: Path, target: str, text: str, force: bool) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=text):
        write_gguf(tmp_path / target, "llama", {}, [], force=force)
    assert names(tmp_path) == ["folder"]


@posix_only
def test_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        write_gguf(tmp_path / "pipe", "llama", {}, [], force=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(5, "the input broke"), BitnetError("bad input")])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    tensors = [tensor("first", TensorType.F32, (100_000,))[0], OutputTensor("second", TensorType.F32, (4,), fails(error))]
    with pytest.raises(type(error)) as caught:
        write_gguf(target, "llama", {}, tensors, force=True)
    assert caught.value is error
    assert names(tmp_path) == ["a.gguf"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ([OutputTensor("a", TensorType.F32, (4,), lambda: np.zeros(5, np.float32))], r"a: 20 bytes were made, F32 \(4,\) has 16"),
        ([OutputTensor("a", TensorType.F32, (4,), lambda: np.zeros(4, ">f4"))], "a: big-endian"),
        ([tensor("a", TensorType.F32, (4,))[0]] * 2, "two tensors are called 'a'"),
        ([tensor("x" * 64, TensorType.F32, (4,))[0]], "1 to 63 bytes"),
        ([tensor("", TensorType.F32, (4,))[0]], "1 to 63 bytes"),
        ([tensor("a\n", TensorType.F32, (4,))[0]], "printable"),
        ([tensor("a", TensorType.F32, (1, 1, 1, 1, 4))[0]], "5 dimensions, at most 4"),
        ([OutputTensor("a", TensorType.TQ2_0, (4, 128), lambda: np.zeros(132, np.uint8))], "row length 128"),
    ],
)
def test_impossible_tensors(tmp_path: Path, tensors: list[OutputTensor], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        write_gguf(tmp_path / "a.gguf", "llama", {}, tensors)
    assert names(tmp_path) == []


def test_too_little_space_is_found_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(part_file.shutil, "disk_usage", lambda _: usage._replace(free=4000))
    tensors = [OutputTensor("a", TensorType.F32, (1000,), fails(AssertionError("made all the same")))]
    with pytest.raises(BitnetError, match=r"a\.gguf: needs 4128 bytes, its disk has 4000 free") as caught:
        write_gguf(tmp_path / "a.gguf", "llama", {}, tensors)
    assert caught.value.exit_code == 1
    assert names(tmp_path) == []


def test_a_file_of_another_size_than_planned_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_header_size", lambda *_: 1)
    with pytest.raises(ValueError, match="bytes were written where 1 were planned"):
        write_gguf(tmp_path / "a.gguf", "llama", {}, [])
    assert names(tmp_path) == []


FULL_DISK = """
import resource, sys
import numpy as np
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.writer import OutputTensor, TensorType, write_gguf
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
tensors = [OutputTensor(name, TensorType.F32, (100_000,), lambda: np.zeros(100_000, np.float32)) for name in "ab"]
try:
    write_gguf(sys.argv[1], "llama", {"tokens": ["x" * 1000] * 100}, tensors, force=True)
except BitnetError as error:
    print(error)
"""


@posix_only
@pytest.mark.parametrize("limit", [10, 50_000, 300_000, 600_000, 900_900])
def test_disk_that_fills_up(tmp_path: Path, limit: int) -> None:
    """Stands in for a full disk: the system refuses to let the file grow past the limit, in the metadata or in a tensor."""
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(target), str(limit)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{target}: the disk is full (File too large); the file needs 90")
    assert done.stderr == ""
    assert names(tmp_path) == ["a.gguf"]
    assert target.read_bytes() == b"old"


KILLED = """
import os, sys, time
import numpy as np
from bitnet_cli.gguf_file.writer import OutputTensor, TensorType, write_gguf
def produce():
    os.write(1, b"at work")
    time.sleep(60)
write_gguf(sys.argv[1], "llama", {}, [OutputTensor("a", TensorType.F32, (4,), produce)], force=True)
"""


@posix_only
def test_part_file_of_a_killed_writer_goes_with_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.read(7) == b"at work"
            write_gguf(target, "llama", {}, [], force=True)
            assert len(names(tmp_path)) == 2  # it is alive: its part file is not touched
        finally:
            other.kill()
    assert target.read_bytes()[:4] == b"GGUF"
    assert len(names(tmp_path)) == 2
    (tmp_path / "a.gguf.old.part").touch()
    write_gguf(target, "llama", {}, [], force=True)
    assert names(tmp_path) == ["a.gguf", "a.gguf.old.part"]  # a file that only looks similar stays


def test_two_writers_of_one_target_both_finish(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"

    def produce() -> np.ndarray:
        write_gguf(target, "inner", {}, [])
        with open_gguf(target) as file:
            assert file.metadata["general.architecture"] == "inner"
        return np.zeros(4, np.float32)

    write_gguf(target, "outer", {}, [OutputTensor("a", TensorType.F32, (4,), produce)])
    with open_gguf(target) as file:
        assert file.metadata["general.architecture"] == "outer"
    assert names(tmp_path) == ["a.gguf"]


@posix_only
def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", "llama", {}, [])
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_input_and_output_must_differ(tmp_path: Path) -> None:
    source, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source.touch()
    refuse_same_file(source, other)
    other.touch()
    refuse_same_file(source, other)
    refuse_same_file(tmp_path / "absent", source)
    for twin in ("hard", "soft"):
        (os.link if twin == "hard" else os.symlink)(source, tmp_path / twin)
        with pytest.raises(UsageError, match="is the input file"):
            refuse_same_file(source, tmp_path / twin)
    with pytest.raises(UsageError, match="is the input file"):
        refuse_same_file(source, tmp_path / "." / "a.gguf")


def test_gguf_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, bitnet_cli.gguf_file.writer; print(sorted({'gguf', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
