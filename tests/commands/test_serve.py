"""`bitnet serve`: what is refused before anything listens. What it then does is in tests/serving/."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from bitnet_cli.cli import main
from bitnet_cli.commands.serve import Running, keys_of, loader, origins_of
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.errors import UsageError


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(code: int, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["bitnet", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        output = capsys.readouterr()
        assert (left.value.code, output.out) == (code, ""), output.err
        return output.err

    return run


def test_addresses_that_others_reach_need_keys(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITNET_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "--api-key-file" in refused(2, "--host", host)
    monkeypatch.setenv("BITNET_API_KEY", "short")
    assert "at least 8" in refused(2, "--host", "0.0.0.0")


def test_a_port_in_use(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(1, "--port", port)
        assert f"127.0.0.1:{port}" in error and "--port 0" in error
    assert refused(2, "--host", "127.0.0.1.5.", "--port", 0)


def test_models(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such model" in refused(2, "nothing-like-this")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert "bad.gguf" in refused(3, "tiny", tmp_path / "bad.gguf")
    assert "--alias gives" in refused(2, "tiny", "tiny")
    assert "is given 2 times, for 1" in refused(2, "tiny", "--alias", "a", "--alias", "b")


@pytest.mark.skipif(os.name != "posix", reason="Unix sockets")
def test_a_path_that_is_no_socket(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep me")
    assert "is no socket" in refused(2, "--uds", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep me"


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("BITNET_API_KEY", raising=False)
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-key-0001\n\n second-key-0002 \n")
    file.chmod(0o600)
    assert keys_of(file) == ["first-key-0001", "second-key-0002"]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("BITNET_API_KEY", "third-key-0003")
    assert keys_of(None) == ["third-key-0003"]
    if os.name == "posix":
        file.chmod(0o644)
        keys_of(file)
        assert "chmod 600" in capsys.readouterr().err
    for text in ("", "# nothing\n", "short\n", "with a space\n", "späte-schlüssel\n"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError):
            keys_of(file)
    with pytest.raises(UsageError):
        keys_of(tmp_path / "none")


@pytest.mark.parametrize("mebibytes", [0, 5, 11])
def test_memory_for_prompts(mebibytes: int) -> None:
    """As many MiB as are asked for, to a page; else a context for each text."""
    running = Running(ctx_size=256, parallel=3, cache_type="f16", threads=1, max_ram=0, sleep_idle=0, timeout=600, cache_ram=mebibytes)
    opened = loader(running)(EMBEDDED_MODEL)
    engine = opened.engine
    page = engine.cache_bytes() // engine.pages.count
    if mebibytes:
        assert (mebibytes << 20) - page < engine.cache_bytes() <= mebibytes << 20
    else:
        assert engine.pages.count * engine.pages.size == 3 * 256
    opened.scheduler.close()


def test_origins() -> None:
    assert origins_of(["https://example.org", "http://localhost:3000", "*"]) == ["https://example.org", "http://localhost:3000", "*"]
    for wrong in ("example.org", "https://example.org/page", "file:///x", "https://", ""):
        with pytest.raises(UsageError):
            origins_of([wrong])
