"""Embedding and head of every type: logits against the formulas in float64 over the dequantised values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bitnet_kernels.naive import dense
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model import recode
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.grouped import BLOCKED
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import head_bytes_a_token
from bitnet_cli.model.weights import HEAD_KINDS, head_note
from bitnet_cli.tensors.contents import check
from bitnet_cli.tensors.dequantise import FLOATS, READABLE

from .builder import Model, Sizes, f32, random_model, write_model
from .quantised import forged, tensor
from .reference import assert_agree, forward

Make = Callable[..., Sequence]
IDS = [256, 84, 104, 101, 32, 255, 0, 66]
SHAPE = (260, 256)
RECODED = [kind for kind in READABLE if kind not in (*HEAD_KINDS, *BLOCKED)]


def model_with(folder: Path, embedding: TensorType, head: TensorType | None) -> tuple[Path, Model]:
    """A model of these types; head None: tied."""
    model = random_model(Sizes(hidden=256, head_dim=64), seed=1)
    raw, model.embedding = forged(embedding, *SHAPE, seed=2)
    tensors = {"token_embd.weight": tensor("token_embd.weight", embedding, raw, SHAPE)}
    if head is not None:
        raw, model.head = forged(head, *SHAPE, seed=3)
        tensors["output.weight"] = tensor("output.weight", head, raw, SHAPE)
    return write_model(folder / "m.gguf", model, tensors=tensors), model


def recoded_values(file_path: Path, name: str) -> NDArray[np.float32]:
    """A matrix as the decoder re-codes it."""
    with open_gguf(file_path) as file:
        data = recode.recoded(file, file.tensors[name], 2)
    return dense.rows(data, 0, recode.RECODED, 0, *SHAPE)


@pytest.mark.parametrize("kind", READABLE)
def test_embedding(kind: TensorType, tmp_path: Path, text_of: Make) -> None:
    path, model = model_with(tmp_path, kind, TensorType.F16)
    decoder = text_of(path)
    assert np.array_equal(decoder.engine.embedding_rows(IDS), model.embedding[IDS])
    assert decoder.engine.head_note is None
    result = forward(model, IDS)
    got = np.stack([decoder.feed([token]).copy() for token in IDS])
    assert_agree(got, result.logits, result.margin)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in READABLE if kind not in BLOCKED])  # those: test_groups.py
def test_head(kind: TensorType, tied: bool, tmp_path: Path, text_of: Make) -> None:
    """Of types without a kernel: exactly the re-coded weights, each of which is as near the file's as is said."""
    path, model = model_with(tmp_path, *((kind, None) if tied else (TensorType.F16, kind)))
    exact = model.embedding if model.head is None else model.head
    name = "token_embd.weight" if tied else "output.weight"
    if kind in RECODED:
        model.head = recoded_values(path, name)
        blocks, near = exact.reshape(-1, 32).astype(np.float64), model.head.reshape(-1, 32)
        assert (np.abs(blocks - near) <= 0.004 * np.abs(blocks).max(1, keepdims=True) + 3e-8).all()
    decoder = text_of(path, threads=2)
    result = forward(model, IDS)
    got = np.stack([decoder.feed([token]).copy() for token in IDS])
    assert_agree(got, result.logits, result.margin)
    decoder.rewind(0)
    assert_agree(decoder.feed_all(IDS), result.logits, result.margin)
    if kind in RECODED:
        assert (
            decoder.engine.head_note is not None
            and f"{name} is {kind.name}" in decoder.engine.head_note
            and "0.4 %" in decoder.engine.head_note
        )
        assert head_bytes_a_token(decoder.engine) == 260 * 256 // 32 * 34
    else:
        assert decoder.engine.head_note is None


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_head_with_scales_of_blocks(kind: TensorType, tmp_path: Path, text_of: Make) -> None:
    """Its inputs are int8 by groups of 128, in steps of max / 127. Of normal values the largest of 128 is about 2.7 deviations, so that
    rounding errs by 2.7 / 127 / sqrt(12) = 0.6 % of the logits' rms; twice that is taken. With float inputs: test_groups.py."""
    path, model = model_with(tmp_path, TensorType.F16, kind)
    text, want = text_of(path), forward(model, IDS).logits
    got = np.stack([text.feed([token]).copy() for token in IDS])
    assert text.engine.head_note is None
    assert 0 < np.sqrt(np.square(got - want).mean() / np.square(want).mean()) < 0.012
    text.rewind(0)
    assert np.array_equal(text.feed_all(IDS), got)


@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.IQ3_S, TensorType.BF16, TensorType.Q2_0])
def test_looking_at_the_file_agrees(kind: TensorType, tmp_path: Path) -> None:
    path, _ = model_with(tmp_path, kind, kind)
    with open_gguf(path) as file:
        assert why_not(file).reason is None
        assert check(file).problems == []
        assert (head_note(file) is not None) == (kind in RECODED)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_chunks_change_nothing(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = model_with(tmp_path, TensorType.F16, TensorType.Q5_K)
    expected = recoded_values(path, "output.weight")
    monkeypatch.setattr(recode, "CHUNK_WEIGHTS", 256 * 7)
    monkeypatch.setattr(recode, "GIVE_BACK", 4000)
    with open_gguf(path) as file:
        data = recode.recoded(file, file.tensors["output.weight"], threads)
    assert np.array_equal(dense.rows(data, 0, recode.RECODED, 0, *SHAPE), expected)


@pytest.mark.parametrize(("value", "error"), [(np.nan, BadFileError), (np.inf, BadFileError), (60000, UnsupportedError)])
@pytest.mark.parametrize("row", [0, 259])
def test_heads_that_are_no_numbers(value: float, error: type[Exception], row: int, tmp_path: Path) -> None:
    """Also where another thread meets them. 60,000 in each of 31 codes is 1.9e6 and fits; 63 times as much does not."""
    path, _ = model_with(tmp_path, TensorType.F16, TensorType.Q5_K)
    raw, _ = forged(TensorType.Q5_K, *SHAPE, seed=3)
    blocks = raw.reshape(260, -1).copy()
    blocks[row, :2] = np.array([value], "<f2").view(np.uint8)
    blocks[row, 4:16] = 0xFF
    write_model(
        path,
        random_model(Sizes(hidden=256, head_dim=64)),
        tensors={"output.weight": tensor("output.weight", TensorType.Q5_K, blocks, SHAPE)},
    )
    with open_gguf(path) as file, pytest.raises(error, match=r"tensor output.weight: .*(not finite|beyond 8\.3e6)"):
        Sequence(Engine(file, threads=2))


def test_norms_and_scales_of_other_float_types(tmp_path: Path, text_of: Make) -> None:
    """bfloat16 norms, and a float16 `.scale`, are those numbers."""
    model = random_model(seed=4)
    changed = {}
    for name in ("output_norm", "blk.0.attn_norm", "blk.1.ffn_norm"):
        bits = (model.norms[name].view("<u4") >> 16).astype("<u2")
        model.norms[name] = (bits.astype("<u4") << np.uint32(16)).view(np.float32)
        changed[f"{name}.weight"] = tensor(f"{name}.weight", TensorType.BF16, bits.view(np.uint8), model.norms[name].shape)  # type: ignore[arg-type]
    half = np.array([0.75], "<f2")
    changed["blk.0.ffn_up.scale"] = tensor("blk.0.ffn_up.scale", TensorType.F16, half.view(np.uint8), (1,))  # type: ignore[arg-type]
    path = write_model(tmp_path / "m.gguf", model, tensors=changed)
    model.scales["blk.0.ffn_up"] *= np.float32(0.75)
    result = forward(model, IDS)
    decoder = text_of(path)
    assert_agree(np.stack([decoder.feed([token]).copy() for token in IDS]), result.logits, result.margin)


def test_float_types_are_those_of_norms(tmp_path: Path) -> None:
    assert [kind.name for kind in FLOATS] == ["F32", "F16", "BF16"]
    with open_gguf(write_model(tmp_path / "m.gguf", tensors={"output_norm.weight": f32("output_norm.weight", np.ones(128))})) as file:
        assert why_not(file).reason is None
