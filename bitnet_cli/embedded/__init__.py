"""The model that ships inside the package: a BitNet b1.58 language model trained by scripts/train.py (docs/log.md says how)."""

from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent / "tiny.gguf"
DESCRIPTION = "the embedded 5.8M-parameter model: 18th- to 20th-century English, for trying things out"
