"""How repositories of the Hugging Face hub are named. Only the standard library is imported."""

import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
READY = "i2_s"  # in the name of a GGUF file: `ggml-model-i2_s.gguf` is what Microsoft publishes


def is_hub_id(source: str) -> bool:
    """Whether `source` is meant as `owner/name`: it has that form, and nothing of that name is on the disk."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()
