"""Models in several files: joined, mapped as one, and every part that is missing or of another model named."""

import mmap
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file import split as splits
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo, open_gguf
from bitnet_cli.gguf_file.split_names import first_of_each, model_name, part_name, parts_beside
from bitnet_cli.machine.memory import is_mapped_file
from bitnet_cli.tensors.contents import check, tensor_rows

from ..hostile.forge import BOOL, FLOAT32, STRING, UINT16, UINT32, entry, forge, scalar, string
from .splitting import forged_part, part, split


@pytest.fixture(params=["mapped", "copied"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Also as on Windows, where parts are read into memory."""
    if request.param == "copied":
        monkeypatch.setattr(splits, "MAPS_TOGETHER", False)
    elif not splits.MAPS_TOGETHER:
        pytest.skip("Windows maps nothing to a chosen place")
    return str(request.param)


def row_by_descriptor(file: GGUFFile, info: TensorInfo, mapped: bool) -> bytes | None:
    """The first bytes of a tensor of the first part; None for later ones, and where all is in memory."""
    handle = file.descriptor(info)
    assert (handle is None) == (not mapped or info.offset >= file.files[1].start)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as raw:
        raw.seek(info.offset)
        return raw.read(4)


@pytest.mark.parametrize("cuts", [[0], [5], [1, 2], [3, 20, 21, 30], list(range(1, 40))])
def test_parts_are_one_model(cuts: list[int], both_ways: str, tmp_path: Path) -> None:
    """Whichever is named. A first part without tensors (--no-tensor-first-split) too."""
    paths = split(EMBEDDED_MODEL, tmp_path, cuts)
    for path in (paths[0], paths[-1], paths[len(paths) // 2]):
        with open_gguf(EMBEDDED_MODEL) as whole, open_gguf(path) as file:
            assert file.path == path and [place.path for place in file.files] == paths
            assert file.size == sum(path.stat().st_size for path in paths) and file.trailing == 0
            assert file.typed_metadata == whole.typed_metadata  # without the keys of the split
            assert list(file.tensors) == list(whole.tensors)
            for name, info in whole.tensors.items():
                assert (file.tensors[name].type, file.tensors[name].shape) == (info.type, info.shape)
                assert np.array_equal(file.raw(name), whole.raw(name))
                assert file.raw(name).ctypes.data % 32 == 0
            data = file.file_bytes()
            assert not data.flags.writeable and is_mapped_file(data) == (both_ways == "mapped")
            for info in file.tensors.values():
                assert row_by_descriptor(file, info, both_ways == "mapped") in (None, file.raw(info.name)[:4].tobytes())


def test_the_map_outlives_the_file_and_gives_pages_back(tmp_path: Path) -> None:
    path = split(EMBEDDED_MODEL, tmp_path, [4, 9])[1]
    with open_gguf(EMBEDDED_MODEL) as whole, open_gguf(path) as file:
        name = max(file.tensors, key=lambda name: file.tensors[name].nbytes)
        raw, expected = file.raw(name), whole.raw(name).copy()
        file.forget(name)
        assert np.array_equal(raw, expected)  # they came again from the file
    assert np.array_equal(raw, expected)


def test_no_files_are_left_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("asks /proc what is open")
    paths = split(EMBEDDED_MODEL, tmp_path, [4, 9])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_gguf(paths[0]):
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1  # of the first part, for rows of a head in it
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(BadFileError):
        open_gguf(paths[0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_written_by_the_gguf_package(tmp_path: Path) -> None:
    """Its writer splits by itself, and is not ours."""
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama", split_max_tensors=2)
    arrays = {f"t{i}": np.random.default_rng(i).normal(size=(3, 8 + i)).astype(np.float32) for i in range(5)}
    writer.add_block_count(3)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(part(tmp_path, "theirs", 1, 3)) as file:
        assert file.metadata["llama.block_count"] == 3 and file.metadata["general.architecture"] == "llama"
        assert all(np.array_equal(file.raw(name).view("<f4").reshape(array.shape), array) for name, array in arrays.items())


def test_offsets_are_told_within_the_part(tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4])
    with open_gguf(paths[0]) as file:
        name = next(row.name for row in tensor_rows(file) if row.name.endswith("norm.weight") and row.offset > file.files[1].start)
        at = file.tensors[name].offset - file.files[1].start
    raw = bytearray(paths[1].read_bytes())
    raw[at : at + 4] = np.array([np.nan], "<f4").tobytes()
    paths[1].write_bytes(raw)
    with open_gguf(paths[0]) as file:
        assert check(file).problems == [f"tensor {name}: 1 numbers are not finite (first at byte {at})"]


@pytest.mark.parametrize("says", [0, 1])
def test_whole_files_may_speak_of_parts(says: int, tmp_path: Path) -> None:
    """What llama-gguf-split --merge writes says split.count 0."""
    path = tmp_path / "merged.gguf"
    path.write_bytes(forged_part(1, says, 0, {}))
    with open_gguf(path) as file:
        assert file.metadata["split.count"] == says and len(file.files) == 1


def test_a_link_of_another_name(tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4])
    (tmp_path / "link.gguf").symlink_to(paths[0])
    with open_gguf(tmp_path / "link.gguf") as file:
        assert len(file.files) == 2


def refused(path: Path, bad: Path, text: str) -> None:
    """Opening `path` names the file `bad`."""
    with pytest.raises(BadFileError) as caught:
        open_gguf(path)
    assert str(caught.value).startswith(f"{bad}: ") and text in str(caught.value), str(caught.value)
    with pytest.raises(BadFileError):
        open_gguf(path, unread=True)


def test_missing_parts(tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4, 9])
    for gone in (1, 2, 0):
        there = paths[gone - 1]
        kept = paths[gone].read_bytes()
        paths[gone].unlink()
        refused(there, paths[gone], f"file: is missing: part {gone + 1} of 3 of the model that {there.name} is a part of")
        paths[gone].write_bytes(kept)
    paths[1].unlink()
    paths[1].mkdir()
    refused(paths[0], paths[1], "is a folder")


def test_renamed_and_swapped_parts(tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4, 9])
    other = paths[0].rename(tmp_path / "mine.gguf")
    refused(other, other, "split.no and split.count: this is part 1 of 3, but the file is not called NAME-00001-of-00003.gguf")
    renumbered = other.rename(part(tmp_path, "model", 1, 4))
    refused(renumbered, renumbered, "this is part 1 of 3, but the file is not called")
    renumbered.rename(paths[0])
    second, third = paths[1].read_bytes(), paths[2].read_bytes()
    paths[1].write_bytes(third)
    paths[2].write_bytes(second)
    refused(paths[0], paths[1], "split.no and split.count: this is part 3 of 3, expected part 2 of 3 after its name")
    paths[2].write_bytes(third)
    refused(paths[0], paths[1], "this is part 3 of 3, expected part 2 of 3")  # a copy
    refused(paths[1], paths[1], "this is part 3 of 3, but the file is not called")


def test_parts_of_other_models(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    paths, others = split(EMBEDDED_MODEL, tmp_path, [4, 9]), split(EMBEDDED_MODEL, folder, [4])
    kept = paths[1].read_bytes()
    paths[1].write_bytes(others[1].read_bytes())
    refused(paths[0], paths[1], "this is part 2 of 2, expected part 2 of 3")
    paths[1].write_bytes(EMBEDDED_MODEL.read_bytes())
    refused(paths[0], paths[1], "is no part of a split model, expected part 2 of 3")
    paths[1].write_bytes(b"GGUF")
    refused(paths[0], paths[1], "version")
    paths[1].write_bytes(kept[:-1000])
    refused(paths[0], paths[1], "ends at byte")
    split(EMBEDDED_MODEL, folder, [5, 9])
    paths[1].write_bytes(part(folder, "model", 2, 3).read_bytes())
    refused(paths[0], paths[0], "split.tensors.count: is 68, but the 3 parts have 67 tensors")
    split(EMBEDDED_MODEL, folder, [3, 9])
    paths[1].write_bytes(part(folder, "model", 2, 3).read_bytes())
    with open_gguf(EMBEDDED_MODEL) as file:
        name = list(file.tensors)[3]
    refused(paths[0], paths[1], f"tensor {name}: is in {paths[0].name} too")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("general.architecture", entry("general.architecture", STRING, string("qwen3")), "general.architecture: is not as in"),
        ("general.name", entry("general.name", STRING, string("another")), "general.name: is not as in"),
        ("new.key", entry("new.key", UINT32, scalar(UINT32, 1)), "new.key: is not as in"),
        ("split.tensors.count", entry("split.tensors.count", UINT32, scalar(UINT32, 9)), "split.tensors.count: is not as in"),
        ("split.no", None, "split.no and split.count: expected a part's number"),
        ("split.count", None, "is no part of a split model"),
        ("split.no", entry("split.no", BOOL, b"\1"), "split.no and split.count: expected"),
        ("split.count", entry("split.count", FLOAT32, scalar(FLOAT32, 2)), "split.no and split.count: expected"),
    ],
)
def test_metadata_of_later_parts(key: str, value: bytes | None, text: str, tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4], keys={2: {key: value}})
    refused(paths[0], paths[1], text)


def test_metadata_that_says_the_same_again(tmp_path: Path) -> None:
    with open_gguf(EMBEDDED_MODEL) as file:
        same = entry("general.architecture", STRING, string(str(file.metadata["general.architecture"])))
    paths = split(EMBEDDED_MODEL, tmp_path, [4], keys={2: {"general.architecture": same}})
    open_gguf(paths[0]).close()


def test_numbers_of_tensors(tmp_path: Path) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4], total=69)
    refused(paths[0], paths[0], "split.tensors.count: is 69, but the 2 parts have 68 tensors")
    for lie in ({"split.tensors.count": None}, {"split.tensors.count": entry("split.tensors.count", STRING, string("two"))}):
        for number in (1, 2):
            part(tmp_path, "lie", number, 2).write_bytes(forged_part(number, 2, 0, {}, lie))
        first = part(tmp_path, "lie", 1, 2)
        refused(first, first, "split.tensors.count: expected the number of tensors in all parts")


def test_very_many_parts(tmp_path: Path) -> None:
    """None of them is looked for."""
    path = part(tmp_path, "many", 1, 65535)
    path.write_bytes(forged_part(1, 65535, 0, {}))
    refused(path, path, "this is part 1 of 65535, at most 1000 are read")
    path = part(tmp_path, "wrap", 1, 3)
    negative = entry("split.count", 5, scalar(5, -3))
    path.write_bytes(forge([negative, entry("split.no", UINT16, scalar(UINT16, 0))]))
    refused(path, path, "split.no and split.count: expected")


def test_a_part_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = split(EMBEDDED_MODEL, tmp_path, [4])

    class Failing:
        class mmap:  # noqa: N801
            restype: Any
            argtypes: Any

            def __new__(cls, *_: Any) -> Any:
                return 2**64 - 1

    monkeypatch.setattr(splits.ctypes, "CDLL", lambda *_, **__: Failing)
    with pytest.raises(BadFileError, match="cannot be mapped"):
        open_gguf(paths[0])


def test_places_are_whole_pages(tmp_path: Path) -> None:
    with open_gguf(split(EMBEDDED_MODEL, tmp_path, [4, 9])[0]) as file:
        assert all(place.start % mmap.ALLOCATIONGRANULARITY == 0 for place in file.files)
        data = file.file_bytes()
        for before, after in zip(file.files, file.files[1:], strict=False):
            assert not data[before.start + before.size : after.start].any()
            assert bytes(data[after.start : after.start + 4]) == b"GGUF"


def test_names() -> None:
    found = part_name("a-b-00002-of-00010.GGUF")
    assert found is not None and found[:3] == ("a-b", 2, 10) and found.of(3) == "a-b-00003-of-00010.GGUF"
    wrong = ("00000-of-00002", "00003-of-00002", "00001-of-01001", "1-of-2", "")
    for other in ("a.gguf", "-00001-of-00002.gguf", *(f"a-{number}.gguf" for number in wrong)):
        assert part_name(other) is None
    paths = [Path(p) for p in ("m/a-00002-of-00002.gguf", "m/b.gguf", "m/a-00001-of-00002.gguf", "n/a-00001-of-00002.gguf")]
    assert first_of_each(paths) == [paths[2], paths[1], paths[3]]
    assert parts_beside(paths[0]) == [paths[2], paths[0]] and parts_beside(paths[1]) == [paths[1]]
    assert [model_name(path) for path in paths] == ["a", "b", "a", "a"]
