"""`inspect --check`: scales that are no numbers are found in blocks of every type."""

from pathlib import Path

import pytest

from bitnet_cli.gguf_file.contents import check
from bitnet_cli.gguf_file.dequantise import FLOATS, READABLE
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import BLOCKS, TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

from ..model.quantised import forged

# Where a block's scale is, its last one where there are two. NVFP4's scales cannot be anything but numbers.
PLACES = {
    TensorType.Q4_0: 0,
    TensorType.Q4_1: 2,
    TensorType.Q5_0: 0,
    TensorType.Q5_1: 2,
    TensorType.Q8_0: 0,
    TensorType.Q2_K: 82,
    TensorType.Q3_K: 108,
    TensorType.Q4_K: 2,
    TensorType.Q5_K: 2,
    TensorType.Q6_K: 208,
    TensorType.TQ1_0: 52,
    TensorType.TQ2_0: 64,
    TensorType.IQ1_M: 48,
}


@pytest.mark.parametrize("kind", [kind for kind in READABLE if kind not in FLOATS and kind is not TensorType.NVFP4])
def test_check_looks_into_embeddings_of_every_type(tmp_path: Path, kind: TensorType) -> None:
    """One scale of the last block is no number: counted once, at its place."""
    raw, _ = forged(kind, 8, 256, seed=1)
    size = BLOCKS[kind][1]
    at = PLACES.get(kind, 0)
    blocks = raw.reshape(-1, size).copy()
    first = (len(blocks) - 1) * size + at
    if kind is TensorType.IQ1_M:
        blocks[-1, 49:57:2] |= 0xF0
    else:
        blocks[-1, at : at + 2] = 0xFF
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", {}, [OutputTensor("token_embd.weight", kind, (8, 256), lambda: blocks.reshape(-1))])
    with open_gguf(path) as file:
        place = file.tensors["token_embd.weight"].offset + first
        problems = check(file).problems
    assert problems == [f"tensor token_embd.weight: 1 scales of blocks are not finite (first at byte {place})"]
