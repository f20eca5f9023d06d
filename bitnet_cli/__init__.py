"""Run 1-bit large language models (ternary weights) on an ordinary CPU.

from bitnet_cli import load

with load() as model:
    for piece in model.generate("And the king said", max_tokens=20):
        print(piece, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_cli.api import Generation, Model, load

__version__ = "0.1.0"
__all__ = ["Generation", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The API is imported when it is first used: it needs NumPy and Numba, which `bitnet --help` does not."""
    if name in ("Generation", "Model", "load"):
        from bitnet_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
