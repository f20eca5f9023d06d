"""The models that ship inside the package, trained by scripts/train.py (docs/log.md#embedded-model says how)."""

from pathlib import Path
from typing import NamedTuple


class Embedded(NamedTuple):
    path: Path
    description: str  # one line


_HERE = Path(__file__).parent
# The first one is what a command without a model takes.
EMBEDDED = {
    "tiny": Embedded(_HERE / "tiny.gguf", "BitNet b1.58, 5.8M parameters: 18th- to 20th-century English, for trying things out"),
    "tiny-a4.8": Embedded(_HERE / "tiny-a4.8.gguf", "BitNet a4.8, tiny trained further with 4-bit activations (docs/a4.8.md)"),
}
DEFAULT_MODEL = next(iter(EMBEDDED))
EMBEDDED_MODEL = EMBEDDED[DEFAULT_MODEL].path
