"""One server a file: the embedded model."""

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from bitnet_cli.embedded import EMBEDDED

from .serving import Running, load, running


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Kernels are compiled before a test waits for a server that would do so."""
    for model in EMBEDDED.values():
        load(model.path).scheduler.close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running() as found:
        yield found
