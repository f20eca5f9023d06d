"""What a GGUF file says of itself before any weight is read: metadata and the table of tensors.

`GGUFFile` (reader.py) is one that lies on a disk, `PlannedFile` (planned.py) one that is to be written. Whoever judges what runs takes
either, so a conversion is judged before it is made by what judges the file when it is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_cli.gguf_file.metadata import TypedMetadata, Value
from bitnet_cli.gguf_file.parse import TensorInfo, UnreadTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TensorTable(TypedMetadata, ABC):
    """
    path       of the file
    metadata   key -> value, in the file's order
    tensors    name -> TensorInfo, in the file's order
    unread     name -> UnreadTensor, those of types that are not read
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    unread: dict[str, UnreadTensor]

    @abstractmethod
    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as they are in the file, (nbytes,) uint8."""
