"""F16 and Q8_0 of the embedding, against NumPy and against the gguf package, to the bit."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.safetensors import read_table
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import TensorType


@pytest.fixture
def store(models: ModuleType, tmp_path: Path) -> Any:
    def stored(value: np.ndarray[Any, Any], dtype: str = "F32") -> StoredTensor:
        models.write_safetensors(tmp_path / "x.safetensors", {"w": (dtype, value)})
        return read_table(tmp_path / "x.safetensors")["w"]

    return stored


def hard_values() -> np.ndarray[Any, np.dtype[np.float32]]:
    """More than a chunk of ordinary weights, then blocks that are hard to round."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(4200, 256)).astype(np.float32)]
    halves = np.tile(np.arange(-127, 129, dtype=np.float32) / 2, (1, 1)).clip(-63.5, 63.5)  # d = 0.5: quotients are whole numbers
    ties = np.where(np.arange(256) % 32 == 0, 127, np.arange(256) % 64 - 31.5).astype(np.float32)[None]  # d = 1: quotients end in .5
    below = np.where(np.arange(256) % 32 == 0, 127, np.nextafter(np.float32(0.5), 0)).astype(np.float32)[None]
    tiny = rng.normal(size=(1, 256)).astype(np.float32) * np.float32(1e-34)  # d is normal, and 0 in float16
    rows += [halves, ties, below, tiny, np.zeros((1, 256), np.float32), -ties]
    return np.vstack(rows)


def test_q8_0_is_that_of_gguf(store: Any) -> None:
    value = hard_values()
    with np.errstate(all="ignore"):
        expected = quantize(value, GGMLQuantizationType.Q8_0)
    assert np.array_equal(dense.encode(store(value), TensorType.Q8_0), expected.reshape(-1))


def test_q8_0_of_denormal_scales_is_zero(store: Any) -> None:
    """1 / d would be Inf, which ggml turns into whatever the processor makes of it."""
    assert not dense.encode(store(np.full((1, 32), 1e-38, np.float32)), TensorType.Q8_0).any()


def test_f16_rounds_to_nearest_even(store: Any) -> None:
    value = hard_values()
    assert np.array_equal(dense.encode(store(value), TensorType.F16).view(np.float16), value.astype(np.float16).reshape(-1))
    ties = np.array([[1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 65519.0]], np.float32)
    assert dense.encode(store(ties), TensorType.F16).view(np.float16).tolist() == [1, 1 + 2.0**-9, 0, 65504]


def test_bfloat16_to_f16_is_exact_where_both_can(store: Any, models: ModuleType) -> None:
    value = models.to_bf16(np.array([[1.0, -0.0078125, 3.140625, 256.0]], np.float32))
    assert dense.encode(store(value, "BF16"), TensorType.F16).view(np.float16).tolist() == [1.0, -0.0078125, 3.140625, 256.0]


@pytest.mark.parametrize(("kind", "value"), [(TensorType.F16, 65520.0), (TensorType.F16, -1e30), (TensorType.Q8_0, 8.4e6)])
def test_overflow_is_refused_not_written_as_infinity(store: Any, kind: TensorType, value: float) -> None:
    weights = np.ones((4, 32), np.float32)
    weights[3, 5] = value
    with pytest.raises(UnsupportedError, match=f"w: .* is beyond the range of {kind.name}"):
        dense.encode(store(weights), kind)


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16, TensorType.Q8_0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(store: Any, kind: TensorType, value: float) -> None:
    weights = np.ones((4, 32), np.float32)
    weights[2, 1] = value
    with pytest.raises(BadFileError, match="w: holds NaN or Inf"):
        dense.encode(store(weights), kind)


def test_float64_beyond_float32(store: Any) -> None:
    with pytest.raises(BadFileError, match="holds NaN or Inf"):
        dense.encode(store(np.full((1, 32), 1e300), "F64"), TensorType.F32)


def test_rows_that_are_not_whole_blocks(store: Any) -> None:
    with pytest.raises(UnsupportedError, match="Q8_0 needs rows of a multiple of 32, not 48"):
        dense.require_blocks(store(np.ones((2, 48), np.float32)), TensorType.Q8_0)
