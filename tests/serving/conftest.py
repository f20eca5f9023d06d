"""One server a file: the embedded model."""

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from .serving import Running, running


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running() as found:
        yield found
