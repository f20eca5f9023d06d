"""`inspect --check`: scales that are no numbers are found in blocks of every type."""

from pathlib import Path

import numpy as np
import pytest

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.tensors.contents import check
from bitnet_cli.tensors.dequantise import FLOATS, READABLE
from bitnet_cli.tensors.uniform import uniform_projections
from bitnet_cli.ternary.layouts import LAYOUTS

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
    TensorType.PTQ1_0: 26,
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


@pytest.mark.parametrize("kind", PREFIXES)
def test_weights_that_are_all_alike_in_rows_with_scales(tmp_path: Path, kind: TensorType) -> None:
    """Whatever the scales of the rows are; not where one weight differs, in the first row or in the last."""
    layout, shape = LAYOUTS[kind], (8, 128)
    scales = np.linspace(0.5, 1, 8).astype(np.float16).astype(np.float32)
    mixed = np.random.default_rng(1).integers(-1, 2, shape).astype(np.int8)
    tensors = {f"t{value}.weight": (np.full(shape, value, np.int8), scales) for value in (-1, 0, 1)}
    for at in (0, 7):
        tensors[f"row{at}.weight"] = (np.ones(shape, np.int8), scales)
        tensors[f"row{at}.weight"][0][at, 127] = 0
    tensors["none.weight"] = (mixed, np.zeros(8, np.float32))
    path = tmp_path / "m.gguf"
    packed = {name: layout.pack_rows(*value).reshape(-1) for name, value in tensors.items()}
    write_gguf(path, "llama", {}, [OutputTensor(name, kind, shape, lambda raw=raw: raw) for name, raw in packed.items()])  # type: ignore[misc]
    with open_gguf(path) as file:
        told = [line.partition(", which")[0] for line in uniform_projections(file)]
    assert told == [
        "tensor t-1.weight: every weight is -1 times the scale of its row",
        "tensor t0.weight: every weight is 0",
        "tensor t1.weight: every weight is +1 times the scale of its row",
        "tensor none.weight: every weight is 0",
    ]
