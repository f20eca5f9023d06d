"""How a checkpoint stores its ternary weights, and the one rule that reads each way: values in {-1, 0, 1} and a float32 scale.

    A  online         float master weights, linear_class autobitlinear, mode online       absmean
    B  packed         2-bit codes and weight_scale, linear_class autobitlinear            scale = weight_scale
    C  packed         2-bit codes and weight_scale, any other linear_class                scale = 1 / weight_scale
    D  dequantised    floats of three values -s, 0, s, no quantization_config             scale = s; several: s of each block, group, or row
    E  master         float master weights, no quantization_config                        absmean, of the tensor, each row, or each group
    F  unpacked       floats -1, 0, 1 and weight_scale                                    scale as in B or C

B and C differ in one word of config.json: transformers' AutoBitLinear multiplies by weight_scale and its BitLinear divides by it
(transformers, integrations/bitnet.py). D is not E: absmean of {-s, 0, s} would give s times the share of non-zeros.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.ternary import absmean, hf_packed
from bitnet_cli.ternary.layouts import exact_signs


class Flavour(Enum):
    """Value: what the summary line calls it."""

    ONLINE = "A (float master, online)"
    PACKED_MULTIPLY = "B (packed, autobitlinear)"
    PACKED_DIVIDE = "C (packed, bitlinear)"
    DEQUANTISED = "D (dequantised ternary)"
    SEVERAL = "D (dequantised ternary, several scales a tensor)"
    GROUPS = "D (dequantised ternary, a scale a group)"
    ROWS = "D (dequantised ternary, a scale a row)"
    MASTER = "E (float master)"
    MASTER_GROUPS = "E (float master, a scale a group)"
    MASTER_ROWS = "E (float master, a scale a row)"
    UNPACKED_MULTIPLY = "F (unpacked, autobitlinear)"
    UNPACKED_DIVIDE = "F (unpacked, bitlinear)"

    @property
    def has_stored_scale(self) -> bool:
        return self in (Flavour.PACKED_MULTIPLY, Flavour.PACKED_DIVIDE, Flavour.UNPACKED_MULTIPLY, Flavour.UNPACKED_DIVIDE)

    @property
    def scale_rule(self) -> str:
        if self in (Flavour.PACKED_MULTIPLY, Flavour.UNPACKED_MULTIPLY):
            return "multiply by weight_scale"
        if self in (Flavour.PACKED_DIVIDE, Flavour.UNPACKED_DIVIDE):
            return "divide by weight_scale"
        if self in (Flavour.SEVERAL, Flavour.GROUPS):
            return "max|W| of each block"
        if self is Flavour.MASTER_GROUPS:
            return "mean|W| of each group, in float16"
        if self in (Flavour.ROWS, Flavour.MASTER_ROWS):
            return f"{'max' if self is Flavour.ROWS else 'mean'}|W| of each row"
        return "max|W|" if self is Flavour.DEQUANTISED else "mean|W|"


BY_BLOCK = (Flavour.SEVERAL, Flavour.GROUPS, Flavour.MASTER_GROUPS)  # blocks.py


@dataclass(frozen=True)
class TernaryWeight:
    """(rows, cols) values in {-1, 0, 1} as consecutive int8 chunks of whole rows, and their one scale (finite, above 0)."""

    rows: int
    cols: int
    scale: np.float32
    chunks: Callable[[], Iterator[NDArray[np.int8]]]

    def values(self) -> NDArray[np.int8]:
        """All rows at once, (rows, cols)."""
        return np.concatenate(list(self.chunks()))


def is_packed(weight: StoredTensor, shape: tuple[int, int]) -> bool:
    """Whether `weight` has the type and shape of a packed projection of `shape` (rows, cols)."""
    return weight.dtype == "U8" and weight.shape == (shape[0] // 4, shape[1]) and shape[0] % 4 == 0


def read_ternary(weight: StoredTensor, scale: StoredTensor | None, shape: tuple[int, int], flavour: Flavour) -> TernaryWeight:
    """One projection of `shape` (rows, cols). Raises BadFileError for a code 3, a value that is not ternary, a scale that is not usable."""
    if flavour in (Flavour.ONLINE, Flavour.MASTER):
        found = _usable(absmean.mean_abs(weight.float32_chunks()), weight, "mean|W|")
        return TernaryWeight(*shape, found, lambda: (absmean.round_to_ternary(c, found) for c in weight.float32_chunks()))
    if flavour is Flavour.DEQUANTISED:
        return _dequantised(weight, shape)
    assert scale is not None  # the flavours left have one; folder.py has checked
    found = _stored_scale(scale, divide=flavour in (Flavour.PACKED_DIVIDE, Flavour.UNPACKED_DIVIDE))
    if flavour in (Flavour.PACKED_MULTIPLY, Flavour.PACKED_DIVIDE):
        return TernaryWeight(*shape, found, lambda: _unpacked(weight))
    return TernaryWeight(*shape, found, lambda: _unpacked_float(weight))


def largest_value(weight: StoredTensor) -> np.float32:
    """max|W|; NaN where a weight is."""
    return np.float32(np.max([np.abs(chunk).max(initial=0) for chunk in weight.float32_chunks()]))


def looks_ternary(weight: StoredTensor) -> bool:
    """Whether a float tensor holds only -s, 0, s, or such values and 2 s with one s in each group of 32 weights in a row.

    Master weights never do: the first 32 trained floats do not agree in size. Zeros alone say nothing, so the search goes on.
    """
    for chunk in weight.float32_chunks():
        size = np.abs(chunk)
        groups = size.reshape(-1, 32) if size.shape[-1] % 32 == 0 else size
        largest = groups.max(axis=1, keepdims=True)
        if not np.all((groups == 0) | (groups == largest) | (2 * groups == largest)):
            return False
    return True


def has_one_scale(weight: StoredTensor) -> bool:
    """Whether all values of a float tensor that are not 0 have one size. The first chunk is enough to see that they do not.

    BadFileError: one of them is not finite.
    """
    found = np.float32(0)
    for chunk in weight.float32_chunks():
        size = np.abs(chunk)
        largest = np.float32(size.max(initial=0))
        if not np.isfinite(largest):
            raise BadFileError(weight.path, weight.name, f"max|W| is {largest}, expected a positive number")
        found = found or largest
        if not ((size == 0) | (size == found)).all():
            return False
    return True


def _dequantised(weight: StoredTensor, shape: tuple[int, int]) -> TernaryWeight:
    # A tensor of zeros is ternary with any scale.
    found = _usable(largest_value(weight) or np.float32(absmean.SMALLEST_SCALE), weight, "max|W|")

    def chunks() -> Iterator[NDArray[np.int8]]:
        for chunk in weight.float32_chunks():
            values = exact_signs(chunk, found)
            if values is None:
                message = f"{weight.path}: {weight.name}: values other than -s, 0, s with s = {found:g}"
                raise UnsupportedError(message + "; one scale a tensor is supported, several (groups, shards) are not")
            yield values

    return TernaryWeight(*shape, found, chunks)


def _unpacked_float(weight: StoredTensor) -> Iterator[NDArray[np.int8]]:
    for chunk in _any_chunks(weight):
        values = exact_signs(chunk, np.float32(1))
        if values is None:
            raise BadFileError(weight.path, weight.name, "values other than -1, 0, 1 beside a weight_scale")
        yield values


def _any_chunks(weight: StoredTensor) -> Iterator[NDArray[np.float32] | NDArray[np.int8]]:
    if weight.is_float:
        yield from weight.float32_chunks()
        return
    step = max(1, CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        yield weight.stored(start, min(start + step, weight.shape[0]))


def _unpacked(weight: StoredTensor) -> Iterator[NDArray[np.int8]]:
    """Row blocks of a packed tensor, in order; the packed bytes (a quarter of the weights) are in memory meanwhile."""
    packed = weight.stored()
    if hf_packed.has_code_3(packed):
        raise BadFileError(weight.path, weight.name, "a 2-bit code is 3; only 0, 1 and 2 mean a ternary value")
    step = max(1, CHUNK_ELEMENTS // packed.shape[1])
    for block in range(4):
        for start in range(0, len(packed), step):
            yield hf_packed.unpack_block(packed[start : start + step], block)


def _stored_scale(scale: StoredTensor, divide: bool) -> np.float32:
    if scale.elements != 1:
        raise UnsupportedError(f"{scale.path}: {scale.name}: {scale.elements} scales in one tensor; one scale a tensor is supported")
    value = _usable(np.float32(scale.float32().reshape(-1)[0]), scale, "scale")
    with np.errstate(over="ignore"):
        return _usable(np.float32(1) / value, scale, "1 / scale") if divide else value


def _usable(value: np.float32, tensor: StoredTensor, what: str) -> np.float32:
    """Refuses NaN, Inf, 0, negative and denormal scales: nothing a trained tensor has."""
    if not (np.isfinite(value) and value >= np.finfo(np.float32).tiny):
        raise BadFileError(tensor.path, tensor.name, f"{what} is {value}, expected a positive number")
    return value
