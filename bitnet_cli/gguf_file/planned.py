"""Metadata and tensors that `write_gguf` would write -> the table that its file will have, for whoever judges files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli.gguf_file.metadata import Typed, Value
from bitnet_cli.gguf_file.parse import TensorInfo
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.gguf_file.types import nbytes
from bitnet_cli.gguf_file.writer import OutputTensor, typed_metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PlannedFile(TensorTable):
    """What `write_gguf` would write. `raw` makes a tensor to show it: for small ones. Offsets are all 0.

    scales   name of a projection that has several -> those of blocks of neighbours, (rows, blocks of a row), 0: no weights
    """

    def __init__(
        self,
        path: Path,
        architecture: str,
        metadata: Mapping[str, Value | Typed | Sequence[int] | Sequence[float]],
        tensors: Sequence[OutputTensor],
        scales: Mapping[str, NDArray[np.float16] | NDArray[np.float32]],
    ):
        self.path = path
        self.typed_metadata = typed_metadata(architecture, metadata)
        self.metadata = {key: entry.value for key, entry in self.typed_metadata.items()}
        self.tensors = {t.name: TensorInfo(t.name, t.type, t.shape, 0, nbytes(t.type, t.shape)) for t in tensors}
        self.unread = {}
        self.scales = scales
        self._made = {t.name: t.produce for t in tensors}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """As in `TensorTable`."""
        import numpy as np

        made: NDArray[Any] = np.ascontiguousarray(self._made[name]())
        return made.reshape(-1).view(np.uint8)
