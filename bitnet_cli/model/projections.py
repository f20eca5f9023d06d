"""The ternary matrices of a model -> one flat byte array of I2_S rows, which is what the kernels read.

A file with I2_S projections is that array as it lies, memory-mapped: nothing is copied. TQ1_0, TQ2_0, Q2_0 and ik_llama.cpp's types are
repacked into memory of our own, one tensor at a time, and the tensor's pages of the file are given back: 2 bits a weight stay, whatever the
file has. That takes 1.5 s for a BitNet 2B-4T of TQ2_0 and 2.2 s of TQ1_0 on one quiet Zen 5 core (docs/log.md). A file that mixes I2_S with
these is copied whole.

Rows of other widths than multiples of 128 are repacked with zeros up to the next one. Where not even 64 weights divide a row, no packed
type can hold it and files have ternary floats (checkpoint/packing.py): they become 2 bits here too.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from bitnet_kernels.arrays import packed_width
from bitnet_kernels.group_rows import Groups
from numpy.typing import NDArray

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo, TensorType
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.layer_table import PROJECTIONS, file_name
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.parts import NO_PARTS, Parts, Scales, parts_of, require_movable
from bitnet_cli.tensors.dequantise import FLOATS as FLOAT_TYPES
from bitnet_cli.tensors.dequantise import rows_as_float32
from bitnet_cli.ternary import i2_s
from bitnet_cli.ternary.layouts import CHUNK_WEIGHTS, LAYOUTS, PackedTensor, block_of, exact_signs

FLOATS = {TensorType.F32: "<f4", TensorType.F16: "<f2"}  # of ternary values, where rows fit no layout
SAMPLE = 1 << 16  # bytes of a tensor that `examine` looks at
SMALLEST_SCALE = np.finfo(np.float32).tiny  # a denormal scale is damage: no trained weights are that small


class Projections(NamedTuple):
    packed: NDArray[np.uint8]  # (bytes,) read-only
    offsets: NDArray[np.int64]  # (layers, arrays.PROJECTIONS) first byte of each of PROJECTIONS
    scales: NDArray[np.float32]  # (layers, arrays.PROJECTIONS); of one that has several: 1
    parts: Parts = NO_PARTS  # in place of `scales`, where a projection has several or activations are float
    groups: Groups | None = None  # as Weights.groups: `packed` has rows of group_rows.py (grouped.py)


def weight_name(layer: int, name: str) -> str:
    """GGUF's name of a tensor of layer_table.LAYER."""
    return file_name(f"blk.{layer}.{name}")


def scale_name(weight: str) -> str:
    """Name of the tensor that may hold a factor for all weights of `weight`."""
    return weight.removesuffix("weight") + "scale"


def infos_of(file: TensorTable, c: ModelConfig) -> list[list[TensorInfo]]:
    """The projections of each layer, in the order of PROJECTIONS."""
    return [[file.tensors[weight_name(layer, name)] for name in PROJECTIONS] for layer in range(c.layers)]


def load_projections(file: GGUFFile, c: ModelConfig) -> Projections:
    """The file has passed checks.check_model. BadFileError, UnsupportedError: values or scales of blocks that are not run."""
    infos = infos_of(file, c)
    if any(info.type != TensorType.I2_S for layer in infos for info in layer):
        return _repacked(file, infos, c)
    offsets = np.array([[info.offset for info in layer] for layer in infos], np.int64)
    scales = np.array([[i2_s_scale(file, info) for info in layer] for layer in infos], np.float32)
    parts = NO_PARTS
    if c.float_activations or any(has_row_scales(file, info.name) for layer in infos for info in layer):
        layers = zip(infos, scales, strict=True)
        parts = parts_of(str(file.path), c, [[_scales(file, *pair) for pair in zip(*layer, strict=True)] for layer in layers])
    return Projections(file.file_bytes(), offsets, scales, parts)


def examine(file: GGUFFile, c: ModelConfig, full: bool) -> bool:
    """Meet what `load_projections` would meet, and keep nothing. full: in all weights; else in SAMPLE bytes a tensor. True: that was all.

    BadFileError, UnsupportedError: as from `load_projections`.
    """
    everything = True
    for number, layer in enumerate(infos_of(file, c)):
        found: list[Scales] = []
        for info in layer:
            if info.type is TensorType.I2_S:  # checks.check_model has seen its one scale, and any code has a meaning
                found.append(_scales(file, info, np.float32(1)))
                continue
            values = values_of(file, info, None if full else SAMPLE)
            everything &= values.rows == info.shape[0]
            for _ in values.chunks():
                pass
            found.append(_scales(file, info, values.scales))
            file.forget(info.name)
        require_movable(str(file.path), c, number, found)
    return everything


def _scales(file: GGUFFile, info: TensorInfo, found: np.float32 | Scales) -> Scales:
    """`found` of a weight, times those of its rows where they have their own."""
    scales = found if isinstance(found, Scales) else Scales(np.full(info.shape[0], found, np.float32))
    rows = row_scales(file, info.name)
    return scales if rows is None else Scales(scales.rows * rows, scales.columns)


def has_row_scales(file: TensorTable, weight: str) -> bool:
    """Whether a weight has a `.scale` tensor with a value for each of its rows. Of this package (checkpoint/rows.py); llama.cpp has one."""
    info, rows = file.tensors.get(scale_name(weight)), file.tensors[weight].shape[0]
    return info is not None and info.type is TensorType.F32 and info.shape == (rows,) and rows > 1


def row_scales(file: TensorTable, weight: str) -> NDArray[np.float32] | None:
    """These values, (rows,); None where there are none."""
    if not has_row_scales(file, weight):
        return None
    info = file.tensors[scale_name(weight)]
    values = file.raw(info.name).view("<f4").astype(np.float32)
    if not (np.isfinite(values) & (values >= SMALLEST_SCALE)).all():
        raise BadFileError(file.path, f"tensor {info.name}", "has values that are not positive numbers", info.offset)
    return values


def extra_scale(file: TensorTable, weight: str) -> np.float32:
    """Value of the `.scale` tensor of a weight; 1 where there is none, or one with a value for each row."""
    info = file.tensors.get(scale_name(weight))
    if info is None or row_scales(file, weight) is not None:  # which are checked with that
        return np.float32(1)
    if info.type not in FLOAT_TYPES or info.shape != (1,):
        raise UnsupportedError(
            f"{file.path}: tensor {info.name}: {info.type.name} {list(info.shape)}; one float scale a tensor or F32 a row is supported"
        )
    value: np.float32 = rows_as_float32(info.type, file.raw(info.name), 1)[0, 0]
    if not np.isfinite(value) or value < SMALLEST_SCALE:
        raise BadFileError(file.path, f"tensor {info.name}", f"is {value}, expected a positive number", info.offset)
    return value


def fits_a_layout(cols: int) -> bool:
    """Whether rows of `cols` weights are whole blocks of any packed layout."""
    return any(cols % block_of(kind) == 0 for kind in LAYOUTS)


def require_layout(file: TensorTable, info: TensorInfo) -> None:
    """UnsupportedError for a type that is not run, BadFileError for I2_S rows that are not whole blocks: the reader does not know them."""
    if info.type not in LAYOUTS and not (info.type in FLOATS and not fits_a_layout(info.shape[1])):
        hint = "; `bitnet quantize IN OUT i2_s` packs it" if info.type in FLOAT_TYPES else ""
        kinds = ", ".join(kind.name for kind in LAYOUTS if kind < 1 << 32)
        raise UnsupportedError(f"{file.path}: tensor {info.name}: {info.type.name} projections are not run, only {kinds}{hint}")
    if info.type is TensorType.I2_S and info.shape[1] % i2_s.BLOCK:
        raise BadFileError(file.path, f"tensor {info.name}", f"I2_S with rows of {info.shape[1]} weights, not a multiple of {i2_s.BLOCK}")


def i2_s_scale(file: GGUFFile, info: TensorInfo) -> np.float32:
    """The float32 after an I2_S tensor's weights, times that of a `.scale` tensor."""
    place = info.nbytes - i2_s.TAIL
    scale = file.raw(info.name)[place : place + 4].view("<f4")[0]
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.float32(scale * extra_scale(file, info.name))
    if not np.isfinite(scale) or scale < SMALLEST_SCALE:
        raise BadFileError(file.path, f"tensor {info.name}", f"has the scale {scale}, expected a positive number", info.offset + place)
    return scale


def _repacked(file: GGUFFile, infos: list[list[TensorInfo]], c: ModelConfig) -> Projections:
    sizes = [info.shape[0] * packed_width(info.shape[1]) // 4 for layer in infos for info in layer]
    ends = np.cumsum(sizes, dtype=np.int64)
    packed = np.empty(int(ends[-1]), np.uint8)
    offsets = (ends - sizes).reshape(len(infos), -1)
    scales = np.ones(offsets.shape, np.float32)
    every: list[list[Scales]] = [[] for _ in infos]
    several = False
    for layer, row in enumerate(infos):
        for which, info in enumerate(row):
            values = values_of(file, info)
            every[layer].append(_scales(file, info, values.scales))
            if isinstance(values.scales, Scales) or has_row_scales(file, info.name):
                several = True
            else:
                scales[layer, which] = values.scales
            at, past = int(offsets[layer, which]), packed_width(info.shape[1]) - info.shape[1]
            for chunk in values.chunks():
                rows = i2_s.pack_rows(np.pad(chunk, ((0, 0), (0, past))) if past else chunk)
                packed[at : at + rows.size] = rows
                at += rows.size
            file.forget(info.name)
    packed.flags.writeable = False  # as the memory map: kernels are compiled for one kind of array
    parts = parts_of(str(file.path), c, every) if several or c.float_activations else NO_PARTS
    return Projections(packed, offsets, scales, parts)


class Values(NamedTuple):
    scales: np.float32 | Scales
    rows: int  # that were looked at
    chunks: Callable[[], Iterator[NDArray[np.int8]]]  # ternary values, whole rows


def values_of(file: GGUFFile, info: TensorInfo, sample: int | None = None) -> Values:
    """The scale or scales of a projection, and its values. sample: of a few rows only, of so many bytes."""
    shape, extra, field = (info.shape[0], info.shape[1]), extra_scale(file, info.name), f"tensor {info.name}"
    if info.type in LAYOUTS:
        source = PackedTensor(info.type, shape, file.raw(info.name), file.path, field, float(extra))
        if sample is not None:
            source = source.some_rows(sample)
        several = source.several()
        found, chunks = source.read() if several is None else (Scales(*several[:2]), several[2])
        return Values(found, source.shape[0], chunks)
    return _float_values(file, info, extra, sample)


def _float_values(file: GGUFFile, info: TensorInfo, extra: np.float32, sample: int | None) -> Values:
    floats, field = file.raw(info.name).view(FLOATS[info.type]).reshape(info.shape), f"tensor {info.name}"
    if sample is not None:
        floats = floats[: max(4, sample // (floats.itemsize * info.shape[1]))]
    size = np.float32(np.abs(floats).max()) or np.float32(1)
    step = max(1, CHUNK_WEIGHTS // info.shape[1])

    def chunks() -> Iterator[NDArray[np.int8]]:
        for start in range(0, len(floats), step):
            values = exact_signs(floats[start : start + step], size)
            if values is None:
                kind = info.type.name
                raise UnsupportedError(f"{file.path}: {field}: {kind} with values other than -s, 0, s; only ternary weights are run")
            yield values

    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.float32(size * extra)
    if not np.isfinite(scale) or scale < SMALLEST_SCALE:
        raise BadFileError(file.path, field, f"has the scale {scale}, expected a positive number", info.offset)
    return Values(scale, len(floats), chunks)
