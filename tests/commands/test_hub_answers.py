"""What a hostile or broken hub may answer: nothing leads out of the cache, what is damaged is not used, what is pinned is compared."""

import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .hub_server import COMMIT, Handler, Hub, Repo, serve

NAME = "tester/tiny-bitnet"
WRONG = "1" * 64


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def model_files(folders: dict[str, Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folders["C"].iterdir())}


@pytest.fixture(scope="session")
def certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@pytest.fixture
def convert(hub: Hub, certificates: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """convert(*arguments) -> (exit code, message): the command in this process, in tmp_path, with a cache of its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    from bitnet_cli.commands.convert import HubOptions
    from bitnet_cli.commands.convert import convert as command
    from bitnet_cli.errors import BitnetError

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # What the library read from the environment when it was imported.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    monkeypatch.setattr("ssl.create_default_context", lambda *_, **__: certificates)  # a tenth of a second for each client
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    known = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in known.items():
        monkeypatch.setattr(constants, name, value)

    def run(source: str | Path = NAME, **options: Any) -> tuple[int, str]:
        try:
            command(source, Path("out.gguf"), hub=HubOptions(**options), force=True, quiet=True)
        except BitnetError as error:
            return error.exit_code, str(error)
        finally:
            close_session()
        return 0, ""

    return run


def outside(tmp_path: Path) -> list[str]:
    """Files that a download left elsewhere than in the cache."""
    folder = tmp_path / "hf" / "hub" / f"models--{NAME.replace('/', '--')}"
    found = [path for path in tmp_path.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return [str(path) for path in found if not path.is_relative_to(folder)]


HEADERS = ["ETag", "X-Linked-ETag", "X-Repo-Commit", "X-Xet-Hash"]
VALUES = [
    '"{out}/file"', "{out}/file", '"../../../../file"', 'W/"../file"', '"a/../../../../file"', '".."', '"."', "a\\..\\b", '"C:file"', '""',
    "..", "a/b",
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("value", VALUES)
def test_headers_that_lead_out_of_the_cache(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], tmp_path: Path, header: str, value: str
) -> None:
    """huggingface_hub makes paths of them: blobs/ETAG, snapshots/COMMIT, refs/main."""
    hub.repos[NAME] = Repo(model_files, headers={header: value.format(out=tmp_path / "out")})
    code, message = convert()
    assert code == 3 and message.startswith(f"127.0.0.1: header {header}: is "), message
    assert outside(tmp_path) == [] and not (tmp_path / "out").exists()
    assert hub.fetched() == []


@pytest.mark.parametrize("status", [404, 401, 416, 500])
def test_such_headers_of_a_refusal(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], tmp_path: Path, status: int
) -> None:
    """That a file does not exist is remembered under its commit, too."""
    hub.repos[NAME] = Repo(model_files, refuse_files=(status, "EntryNotFound"), headers={"X-Repo-Commit": str(tmp_path / "out")})
    code, message = convert()
    assert code == 3 and "X-Repo-Commit" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("commit", ["../../../x", "/x", "", 7, None, [], "A" * 40, "0" * 39, "main"])
def test_a_listing_whose_commit_is_none(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], commit: object) -> None:
    hub.repos[NAME] = Repo(model_files, commit=commit)
    code, message = convert()
    assert code == 3 and "commit" in message and hub.fetched() == []


def test_a_pinned_commit_is_the_one_that_comes(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes]) -> None:
    other = "f" * 40
    hub.repos[NAME] = Repo(model_files, revisions=("main", COMMIT, other))
    assert convert(revision=COMMIT) == (0, "")
    code, message = convert(revision=other)
    assert code == 3 and COMMIT in message and other in message


@pytest.mark.parametrize("revision", ["..", "../x", "a/../../x", "/x", "C:\\x", "a\\..\\b", "", "a\x1b"])
def test_a_revision_that_is_a_way_out(convert: Callable[..., Any], hub: Hub, revision: str) -> None:
    code, message = convert(revision=revision)
    assert code == 2 and "--revision" in message and hub.requests == []


@pytest.mark.parametrize("name", ["/etc/x.safetensors", "../x.safetensors", "a\\x.safetensors", "", "a/../b.json"])
def test_names_that_are_no_paths_in_a_repository(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], name: str) -> None:
    hub.repos[NAME] = Repo(model_files | {name: b""})
    code, message = convert()
    assert code == 3 and "list of files" in message and hub.fetched() == []


def test_what_is_announced_is_compared(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], tmp_path: Path) -> None:
    """A wrong file is not used, and is not in the cache when the command is run again."""
    right = hashlib.sha256(model_files["model.safetensors"]).hexdigest()
    hub.repos[NAME] = Repo(model_files, lfs={"model.safetensors": WRONG})
    code, message = convert()
    assert code == 3 and "SHA-256" in message and right in message and WRONG in message
    assert not (tmp_path / "here" / "out.gguf").exists() and list((tmp_path / "hf").rglob("model.safetensors")) == []
    hub.repos[NAME] = Repo(model_files, lfs={"model.safetensors": right})
    assert convert() == (0, "")
    (blob,) = (tmp_path / "hf").rglob(f"blobs/{right}")
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")  # in the cache, after it was fetched
    code, message = convert()
    assert code == 3 and "SHA-256" in message
    assert convert() == (0, "")


def test_a_digest_in_a_header_is_compared(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes]) -> None:
    hub.repos[NAME] = Repo(model_files, headers={"ETag": f'"{WRONG}"'})
    code, message = convert()
    assert code == 3 and "config.json: SHA-256" in message and WRONG in message
    hub.repos[NAME] = Repo(model_files, headers={"ETag": f'"{WRONG[:40]}"'})  # of another kind: nothing is announced


@pytest.mark.parametrize("digest", [7, "x" * 64, "1" * 63, [], {"a": 1}])
def test_a_listing_whose_digest_is_none(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], digest: object) -> None:
    hub.repos[NAME] = Repo(model_files, lfs={"model.safetensors": digest})
    code, message = convert()
    assert code == 3 and "SHA-256" in message


def test_pins(convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], folders: dict[str, Path], capsys: Any) -> None:
    """Whoever answers, and whatever it announces; in a folder as well."""
    hub.repos[NAME] = Repo(model_files)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in model_files.items()}
    for source in (NAME, folders["C"]):
        assert convert(source, sha256=[digests["model.safetensors"].upper()]) == (0, "")
        assert "config.json, tokenizer.json" in capsys.readouterr().err
        assert convert(source, sha256=[f"{name}={digest}" for name, digest in digests.items()]) == (0, "")
        assert capsys.readouterr().err == ""
        for wrong in (WRONG, f"model.safetensors={WRONG}", f"config.json={WRONG}"):
            code, message = convert(source, sha256=[wrong])
            assert code == 3 and "SHA-256" in message and "--sha256 says" in message
        code, message = convert(source, sha256=[f"other.json={WRONG}"])
        assert code == 2 and "other.json" in message
    for text in ("", "1", WRONG + "1", "=" + WRONG, "config.json=", "sha256:" + WRONG):
        code, message = convert(sha256=[text])
        assert code == 2 and "--sha256" in message
    assert convert(sha256=[WRONG, "2" * 64])[0] == 2


def answer_all(monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], body: bytes, where: str) -> None:
    """Every request whose path holds `where` gets this answer."""
    usual = Handler._answer

    def answer(self: Handler) -> None:
        if where in self.path:
            self._send(body, headers, status)
        else:
            usual(self)

    monkeypatch.setattr(Handler, "_answer", answer)


STRANGE = {
    "html": b"<html>hello</html>", "a list": b"[]", "a number": b"7", "a string": b'"x"', "null": b"null", "empty": b"", "nothing": b"{}",
    "cut": b'{"id": "a', "not text": b"\xff\xfe\x00", "deep": b"[" * 100_000 + b"]" * 100_000, "deep objects": b'{"a":' * 100_000,
    "files are a number": json.dumps({"id": NAME, "sha": COMMIT, "siblings": 7}).encode(),
    "a file is a number": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [7]}).encode(),
    "a name is a number": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": 7}]}).encode(),
    "no name": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{}]}).encode(),
    "a size is text": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": "1"}]}).encode(),
    "a size of 2^60": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 1 << 60}]}).encode(),
    "a negative size": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": -1}]}).encode(),
    "lfs is a number": json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": "config.json", "lfs": 7}]}).encode(),
    "too large": b" " * (33 << 20),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_listings_that_are_none(convert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    answer_all(monkeypatch, 200, {}, STRANGE[what], "/api/")
    code, message = convert()
    assert code in (1, 2, 3) and message and "\n" not in message
    assert "127.0.0.1" in message or NAME in message


ANSWERS: list[tuple[int, dict[str, str]]] = [
    *((status, {}) for status in (200, 204, 206, 300, 302, 304, 400, 404, 409, 416, 429, 451, 500, 503)),
    *((302, {"Location": where}) for where in ("", "file:///etc/passwd", "http://[::1", "http://127.0.0.1:99999/", "/")),
    (200, {"Content-Type": "text/html"}),
    (200, {"Content-Encoding": "gzip"}),
]


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
@pytest.mark.parametrize(("status", "headers"), ANSWERS)
def test_answers_that_are_none(
    convert: Callable[..., Any],
    hub: Hub,
    model_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    status: int,
    headers: dict[str, str],
) -> None:
    """Each ends in one line, and without a file."""
    hub.repos[NAME] = Repo(model_files)
    answer_all(monkeypatch, status, headers, b"", where)
    code, message = convert()
    assert code in (1, 2, 3) and message and "\n" not in message and not Path("out.gguf").exists()


@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 451, 500])
def test_messages_of_a_hub_do_not_drive_the_terminal(
    convert: Callable[..., Any], hub: Hub, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, where: str, status: int
) -> None:
    evil = "\x1b[31m\x1b]0;t\x07\x9b1m"
    hub.repos[NAME] = Repo(model_files)
    headers = {"X-Error-Message": evil, "X-Error-Code": evil, "Location": f"http://127.0.0.1:1/{evil}", "Content-Type": "application/json"}
    answer_all(monkeypatch, status, headers, json.dumps({"error": evil, "errors": [{"message": evil}]}).encode(), where)
    code, message = convert()
    assert code and message.isprintable(), message


def test_a_listing_that_drips(convert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No silence is long enough for a time limit of the connection."""
    from bitnet_cli.checkpoint import hub_answers

    ended = threading.Event()

    def answer(self: Handler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while not ended.wait(0.05):
                self.wfile.write(b" ")
        except OSError:
            self.close_connection = True

    monkeypatch.setattr(Handler, "_answer", answer)
    monkeypatch.setattr(hub_answers, "METADATA_SECONDS", 0.5)
    start = time.monotonic()
    try:
        code, message = convert()
    finally:
        ended.set()
    assert code == 1 and "took longer" in message and time.monotonic() - start < 20


def test_the_client_has_time_limits_and_the_hooks_once() -> None:
    from huggingface_hub.utils import close_session, get_session

    from bitnet_cli.checkpoint.hub_answers import SILENCE_SECONDS, check_answer, guard

    guard()
    guard()
    close_session()
    client = get_session()
    assert client.event_hooks["response"].count(check_answer) == 1
    assert client.timeout.read == SILENCE_SECONDS
    close_session()
