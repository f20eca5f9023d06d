"""What a user calls a model -> its file, without a network. The user's folder is user/ in each test's own working folder."""

import sys
from pathlib import Path

import pytest

from bitnet_cli.embedded import DEFAULT_MODEL, EMBEDDED, EMBEDDED_MODEL
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.model.names import NotHereError, available, find, output_folder, user_folder

NAME = "microsoft/bitnet-b1.58-2B-4T-gguf"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and in it an empty cache of the hub and no model folder yet."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNET_MODELS", str(tmp_path / "user"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def file(path: str, size: int = 3) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(b"x" * size)
    return Path(path)


def downloaded(name: str, *files: str, commit: str = "abc") -> Path:
    repository = Path("hub") / f"models--{name.replace('/', '--')}"
    for one in files:
        file(str(repository / "snapshots" / commit / one))
    file(str(repository / "refs" / "main")).write_text(commit)
    return repository / "snapshots" / commit


def test_the_embedded_models() -> None:
    assert find(None) == EMBEDDED_MODEL == find(DEFAULT_MODEL)
    assert all(find(name).is_file() for name in EMBEDDED)


def test_files_and_folders() -> None:
    model = file("some/folder/model.gguf")
    assert find(model) == find(str(model)) == model == find("some/folder")
    assert find("missing.gguf") == Path("missing.gguf")  # refused when it is opened
    assert find(file("without-a-suffix")) == Path("without-a-suffix")
    file("some/folder/other.gguf")
    with pytest.raises(UsageError, match=r"2 GGUF models; name one of them, such as .*model\.gguf"):
        find("some/folder")
    Path("empty").mkdir()
    with pytest.raises(BadFileError, match=r"is a folder without a GGUF file$"):
        find("./empty")
    file("checkpoint/config.json")
    with pytest.raises(BadFileError, match="`bitnet convert checkpoint`"):
        find("checkpoint/")


def test_a_path_is_said_with_a_slash_or_the_ending() -> None:
    """What lies in a folder that somebody else made takes no name over."""
    Path(DEFAULT_MODEL).mkdir()
    file(f"{DEFAULT_MODEL}/x.gguf")
    file("mine/x.gguf")
    file("user/mine.gguf")
    assert find(DEFAULT_MODEL) == EMBEDDED_MODEL and find(f"./{DEFAULT_MODEL}") == Path(DEFAULT_MODEL, "x.gguf")
    assert find("mine") == Path.cwd() / "user" / "mine.gguf" and find("mine/") == Path("mine/x.gguf")
    file("plain")
    for name, what in (("plain", "file"), ("models", "folder")):
        Path("models").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=f"{name}: is a {what} here and no name of a model; as a path it is ./{name}"):
            find(name)


def test_names_in_the_model_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    file("models/mine.gguf")
    assert find("mine") == Path("models/mine.gguf")
    assert find("mine.gguf") == Path("mine.gguf")
    with pytest.raises(UsageError, match=r"no other\.gguf in .*user; see `bitnet list`"):
        find("other")
    file("user/mine.gguf")  # the user's wins
    assert find("mine") == user_folder() / "mine.gguf"
    assert output_folder() == Path("models")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert find("mine") == user_folder() / "mine.gguf" and output_folder() == user_folder()
    monkeypatch.delenv("BITNET_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(Path.cwd()))
    if sys.platform == "linux":
        assert user_folder() == Path.cwd() / "bitnet" / "models"


def test_what_was_pulled() -> None:
    """owner/name/ in the user's folder: by the repository's id, with a tag where it has several files, and by its name alone."""
    one, packed, other = file("user/a/one/x.gguf"), file("user/a/two/ggml-i2_s.gguf"), file("user/a/two/ggml-TQ2_0.gguf")
    assert {find(name) for name in ("a/one", "one", "a/one:x.gguf", "https://huggingface.co/a/one")} == {Path.cwd() / one}
    assert find("a/two") == find("two") == find("a/two:i2_s") == Path.cwd() / packed
    assert find("a/two:tq2_0") == find("https://hf.co/a/two/blob/main/ggml-TQ2_0.gguf") == Path.cwd() / other
    for name in ("a/two:q4_0", "a/two:no.gguf"):
        with pytest.raises(NotHereError, match=f"{name}: is not on this computer"):
            find(name)
    file("user/b/one/y.gguf")
    with pytest.raises(UsageError, match="no such model"):
        find("one")  # of two owners
    listed = {m.name: m.source for m in available() if m.source != "embedded"}
    assert listed == dict.fromkeys(("a/one", "a/two", "a/two:ggml-TQ2_0.gguf", "b/one"), "user")
    assert all(find(m.name) == m.path for m in available())


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a/b",
        "https://huggingface.co/a",
        "https://huggingface.co/a/b/blob/v2/x.gguf",
        "https://hf.co/a/b/blob/main/x.bin",
    ],
)
def test_addresses_that_are_none_of_the_hub(address: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        find(address)


def test_repositories_of_the_hub() -> None:
    with pytest.raises(NotHereError, match=f"{NAME}: is not on this computer; `bitnet pull {NAME}` gets it") as caught:
        find(NAME)
    assert not caught.value.downloaded
    folder = downloaded(NAME, "ggml-model-i2_s.gguf", "other.gguf", "config.json")
    assert find(NAME) == Path.cwd() / folder / "ggml-model-i2_s.gguf"
    downloaded("owner/floats", "model.safetensors")
    with pytest.raises(NotHereError, match="downloaded but not converted; `bitnet pull owner/floats` converts it") as caught:
        find("owner/floats")
    assert caught.value.downloaded
    file("models/floats.gguf")
    assert find("owner/floats") == Path("models/floats.gguf")


def test_a_broken_cache_is_an_empty_one() -> None:
    downloaded("owner/gone", "model.gguf")
    file("hub/models--owner--gone/refs/main").write_text("another")
    file("hub/models--owner--odd/refs/main").write_bytes(b"\xff\xfe")
    for name in ("owner/gone", "owner/odd"):
        with pytest.raises(NotHereError):
            find(name)
    assert {model.source for model in available()} == {"embedded"}


def test_the_list() -> None:
    file("models/b.gguf", 5)
    file("models/a.gguf", 7)
    file("models/notes.txt")
    Path("models/folder.gguf").mkdir()
    folder = downloaded(NAME, "ggml-model-i2_s.gguf")
    downloaded("owner/floats", "model.safetensors")
    models = available()
    assert [m.name for m in models] == [*EMBEDDED, "a", "b", NAME]
    assert [(m.source, m.size) for m in models[len(EMBEDDED) :]] == [("models", 7), ("models", 5), ("hub", 3)]
    assert models[-1].path == Path.cwd() / folder / "ggml-model-i2_s.gguf"
    assert all(find(m.name) == m.path for m in models)


def test_split_models_are_one_each() -> None:
    for number, size in ((1, 3), (2, 5), (3, 7)):
        file(f"models/big-0000{number}-of-00003.gguf", size)
        file(f"some/folder/big-0000{number}-of-00003.gguf")
    first = Path("models/big-00001-of-00003.gguf")
    assert find("big") == first and find("owner/big") == first
    assert find("some/folder") == Path("some/folder/big-00001-of-00003.gguf")
    assert find("models/big-00002-of-00003.gguf") == Path("models/big-00002-of-00003.gguf")  # any part stands for the model
    folder = downloaded(NAME, *(f"ggml-model-i2_s-0000{number}-of-00002.gguf" for number in (1, 2)), "other.gguf")
    downloaded("owner/one", "one-00001-of-00002.gguf", "one-00002-of-00002.gguf")
    ready = Path.cwd() / folder / "ggml-model-i2_s-00001-of-00002.gguf"
    assert find(NAME) == ready and find("owner/one").name == "one-00001-of-00002.gguf"
    listed = {m.name: (m.source, m.size) for m in available() if m.source != "embedded"}
    assert listed == {"big": ("models", 15), NAME: ("hub", 6), "owner/one": ("hub", 6)}
    file("models/big.gguf", 1)  # a whole one wins
    assert find("big") == Path("models/big.gguf")
    first.unlink()
    Path("models/big.gguf").unlink()
    assert find("big") == Path("models/big-00002-of-00003.gguf")  # opening it says which part is missing
