"""Every quantised type against the gguf package, to the bit, over random bytes: whatever codes, signs and scales come."""

import warnings

import gguf
import numpy as np
import pytest

from bitnet_cli.gguf_file.types import BLOCKS, TensorType, row_bytes
from bitnet_cli.tensors.dequantise import FLOATS, READABLE, coded, rows_as_float32

COLS = 512
OURS = (TensorType.Q1_0, TensorType.Q2_0, TensorType.PQ2_0, TensorType.PTQ1_0)  # that the gguf package does not know: tests/ternary
THEIRS = [kind for kind in READABLE if kind not in OURS and (kind is not TensorType.NVFP4 or hasattr(gguf.quants, "NVFP4"))]


def raw_rows(kind: TensorType, rows: int = 64) -> np.ndarray:
    return np.random.default_rng(int(kind)).integers(0, 256, rows * row_bytes(kind, COLS), np.uint8)


@pytest.mark.parametrize("kind", THEIRS)
def test_rows_are_those_of_the_gguf_package(kind: TensorType) -> None:
    raw = raw_rows(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random scales are NaN and infinity too
        theirs = gguf.quants.dequantize(raw.reshape(64, -1), gguf.GGMLQuantizationType(int(kind)))
    ours = rows_as_float32(kind, raw, COLS)
    assert ours.shape == (64, COLS) and ours.dtype == np.float32
    assert np.array_equal(ours, theirs.reshape(64, COLS), equal_nan=True)


@pytest.mark.parametrize("kind", [kind for kind in READABLE if kind not in FLOATS])
def test_codes_leave_room_for_their_sign_and_groups_are_whole(kind: TensorType) -> None:
    """What bitnet_kernels/recode.py takes for granted."""
    parts = coded(kind, raw_rows(kind))
    assert parts.codes.dtype == np.int8 and parts.codes.size == 64 * COLS
    assert np.abs(parts.codes.astype(int)).max() <= (128 if kind is TensorType.Q8_0 else 127)
    group, rest = divmod(parts.codes.size, parts.scales.size)
    assert rest == 0 and group % 16 == 0
    assert parts.scales.dtype == np.float32 and (parts.minima is None or parts.minima.shape == parts.scales.shape)


@pytest.mark.parametrize("kind", [TensorType.Q2_0, TensorType.PQ2_0])
def test_two_bits_by_their_formula(kind: TensorType) -> None:
    """Code 3 is +2 d: Bonsai has it."""
    weights, size = BLOCKS[kind]
    block = np.full(size, 0b11100100, np.uint8)
    block[:2] = np.array([0.5], "<f2").view(np.uint8)
    assert rows_as_float32(kind, block, weights).tolist() == [[-0.5, 0.0, 0.5, 1.0] * (weights // 4)]


def test_bits_by_their_formula() -> None:
    block = np.full(18, 0b00000101, np.uint8)
    block[:2] = np.array([0.25], "<f2").view(np.uint8)
    assert rows_as_float32(TensorType.Q1_0, block, 128).tolist() == [[0.25, -0.25, 0.25, *[-0.25] * 5] * 16]


def test_every_type_but_those_of_projections_has_rows() -> None:
    """I2_S has its scale once a tensor, after the weights; ik_llama.cpp's ternary types have one a row."""
    assert {kind.name for kind in TensorType if kind not in READABLE} == {"I2_S", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4", "IQ2_BN_UNSCALED"}
    assert all(row_bytes(kind, 512) == 512 // BLOCKS[kind][0] * BLOCKS[kind][1] for kind in READABLE)
