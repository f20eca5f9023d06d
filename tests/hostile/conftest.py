"""Fixtures that open a forged GGUF file and assert how it is refused, and what the refusal cost."""

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_cli.errors import BadFileError, BitnetError
from bitnet_cli.gguf_file.reader import open_gguf

Refused = Callable[[Path, type[BitnetError]], BitnetError]


def refused_within_limits(path: Path, error: type[BitnetError]) -> BitnetError:
    tracemalloc.start()
    begin = time.process_time()  # not by the clock: other programs may have the cores
    try:
        with pytest.raises(error) as caught:
            open_gguf(path)
        seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert seconds < 1
    assert peak < 64 << 20
    return caught.value


@pytest.fixture
def refused() -> Refused:
    """refused(path, error): opens the file and returns the error, which must be of exactly this type."""
    return refused_within_limits


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., BitnetError]:
    """refuse(data, text, error=BadFileError, size=None): writes a file, extended with zeros to `size`; expects `text` in the message."""

    def check(data: bytes, text: str, error: type[BitnetError] = BadFileError, size: int | None = None) -> BitnetError:
        path = tmp_path / "forged.gguf"
        path.write_bytes(data)
        if size is not None:
            os.truncate(path, size)
        caught = refused_within_limits(path, error)
        assert text in str(caught)
        return caught

    return check
