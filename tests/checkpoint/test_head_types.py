"""Q4_0 and Q6_K: our bytes against the gguf package's reading and writing, and against the kernels' twin."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from bitnet_kernels import arrays
from bitnet_kernels.naive import dense as naive
from numpy.typing import NDArray

from bitnet_cli.checkpoint import dense
from bitnet_cli.gguf_file.types import TensorType, nbytes

KINDS = {
    TensorType.Q8_0: arrays.HEAD_Q8_0,
    TensorType.Q4_0: arrays.HEAD_Q4_0,
    TensorType.Q6_K: arrays.HEAD_Q6_K,
}


class Stored:
    """The part of a stored tensor that `dense.encode` uses."""

    def __init__(self, values: NDArray[np.float32]):
        self.values, self.shape, self.path, self.name = values, values.shape, Path("model.safetensors"), "embed"

    def float32_chunks(self) -> list[NDArray[np.float32]]:
        return [self.values[:3], self.values[3:]]


@pytest.fixture
def weights() -> NDArray[np.float32]:
    w = np.random.default_rng(5).standard_normal((11, 512)).astype(np.float32) / 30
    w[2] = 0
    w[3, :16] = 0
    w[4] *= 1e-9
    w[5, 7] = -3
    return w


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_and_our_twin_read_what_we_write(weights: NDArray[np.float32], kind: TensorType) -> None:
    raw = dense.encode(Stored(weights), kind)  # type: ignore[arg-type]
    assert raw.size == nbytes(kind, weights.shape)
    theirs = gguf.quants.dequantize(raw.reshape(len(weights), -1), gguf.GGMLQuantizationType[kind.name])
    ours = naive.rows(raw, 0, KINDS[kind], 0, len(weights), weights.shape[1])
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "steps"), [(TensorType.Q8_0, 0.57 / 127), (TensorType.Q4_0, 1.01 / 8), (TensorType.Q6_K, 1.3 / 32)])
def test_error_is_at_most_a_step(weights: NDArray[np.float32], kind: TensorType, steps: float) -> None:
    """A step of the largest value of a block: half of one for the nearest code, a whole one where the range ends (-8..7, -32..31).

    The scale in float16 adds 2^-11 of the largest value: 0.06 steps of 1/127.
    """
    raw = dense.encode(Stored(weights), kind)  # type: ignore[arg-type]
    read = naive.rows(raw, 0, KINDS[kind], 0, len(weights), weights.shape[1])
    block = 16 if kind is TensorType.Q6_K else 32
    largest = np.abs(weights.reshape(-1, block)).max(1, keepdims=True)
    around = np.abs(weights.reshape(-1, 256)).max(1).repeat(256 // block)[:, None]  # Q6_K scales have 8 bits of the largest of 16
    bound = steps * largest + (around / 127 if kind is TensorType.Q6_K else 0) + 6e-8
    assert (np.abs(read - weights).reshape(-1, block) <= bound).all()


def test_q4_0_is_what_gguf_writes(weights: NDArray[np.float32]) -> None:
    normal = np.delete(weights, 4, 0)  # where the scale is denormal, gguf divides by it
    raw = dense.encode(Stored(normal), TensorType.Q4_0)  # type: ignore[arg-type]
    theirs = gguf.quants.quantize(normal, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(raw.reshape(theirs.shape), theirs)
