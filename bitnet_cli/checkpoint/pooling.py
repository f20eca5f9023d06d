"""How an embedding model makes one vector of its tokens' states: sentence-transformers' file in a folder -> GGUF's `pooling_type`."""

from pathlib import Path

from bitnet_cli.checkpoint.strict_json import read_object
from bitnet_cli.errors import UnsupportedError

POOLING_FILE = "1_Pooling/config.json"
TYPES = {"mean_tokens": 1, "mean": 1, "lasttoken": 3}  # llama.cpp, enum llama_pooling_type
LAST = 3


def read_pooling(folder: Path, base: bool) -> int | None:
    """`pooling_type`; None for a model that writes text.

    base: the model has no head. Where nothing more is said, its last token is the embedding: that is how the model cards of
    BitNet-embedding have it. UnsupportedError for other ways.
    """
    path = folder / POOLING_FILE
    if not path.is_file():
        return LAST if base else None
    fields = read_object(path)
    # A switch for each way, `pooling_mode_lasttoken`, or the name of one, `pooling_mode`.
    chosen = [key.removeprefix("pooling_mode_") for key, value in fields.items() if key.startswith("pooling_mode_") and value is True]
    chosen = chosen or [str(fields.get("pooling_mode"))]
    if len(chosen) != 1 or chosen[0] not in TYPES:
        raise UnsupportedError(f"{path}: pooling_mode: {' and '.join(chosen)[:80]} is not supported; {' or '.join(TYPES)} is")
    return TYPES[chosen[0]]
