"""Ternary values and their scale -> the GGUF tensors that hold them, in any type that `--outtype` names.

I2_S holds both to the bit. So do TQ1_0, TQ2_0 and Q2_0, with block scales of 1 and a tensor `.scale` (ternary/layouts.py), which llama.cpp
applies. F16 holds the product, -s, 0, s: it is 8 times as large and its s has 11 bits, but anything can read it.

A row must be whole blocks. Where 256 weights do not divide it, Q2_0 with its 64 stands in for TQ1_0 and TQ2_0, tensor by tensor; for other
rows, and in place of I2_S, no type is chosen that the user has not asked for.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint.flavours import TernaryWeight
from bitnet_cli.errors import UnsupportedError
from bitnet_cli.gguf_file.types import TensorType, nbytes
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary import i2_s
from bitnet_cli.ternary.layouts import LAYOUTS, block_of

OUTTYPES = {kind.name.lower(): kind for kind in (*LAYOUTS, TensorType.F16)}
# general.file_type: 40 is bitnet.cpp's number for I2_S (mainline's for Q1_0), the others are llama.cpp's (include/llama.h).
FILE_TYPES = {TensorType.I2_S: 40, TensorType.TQ1_0: 36, TensorType.TQ2_0: 37, TensorType.Q2_0: 41, TensorType.F16: 1}
QUANTIZATION_VERSION = 2  # of ggml


def type_of_rows(wanted: TensorType, cols: int, path: Path, name: str) -> TensorType:
    """The type that rows of `cols` weights get where `wanted` is asked for. UnsupportedError where there is none."""
    if wanted not in LAYOUTS or cols % block_of(wanted) == 0:
        return wanted
    if wanted is not TensorType.I2_S and cols % block_of(TensorType.Q2_0) == 0:
        return TensorType.Q2_0
    fits = [kind.name.lower() for kind in LAYOUTS if cols % block_of(kind) == 0]
    hint = f"{' and '.join(fits)} can hold them" if fits else "f16 can hold them"
    raise UnsupportedError(f"{path}: {name}: rows of {cols} weights; {wanted.name} packs {block_of(wanted)} at a time; {hint}")


def ternary_tensors(
    name: str, shape: tuple[int, int], wanted: TensorType, path: Path, stored_name: str, read: Callable[[], TernaryWeight]
) -> list[OutputTensor]:
    """`<name>.weight` and, where its type has no place for the scale, `<name>.scale`. Errors name `path` and `stored_name`.

    `read` is called once, when the writer asks for the weights.
    """
    kind = type_of_rows(wanted, shape[1], path, stored_name)
    found: list[np.float32] = []

    def weights() -> NDArray[np.uint8]:
        weight = read()
        found.append(weight.scale)
        return encode(weight, kind, path, stored_name)

    tensors = [OutputTensor(f"{name}.weight", kind, shape, weights)]
    if kind in LAYOUTS and kind is not TensorType.I2_S:
        # The writer asks in the order of the list, so the weights have been read by now.
        tensors.append(OutputTensor(f"{name}.scale", TensorType.F32, (1,), lambda: np.array(found[-1:], "<f4")))
    return tensors


def encode(weight: TernaryWeight, kind: TensorType, path: Path, name: str) -> NDArray[np.uint8]:
    """The bytes of a tensor of `kind`, made chunk by chunk: beside the result, a few MB."""
    result = np.empty(nbytes(kind, (weight.rows, weight.cols)), np.uint8)
    half = np.float16(1)
    if kind is TensorType.F16:
        with np.errstate(over="ignore"):
            half = np.float16(weight.scale)
        if not (np.isfinite(half) and half >= np.finfo(np.float16).tiny):
            raise UnsupportedError(f"{path}: {name}: the scale {weight.scale:g} is beyond the range of F16's normal numbers")
    done = 0
    for chunk in weight.chunks():
        part = _halves(chunk, half).view(np.uint8) if kind is TensorType.F16 else LAYOUTS[kind].pack_rows(chunk)
        result[done : done + part.size] = part.reshape(-1)
        done += part.size
    if kind is TensorType.I2_S:
        result[done:] = i2_s.tail(float(weight.scale))
    return result


def _halves(values: NDArray[np.int8], scale: np.float16) -> NDArray[np.uint16]:
    """Bits of values * scale as float16: those of the scale or 0, and the sign. NumPy's product of float16 takes ten times as long."""
    bits: NDArray[np.uint16] = (values != 0).astype("<u2") * scale.view(np.uint16) | (values < 0).astype("<u2") << 15
    return bits


def type_notes(architecture: str, wanted: TensorType, tensors: list[OutputTensor]) -> list[str]:
    """What the user of a file with these tensors should know about its ternary weights, a sentence each."""
    told = []
    stand_ins = sum(tensor.type is TensorType.Q2_0 for tensor in tensors)
    if stand_ins and wanted is not TensorType.Q2_0:
        told.append(
            f"{stand_ins} projections have rows that {block_of(wanted)} does not divide and are Q2_0, which llama.cpp reads since July 2026"
        )
    if wanted in LAYOUTS and wanted is not TensorType.I2_S and architecture.startswith("bitnet-"):
        told.append(f"llama.cpp has no architecture {architecture} (ReLU²): `bitnet run` runs this file, llama.cpp does not")
    if wanted is TensorType.F16:
        told.append("F16 holds weight * scale with the scale rounded to 11 bits; `bitnet run` wants a packed type")
    return told
