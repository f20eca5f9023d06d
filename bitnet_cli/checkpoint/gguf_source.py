"""GGUF file with float, float16, bfloat16 or I2_S projections -> the tensors of the same model with I2_S projections.

Other converters write float tensors whose values are -s, 0, s already: sign and s are kept exactly. Anything else is taken as BitNet
master weights and rounded by absmean, and reported in `rounded`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.checkpoint import dense
from bitnet_cli.checkpoint.families import PROJECTIONS
from bitnet_cli.checkpoint.flavours import Flavour, looks_ternary, read_ternary
from bitnet_cli.checkpoint.stored import OpenFile, StoredTensor
from bitnet_cli.checkpoint.to_gguf import encode_i2_s, require_i2_s
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import TensorInfo, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.ternary import hf_packed, i2_s

FLOAT_TYPES = {TensorType.F32: "F32", TensorType.F16: "F16", TensorType.BF16: "BF16"}
DENSE = ("token_embd.weight", "output.weight")


class GGUFSource:
    """`rounded`, `kept` and `copied` are filled while the tensors are made.

    metadata       with types, as in the file
    rounded        names of projections that were not ternary
    kept, copied   numbers of projections that were ternary floats, and that were I2_S
    trailing       bytes after the last tensor
    """

    def __init__(self, path: Path):
        with open_gguf(path) as gguf:
            self.metadata = gguf.typed_metadata
            self.architecture = gguf.require_str("general.architecture")
            self._tensors = gguf.tensors
            self.trailing = gguf.trailing
        self._file = OpenFile(path)
        self.rounded: list[str] = []
        self.kept = 0
        self.copied = 0

    def packed(self, embedding_type: TensorType | None) -> list[OutputTensor]:
        """`embedding_type`: of the embedding and the head; None leaves them as they are. UnsupportedError for what cannot be packed."""
        outputs = []
        for info in self._tensors.values():
            kind, produce = info.type, self._copy(info)
            if info.name.endswith(".scale"):
                raise UnsupportedError(f"{self._file.path}: {info.name}: scales in tensors of their own are not supported")
            if _is_projection(info.name):
                kind, produce = TensorType.I2_S, self._projection(info)
            elif info.name in DENSE and embedding_type not in (None, info.type):
                assert embedding_type is not None
                kind, produce = embedding_type, self._retyped(info, embedding_type)
            outputs.append(OutputTensor(info.name, kind, info.shape, produce))
        if not any(_is_projection(name) for name in self._tensors):
            raise BadFileError(self._file.path, "tensors", "no projection among them (blk.0.attn_q.weight ...)")
        return outputs

    def _stored(self, info: TensorInfo) -> StoredTensor:
        if info.type not in FLOAT_TYPES:
            readable = ", ".join(FLOAT_TYPES.values())
            raise UnsupportedError(f"{self._file.path}: {info.name}: type {info.type.name} cannot be re-typed; {readable} can")
        return StoredTensor(info.name, FLOAT_TYPES[info.type], info.shape, info.offset, info.nbytes, self._file)

    def _copy(self, info: TensorInfo) -> Callable[[], NDArray[np.uint8]]:
        return lambda: self._file.read(info.offset, info.nbytes)

    def _retyped(self, info: TensorInfo, kind: TensorType) -> Callable[[], NDArray[np.uint8]]:
        stored = self._stored(info)
        dense.require_blocks(stored, kind)
        return lambda: dense.encode(stored, kind)

    def _projection(self, info: TensorInfo) -> Callable[[], NDArray[np.uint8]]:
        if len(info.shape) != 2:
            raise BadFileError(self._file.path, info.name, f"shape {list(info.shape)}, expected rows and columns")
        if info.type is TensorType.I2_S:
            return lambda: self._checked_i2_s(info)
        stored = self._stored(info)
        require_i2_s(stored, info.shape)
        return lambda: self._ternary(stored)

    def _checked_i2_s(self, info: TensorInfo) -> NDArray[np.uint8]:
        data = self._file.read(info.offset, info.nbytes)
        if info.shape[-1] % i2_s.BLOCK:
            raise BadFileError(self._file.path, info.name, f"I2_S with rows of {info.shape[-1]} weights, not a multiple of {i2_s.BLOCK}")
        if hf_packed.has_code_3(data[: -i2_s.TAIL]):
            raise BadFileError(self._file.path, info.name, "a 2-bit code is 3; only 0, 1 and 2 mean a ternary value")
        scale = data[-i2_s.TAIL :][:4].view("<f4")[0]
        if not (np.isfinite(scale) and scale > 0):
            raise BadFileError(self._file.path, info.name, f"scale is {scale}, expected a positive number")
        self.copied += 1
        return data

    def _ternary(self, stored: StoredTensor) -> NDArray[np.uint8]:
        rows, cols = stored.shape
        ternary = looks_ternary(stored)
        if ternary:
            self.kept += 1
        else:
            self.rounded.append(stored.name)
        return encode_i2_s(read_ternary(stored, None, (rows, cols), Flavour.DEQUANTISED if ternary else Flavour.MASTER))


def _is_projection(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in PROJECTIONS and parts[3] == "weight"
