"""Reading: values and their types, the getters, views of tensor data, agreement with the gguf package, cost of a real vocabulary."""

import json
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.metadata import TYPECODES, Typed, ValueType
from bitnet_cli.gguf_file.reader import GGUFFile, TensorType, open_gguf
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

NOT_UTF8 = b"\xf0\x9f\x98".decode("utf-8", "surrogateescape")
METADATA = {
    "int": 30,
    "negative": -1,
    "wide": 2**40,
    "float": 0.5,
    "nan": float("nan"),
    "flag": True,
    "name": "bitnet",
    "tokens": ["a", "ü", "", NOT_UTF8],
    "ids": [3, 1, 2],
    "scores": [0.5, -1.5],
    "poisoned": [0.0, float("nan")],
    "heads": array("B", [4, 5]),
}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[GGUFFile]:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    halves = np.arange(4, dtype=np.float16)
    tensors = [
        OutputTensor("matrix", TensorType.F32, (2, 3), lambda: matrix),
        OutputTensor("halves", TensorType.F16, (4,), lambda: halves),
    ]
    write_gguf(tmp_path / "small.gguf", "bitnet", METADATA, tensors)
    with open_gguf(tmp_path / "small.gguf") as opened:
        yield opened


def test_what_is_in_the_file(file: GGUFFile) -> None:
    assert (file.version, file.alignment, file.size, file.trailing) == (3, 32, file.path.stat().st_size, 0)
    assert list(file.metadata) == ["general.architecture", *METADATA]
    assert [entry.type.name for entry in file.typed_metadata.values()][:8] == [
        *("STRING", "UINT32", "INT32", "UINT64", "FLOAT32", "FLOAT32", "BOOL", "STRING")
    ]
    assert file.metadata["tokens"] == METADATA["tokens"]
    assert file.metadata["ids"] == array("i", [3, 1, 2])
    assert file.typed_metadata["heads"] == Typed(array("B", [4, 5]), ValueType.ARRAY, ValueType.UINT8)
    assert [(i.name, i.type, i.shape, i.nbytes) for i in file.tensors.values()] == [
        ("matrix", TensorType.F32, (2, 3), 24),
        ("halves", TensorType.F16, (4,), 8),
    ]


def test_big_endian_machine(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(UnsupportedError, match="this machine is big-endian"):
        open_gguf(file.path)


def test_values_are_not_held_twice(file: GGUFFile) -> None:
    assert all(file.metadata[key] is entry.value for key, entry in file.typed_metadata.items())
    assert file.require_strings("tokens") is file.metadata["tokens"]


def test_token_bytes_survive(file: GGUFFile) -> None:
    assert file.require_strings("tokens")[3].encode("utf-8", "surrogateescape") == b"\xf0\x9f\x98"


def test_raw_is_a_read_only_view_of_the_file(file: GGUFFile) -> None:
    raw = file.raw("matrix")
    assert raw.dtype == np.uint8
    assert raw.shape == (24,)
    assert raw.view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert not raw.flags.writeable
    assert not raw.flags.owndata
    first, second = file.tensors["matrix"], file.tensors["halves"]
    assert first.offset % 32 == 0
    assert second.offset == first.offset + 32
    assert file.raw("halves").ctypes.data - raw.ctypes.data == 32  # both in one map


def test_the_whole_file_as_one_array(file: GGUFFile) -> None:
    whole, info = file.file_bytes(), file.tensors["halves"]
    assert whole.tobytes() == file.path.read_bytes()
    assert not whole.flags.writeable
    assert whole[info.offset :].ctypes.data == file.raw("halves").ctypes.data
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.file_bytes()


def test_raw_of_a_missing_tensor(file: GGUFFile) -> None:
    with pytest.raises(BadFileError, match=r"small\.gguf: tensor output\.weight: is missing"):
        file.raw("output.weight")


def test_arrays_outlive_the_file(file: GGUFFile) -> None:
    with file:
        raw = file.raw("matrix")
    assert raw.view("<f4").sum() == 15
    with pytest.raises(ValueError, match="is closed"):
        file.raw("matrix")
    file.close()  # a second time does nothing


def test_getters(file: GGUFFile) -> None:
    assert file.require_int("int", 1, 30) == 30
    assert file.require_int("wide", 0, 2**40) == 2**40
    assert file.require_float("float", 0.5, 0.5) == 0.5
    assert file.require_bool("flag") is True
    assert file.require_str("name") == "bitnet"
    assert file.require_str("name", {"bitnet", "llama"}) == "bitnet"
    assert file.require_strings("tokens", 4)[1] == "ü"
    assert list(file.require_ints("ids", 1, 3, 3)) == [3, 1, 2]
    assert list(file.require_floats("scores", -2, 2, 2)) == [0.5, -1.5]


def test_optional_getters(file: GGUFFile) -> None:
    assert file.optional_int("int", 0, 99, None) == 30
    assert file.optional_int("absent", 0, 99, 7) == 7
    assert file.optional_float("float", 0, 1, None) == 0.5
    assert file.optional_float("absent", 0, 1, None) is None
    assert file.optional_bool("flag", False) is True
    assert file.optional_bool("absent", False) is False
    assert file.optional_str("name", "x") == "bitnet"
    assert file.optional_str("absent", "x") == "x"
    assert file.optional_strings("tokens", None, 4) == METADATA["tokens"]
    assert file.optional_strings("absent", None) is None
    assert file.optional_ints("ids", 0, 9, None) == array("i", [3, 1, 2])
    assert file.optional_ints("absent", 0, 9, ()) == ()
    assert file.optional_floats("scores", -9, 9, None) == array("f", [0.5, -1.5])
    assert file.optional_floats("absent", -9, 9, None) is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f: f.require_int("int", 1, 29), "int: is 30, expected an integer from 1 to 29"),
        (lambda f: f.require_int("int", 31, 99), "int: is 30, expected an integer from 31 to 99"),
        (lambda f: f.require_int("float", 0, 9), "float: is FLOAT32, expected an integer from 0 to 9"),
        (lambda f: f.require_int("flag", 0, 9), "flag: is BOOL, expected an integer from 0 to 9"),
        (lambda f: f.require_int("ids", 0, 9), "ids: is ARRAY of INT32, expected an integer from 0 to 9"),
        (lambda f: f.require_int("absent", 0, 9), "absent: is missing, expected an integer from 0 to 9"),
        (lambda f: f.optional_int("int", 0, 9, None), "int: is 30, expected an integer from 0 to 9"),
        (lambda f: f.require_float("float", 0.6, 1.0), "float: is 0.5, expected a float from 0.6 to 1.0"),
        (lambda f: f.require_float("nan", -9.0, 9.0), "nan: is nan, expected a float from -9.0 to 9.0"),
        (lambda f: f.require_float("int", 0.0, 99.0), "int: is UINT32, expected a float from 0.0 to 99.0"),
        (lambda f: f.require_bool("int"), "int: is UINT32, expected a boolean"),
        (lambda f: f.require_str("int"), "int: is UINT32, expected a string"),
        (lambda f: f.require_str("name", {"llama", "gemma3"}), "name: is 'bitnet', expected one of gemma3, llama"),
        (lambda f: f.require_strings("name"), "name: is STRING, expected an array of strings"),
        (lambda f: f.require_strings("ids"), "ids: is ARRAY of INT32, expected an array of strings"),
        (lambda f: f.require_strings("tokens", 5), "tokens: has 4 items, expected 5"),
        (lambda f: f.require_ints("int", 0, 99), "int: is UINT32, expected an array of integers from 0 to 99"),
        (lambda f: f.require_ints("ids", 0, 2), "ids[0]: is 3, expected integers from 0 to 2"),
        (lambda f: f.require_ints("ids", 2, 3), "ids[1]: is 1, expected integers from 2 to 3"),
        (lambda f: f.require_ints("ids", 0, 9, 2), "ids: has 3 items, expected 2"),
        (lambda f: f.require_ints("scores", 0, 9), "scores: is ARRAY of FLOAT32, expected an array of integers from 0 to 9"),
        (lambda f: f.require_floats("poisoned", -9.0, 9.0), "poisoned[1]: is nan, expected floats from -9.0 to 9.0"),
        (lambda f: f.require_floats("scores", 0.0, 9.0), "scores[1]: is -1.5, expected floats from 0.0 to 9.0"),
        (lambda f: f.require_floats("scores", -9.0, 9.0, 3), "scores: has 2 items, expected 3"),
    ],
)
def test_getters_say_what_is_wrong(file: GGUFFile, call: Any, text: str) -> None:
    with pytest.raises(BadFileError) as caught:
        call(file)
    assert str(caught.value) == f"{file.path}: {text}"


def test_long_strings_are_cut_in_messages(tmp_path: Path) -> None:
    write_gguf(tmp_path / "long.gguf", "x" * 10_000, {}, [])
    with open_gguf(tmp_path / "long.gguf") as file, pytest.raises(BadFileError) as caught:
        file.require_str("general.architecture", {"llama"})
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_typecodes_have_the_width_of_their_types() -> None:
    widths = {kind.name: array(code).itemsize * 8 for kind, code in TYPECODES.items() if kind is not ValueType.BOOL}
    assert {name: int(name.lstrip("UINTFLOA")) for name in widths} == widths


def fields_of(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def test_agrees_with_gguf(tmp_path: Path) -> None:
    """A file that the gguf package wrote by its own means, read by both."""
    path = tmp_path / "upstream.gguf"
    random = np.random.default_rng(1)
    weights = random.standard_normal((6, 512)).astype(np.float32)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(30)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["a", "b", "ü€😀"])
    writer.add_token_scores([0.5, -1.25, 3.0])
    writer.add_add_bos_token(False)
    writer.add_custom_alignment(64)
    writer.add_tensor("norm", weights[0])
    writer.add_tensor("half", weights[:3, :5].astype(np.float16))
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.TQ1_0):
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("cube", random.standard_normal((2, 3, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    theirs = gguf.GGUFReader(path)
    with open_gguf(path) as ours:
        mine = {key: list(v) if isinstance(v, array) else v for key, v in ours.metadata.items()}
        assert mine == fields_of(theirs)
        assert ours.alignment == 64
        assert ours.trailing == 0
        assert list(ours.tensors) == [t.name for t in theirs.tensors] == ["norm", "half", "Q8_0", "TQ2_0", "TQ1_0", "cube"]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.type.name == tensor.tensor_type.name
            assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert np.array_equal(ours.raw(tensor.name), tensor.data.reshape(-1).view(np.uint8))


COST = """
import json, sys, time
begin = time.perf_counter()
from bitnet_cli.gguf_file.reader import open_gguf
file = open_gguf(sys.argv[1])
counts = [len(file.require_strings("tokenizer.ggml.tokens")), len(file.require_strings("tokenizer.ggml.merges")), len(file.tensors)]
seconds = time.perf_counter() - begin
# VmHWM is this process's own; ru_maxrss on Linux begins with that of the process it was forked from.
(peak,) = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([seconds, peak, counts, "numpy" in sys.modules]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_cost_of_a_vocabulary_of_128_thousand_tokens(shared_vocab: Path) -> None:
    """Measured where the file is at hand: 0.13 s, 59 MB for the whole process, of which 8 MB is the mapped file."""
    command = [sys.executable, "-c", COST, str(shared_vocab / "ggml-vocab-llama-bpe.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak, counts, numpy_loaded = json.loads(done.stdout)
    assert counts == [128256, 280147, 0]
    assert not numpy_loaded
    assert seconds < 1.5
    assert peak < 150e6


def test_spm_vocabulary(shared_vocab: Path) -> None:
    with open_gguf(shared_vocab / "ggml-vocab-llama-spm.gguf") as file:
        tokens = file.require_strings("tokenizer.ggml.tokens", 32000)
        assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
        assert len(file.require_floats("tokenizer.ggml.scores", -1e9, 0, 32000)) == 32000
        assert set(file.require_ints("tokenizer.ggml.token_type", 1, 6, 32000)) == {1, 2, 3, 6}
        assert file.tensors == {}
