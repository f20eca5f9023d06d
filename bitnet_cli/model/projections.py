"""The ternary matrices of a model -> one flat byte array of I2_S rows, which is what the kernels read.

A file with I2_S projections is that array as it lies, memory-mapped: nothing is copied. TQ1_0, TQ2_0 and Q2_0 are repacked into memory of
our own, one tensor at a time, and the tensor's pages of the file are given back: 2 bits a weight stay, whatever the file has. That takes
1.5 s for a BitNet 2B-4T of TQ2_0 and 2.2 s of TQ1_0 on one quiet Zen 5 core (docs/log.md). A file that mixes I2_S with these is copied
whole.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo, TensorType
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.ternary import i2_s, i2_s_order
from bitnet_cli.ternary.layouts import LAYOUTS, PackedTensor

PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # order of arrays.Q .. arrays.DOWN
SMALLEST = np.finfo(np.float32).tiny  # a denormal scale is damage: no trained weights are that small


class Projections(NamedTuple):
    packed: NDArray[np.uint8]  # (bytes,) read-only
    offsets: NDArray[np.int64]  # (layers, 7) first byte of each of PROJECTIONS
    scales: NDArray[np.float32]  # (layers, 7)


def weight_name(layer: int, projection: str) -> str:
    """GGUF's name of a projection's weights."""
    return f"blk.{layer}.{projection}.weight"


def scale_name(weight: str) -> str:
    """Name of the tensor that may hold a factor for all weights of `weight`."""
    return weight.removesuffix("weight") + "scale"


def load_projections(file: GGUFFile, c: ModelConfig) -> Projections:
    """Shapes have been checked. UnsupportedError: another type, several scales in a tensor, I2_S in the order of ARM builds."""
    infos = [[file.tensors[weight_name(layer, name)] for name in PROJECTIONS] for layer in range(c.layers)]
    for info in (info for layer in infos for info in layer):
        _require_layout(file, info)
    evidence = i2_s_order.judge_file(file)
    if evidence.order == i2_s_order.ARM:
        raise UnsupportedError(f"{file.path}: I2_S in an order that is not run: {evidence}; `bitnet quantize IN OUT i2_s` rewrites it")
    if any(info.type != TensorType.I2_S for layer in infos for info in layer):
        return _repacked(file, infos)
    offsets = np.array([[info.offset for info in layer] for layer in infos], np.int64)
    scales = np.array([[_i2_s_scale(file, info) for info in layer] for layer in infos], np.float32)
    return Projections(file.file_bytes(), offsets, scales)


def extra_scale(file: GGUFFile, weight: str) -> np.float32:
    """Value of the `.scale` tensor of a weight; 1 where there is none."""
    info = file.tensors.get(scale_name(weight))
    if info is None:
        return np.float32(1)
    if info.type != TensorType.F32 or info.shape != (1,):
        raise UnsupportedError(f"{file.path}: tensor {info.name}: {info.type.name} {list(info.shape)}; one F32 scale a tensor is supported")
    value = np.float32(file.raw(info.name).view("<f4")[0])
    if not np.isfinite(value) or value < SMALLEST:
        raise BadFileError(file.path, f"tensor {info.name}", f"is {value}, expected a positive number", info.offset)
    return value


def _require_layout(file: GGUFFile, info: TensorInfo) -> None:
    if info.type not in LAYOUTS:
        hint = "; `bitnet quantize IN OUT i2_s` packs it" if info.type in (TensorType.F32, TensorType.F16, TensorType.BF16) else ""
        kinds = ", ".join(kind.name for kind in LAYOUTS)
        raise UnsupportedError(f"{file.path}: tensor {info.name}: {info.type.name} projections are not run, only {kinds}{hint}")


def _i2_s_scale(file: GGUFFile, info: TensorInfo) -> np.float32:
    """The float32 after an I2_S tensor's weights, times that of a `.scale` tensor."""
    place = info.nbytes - i2_s.TAIL
    scale = file.raw(info.name)[place : place + 4].view("<f4")[0]
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.float32(scale * extra_scale(file, info.name))
    if not np.isfinite(scale) or scale < SMALLEST:
        raise BadFileError(file.path, f"tensor {info.name}", f"has the scale {scale}, expected a positive number", info.offset + place)
    return scale


def _repacked(file: GGUFFile, infos: list[list[TensorInfo]]) -> Projections:
    sizes = [info.shape[0] * info.shape[1] // 4 for layer in infos for info in layer]
    ends = np.cumsum(sizes, dtype=np.int64)
    packed = np.empty(int(ends[-1]), np.uint8)
    offsets = (ends - sizes).reshape(len(infos), -1)
    scales = np.zeros(offsets.shape, np.float32)
    for layer, row in enumerate(infos):
        for which, info in enumerate(row):
            shape = (info.shape[0], info.shape[1])
            source = PackedTensor(
                info.type, shape, file.raw(info.name), file.path, f"tensor {info.name}", float(extra_scale(file, info.name))
            )
            scales[layer, which], chunks = source.read()
            at = int(offsets[layer, which])
            for chunk in chunks():
                packed[at : at + chunk.size // 4] = i2_s.pack_rows(chunk)
                at += chunk.size // 4
            file.forget(info.name)
    packed.flags.writeable = False  # as the memory map: kernels are compiled for one kind of array
    return Projections(packed, offsets, scales)
