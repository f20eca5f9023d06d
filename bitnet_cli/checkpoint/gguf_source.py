"""GGUF file with projections in float or packed types -> the tensors of the same model with projections in another of them.

Packed projections are of any type of ternary/: values and scales are kept to the bit. Other converters write float tensors whose values are
-s, 0, s already: sign and s are kept exactly. Anything else is taken as BitNet master weights and rounded by absmean, and reported in
`rounded`. Scales in tensors of their own (`blk.N.attn_q.scale`) become part of their projection's, unless that has several (TriLM, Bonsai):
these stay in blocks, and the tensor beside them. Scales of rows that float16 has not are written as rows.py has them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.blocks import Blocks, read_blocks
from bitnet_cli.checkpoint.flavours import Flavour, TernaryWeight, has_one_scale, looks_ternary, read_ternary
from bitnet_cli.checkpoint.packing import block_tensor, scale_table, ternary_tensors
from bitnet_cli.checkpoint.rows import RowWeight, row_tensors
from bitnet_cli.checkpoint.stored import CHUNK_ELEMENTS, OpenFile, PartedFile, StoredTensor
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import TensorInfo, open_gguf
from bitnet_cli.gguf_file.types import PREFIXES, TensorType, row_bytes
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.layer_table import PROJECTIONS
from bitnet_cli.tensors.dequantise import FLOATS, READABLE, rows_as_float32
from bitnet_cli.ternary import i2_s_order
from bitnet_cli.ternary.layouts import LAYOUTS, TWOS, PackedTensor, block_of

DENSE = ("token_embd.weight", "output.weight")


class QuantisedTensor(NamedTuple):
    """A tensor of the input that is re-typed, of any type that is read."""

    info: TensorInfo
    file: OpenFile

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    def float32_chunks(self) -> Iterator[NDArray[np.float32]]:
        """All rows, about 4 MB at a time."""
        cols, rows = self.shape[-1], math.prod(self.shape[:-1])
        size, step = row_bytes(self.info.type, cols), max(1, CHUNK_ELEMENTS // cols)
        for start in range(0, rows, step):
            raw = self.file.read(self.info.offset + start * size, min(step, rows - start) * size)
            yield rows_as_float32(self.info.type, raw, cols)


class GGUFSource:
    """`rounded`, `kept` and `packed` are filled while the tensors are made.

    metadata       with types, as in the file
    rounded        names of projections that were not ternary
    kept, packed   numbers of projections that were ternary floats, and that were packed already
    doubled        names of projections with the value 2, which some types of ik_llama.cpp have and I2_S keeps
    several        number of projections with several scales, which stay in blocks
    by_row         number of projections with a scale for each row
    evidence       of the order of I2_S weights
    trailing       bytes after the last tensor
    files          paths: one, or the parts of a split model
    """

    def __init__(self, path: Path, i2_s_layout: str | None = None, ternarise: bool = False):
        """i2_s_layout: order of I2_S weights, i2_s_order.PUBLISHED or ARM; None: what the weights say, PUBLISHED where they say nothing.

        ternarise: round floats by absmean in any model, not only in those whose architecture says that they were trained for it.
        """
        with open_gguf(path) as gguf:
            self.evidence = i2_s_order.judge_file(gguf)
            self.metadata = gguf.typed_metadata
            self.architecture = gguf.require_str("general.architecture")
            self._tensors = gguf.tensors
            self.trailing = gguf.trailing
            self.files = [place.path for place in gguf.files]
            self._file = PartedFile(path, [(place.path, place.start) for place in gguf.files])
        self._may_round = ternarise or self.architecture.startswith("bitnet")
        self.arm = (i2_s_layout or self.evidence.order) == i2_s_order.ARM
        self.rounded: list[str] = []
        self.kept = 0
        self.packed = 0
        self.several = 0
        self.doubled: list[str] = []
        self.by_row = 0
        self._floats_differ: bool | None = None  # whether projections in float types have several scales

    def tensors(self, weight_type: TensorType, embedding_type: TensorType | None) -> list[OutputTensor]:
        """All tensors of the new file. UnsupportedError for what cannot be packed.

        weight_type: of the projections; embedding_type: of the embedding and the head, None leaves them as they are.
        """
        outputs: list[OutputTensor] = []
        projections = [name for name in self._tensors if _is_projection(name)]
        if not projections:
            raise BadFileError(self._file.path, "tensors", "no projection among them (blk.0.attn_q.weight ...)")
        scales = {_scale_name(name) for name in projections}
        for info in self._tensors.values():
            if info.name in scales:
                continue
            if info.name.endswith(".scale"):
                raise UnsupportedError(f"{self._file.path}: {info.name}: a scale of something that is no projection is not supported")
            if _is_projection(info.name):
                outputs += self._projection(info, weight_type)
            elif info.name in DENSE and embedding_type not in (None, info.type):
                assert embedding_type is not None
                outputs.append(OutputTensor(info.name, embedding_type, info.shape, self._retyped(info, embedding_type)))
            elif info.type is TensorType.IQ2_BN_UNSCALED:  # one number with IQ2_BN: beside that it could not be told from it
                raise UnsupportedError(f"{self._file.path}: {info.name}: IQ2_BN without scales of rows is read as projections only")
            else:
                outputs.append(OutputTensor(info.name, info.type, info.shape, self._copy(info)))
        return outputs

    def _stored(self, info: TensorInfo) -> StoredTensor:
        if info.type not in FLOATS:
            readable = ", ".join(FLOATS.values())
            raise UnsupportedError(f"{self._file.path}: {info.name}: type {info.type.name} cannot be re-typed; {readable} can")
        return StoredTensor(info.name, FLOATS[info.type], info.shape, info.offset, info.nbytes, self._file)

    def _copy(self, info: TensorInfo) -> Callable[[], NDArray[np.uint8]]:
        return lambda: self._file.read(info.offset, info.nbytes)

    def _retyped(self, info: TensorInfo, kind: TensorType) -> Callable[[], NDArray[np.uint8]]:
        if info.type not in READABLE:
            raise UnsupportedError(f"{self._file.path}: {info.name}: type {info.type.name} cannot be re-typed")
        source = QuantisedTensor(info, self._file)
        dense.require_blocks(source, kind)
        return lambda: dense.encode(source, kind)

    def _projection(self, info: TensorInfo, weight_type: TensorType) -> list[OutputTensor]:
        if len(info.shape) != 2:
            raise BadFileError(self._file.path, info.name, f"shape {list(info.shape)}, expected rows and columns")
        shape = (info.shape[0], info.shape[1])
        extra = self._extra_scale(_scale_name(info.name))
        if info.type in LAYOUTS:
            if shape[1] % block_of(info.type):  # I2_S only: of the others the reader knows the blocks
                reason = f"{info.type.name} with rows of {shape[1]} weights, not a multiple of {block_of(info.type)}"
                raise BadFileError(self._file.path, info.name, reason)
            # Read again when it is written, so that memory holds one at a time.
            packed = self._packed(info, shape)
            scales = packed.block_scales()
            if scales is None and packed.needs_groups():  # the value 2
                return self._in_blocks(info, weight_type, lambda size: self._packed(info, shape).in_blocks(size))
            if scales is not None:
                with np.errstate(over="ignore"):
                    halves = bool((scales.astype(np.float16) == scales).all())
                if info.type in PREFIXES and (weight_type is TensorType.IQ2_BN or not halves):
                    return self._rows_of_their_own(info, shape, weight_type)
                return self._in_blocks(info, weight_type, lambda size: self._packed(info, shape).in_blocks(size))
            return self._written(info, weight_type, lambda: self._unpacked(info, shape, weight_type))
        stored = self._stored(info)
        if self._floats_differ is None:  # at the first one only: it is read for this, and says enough to stop early
            ternary = looks_ternary(stored)
            self._require_ternary(stored, ternary)
            self._floats_differ = ternary and not has_one_scale(stored)
        if self._floats_differ:
            return self._in_blocks(info, weight_type, lambda size: read_blocks(stored, size, 1))
        return self._written(info, weight_type, lambda: self._from_floats(stored, shape, extra))

    def _in_blocks(self, info: TensorInfo, weight_type: TensorType, read: Blocks) -> list[OutputTensor]:
        name, shape = info.name.removesuffix(".weight"), (info.shape[0], info.shape[1])
        table = scale_table(shape, self._file.path, info.name, read)
        return self._with_several(info, block_tensor(name, shape, weight_type, (self._file.path, info.name), read, table))

    def _with_several(self, info: TensorInfo, packed: OutputTensor) -> list[OutputTensor]:
        """A projection with several scales; the tensor that multiplies them all is copied."""
        self._refuse_both(info)
        self.several += 1
        extra = self._tensors.get(_scale_name(info.name))
        return [packed] if extra is None else [packed, OutputTensor(extra.name, extra.type, extra.shape, self._copy(extra))]

    def _refuse_both(self, info: TensorInfo) -> None:
        if self._row_scales(_scale_name(info.name)) is not None:
            raise UnsupportedError(f"{self._file.path}: {info.name}: several scales in its blocks beside one a row are not supported")

    def _rows_of_their_own(self, info: TensorInfo, shape: tuple[int, int], weight_type: TensorType) -> list[OutputTensor]:
        """A type of ik_llama.cpp whose rows have different scales."""
        self._refuse_both(info)
        self.by_row += 1

        def read() -> RowWeight:
            found = self._packed(info, shape).several(strict=True)
            assert found is not None and found[1] is None  # rows have one scale each, and not all the same
            return TernaryWeight(*shape, np.float32(1), found[2]), found[0]

        return row_tensors(info.name.removesuffix(".weight"), shape, weight_type, (self._file.path, info.name), read)

    def _written(self, info: TensorInfo, weight_type: TensorType, read: Callable[[], TernaryWeight]) -> list[OutputTensor]:
        name, shape = info.name.removesuffix(".weight"), (info.shape[0], info.shape[1])
        if self._row_scales(_scale_name(info.name)) is not None:
            return self._by_rows(info, weight_type, read)
        return ternary_tensors(name, shape, weight_type, self._file.path, info.name, read)

    def _extra_scale(self, name: str) -> np.float32:
        """Value of a scale tensor; 1 where there is none."""
        info = self._tensors.get(name)
        if info is None or self._row_scales(name) is not None:
            return np.float32(1)
        if info.type not in FLOATS or info.shape != (1,):
            raise UnsupportedError(
                f"{self._file.path}: {name}: {info.type.name} {list(info.shape)}; scales of their own are floats, one a tensor or one a row"
            )
        return self._usable(rows_as_float32(info.type, self._file.read(info.offset, info.nbytes), 1)[0, 0], name)

    def _row_scales(self, name: str) -> NDArray[np.float32] | None:
        """Values of a scale tensor with one for each row of its projection (rows.py); None where it has another shape."""
        info, weight = self._tensors.get(name), self._tensors[f"{name.removesuffix('scale')}weight"]
        if info is None or info.type is not TensorType.F32 or info.shape != weight.shape[:1] or info.shape == (1,):
            return None
        scales = self._file.read(info.offset, info.nbytes).view("<f4").astype(np.float32)
        for scale in (scales.min(), scales.max()):
            self._usable(scale, name)
        return scales

    def _by_rows(self, info: TensorInfo, weight_type: TensorType, read: Callable[[], TernaryWeight]) -> list[OutputTensor]:
        scales, shape = self._row_scales(_scale_name(info.name)), (info.shape[0], info.shape[1])
        assert scales is not None
        self.by_row += 1

        def scaled() -> RowWeight:
            weight = read()
            return dataclasses.replace(weight, scale=np.float32(1)), scales * weight.scale

        return row_tensors(info.name.removesuffix(".weight"), shape, weight_type, (self._file.path, info.name), scaled)

    def _usable(self, scale: np.float32, name: str) -> np.float32:
        if not (np.isfinite(scale) and scale >= np.finfo(np.float32).tiny):
            raise BadFileError(self._file.path, name, f"scale is {scale}, expected a positive number")
        return scale

    def _packed(self, info: TensorInfo, shape: tuple[int, int]) -> PackedTensor:
        extra = self._extra_scale(_scale_name(info.name))
        return PackedTensor(info.type, shape, self._file.read(info.offset, info.nbytes), self._file.path, info.name, float(extra), self.arm)

    def _unpacked(self, info: TensorInfo, shape: tuple[int, int], weight_type: TensorType) -> TernaryWeight:
        keeps_codes = info.type in TWOS and weight_type in (TensorType.I2_S, TensorType.IQ2_BN)  # which mean the same when they are run
        scale, chunks = self._packed(info, shape).read(strict=not keeps_codes)
        self.packed += 1

        def told() -> Iterator[NDArray[np.int8]]:
            for chunk in chunks():
                if chunk.max(initial=0) > 1 and info.name not in self.doubled:
                    self.doubled.append(info.name)
                yield chunk

        return TernaryWeight(*shape, scale, told)

    def _require_ternary(self, stored: StoredTensor, ternary: bool) -> None:
        if not ternary and not self._may_round:
            raise UsageError(
                f"{self._file.path}: {stored.name}: plain floats, architecture {self.architecture}: nothing says that they were "
                "trained for ternary values; if they were, --ternarise rounds them"
            )

    def _from_floats(self, stored: StoredTensor, shape: tuple[int, int], extra: np.float32) -> TernaryWeight:
        ternary = looks_ternary(stored)
        self._require_ternary(stored, ternary)
        if ternary:
            self.kept += 1
        else:
            self.rounded.append(stored.name)
        weight = read_ternary(stored, None, shape, Flavour.DEQUANTISED if ternary else Flavour.MASTER)
        with np.errstate(over="ignore"):
            return TernaryWeight(*shape, self._usable(np.float32(weight.scale * extra), stored.name), weight.chunks)


def _scale_name(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def _is_projection(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in PROJECTIONS and parts[3] == "weight"
