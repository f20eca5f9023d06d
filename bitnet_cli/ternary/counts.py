"""How many weights of a packed tensor are zero, and how many codes mean no ternary value: one look at each byte, nothing is unpacked.

In: bytes of whole blocks. What a byte counts for is a table of 256 entries, so a histogram of the bytes is enough; one of byte pairs takes
half the time (0.7 GB/s on one core, where adding up table[bytes] reaches 0.15). Layouts: the modules beside this one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.gguf_file.types import PREFIXES, TOGETHER, TensorType, row_bytes
from bitnet_cli.ternary import i2_s, iq1_bn, iq2_bn, pq2_0, ptq1_0, q1_0, q2_0, tq1_0, tq2_0

Table = NDArray[np.int64]


class Counts(NamedTuple):
    """weights: looked at; zeros: of them; invalid: codes or bytes that stand for no ternary value."""

    weights: int
    zeros: int
    invalid: int


NONE = Counts(0, 0, 0)


def _two_bits() -> tuple[Table, Table]:
    """Four codes a byte: 1 is zero, 3 is no ternary value."""
    codes = np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3
    return (codes == 1).sum(1).astype(np.int64), (codes == 3).sum(1).astype(np.int64)


def _trits(digits: int, last_first: bool = False) -> tuple[Table, Table]:
    """`digits` codes a byte, 1 is zero; 256 - 3^digits bytes are written by no packer (with four codes, the fifth is 0).

    last_first: as IQ1_BN has them, where the fifth code is the first that multiplying by 3 brings out; in TQ1_0 it is the last.
    """
    places = np.arange(5 - digits, 5) if last_first else np.arange(digits)
    byte = np.arange(256)[:, None] * 3**places % 256
    written = np.unique((np.arange(243) * 256 + 242) // 243)
    written = written[: 3**digits] if last_first else written[:: 3 ** (5 - digits)]
    return (byte * 3 // 256 == 1).sum(1).astype(np.int64), np.isin(np.arange(256), written, invert=True).astype(np.int64)


@dataclass(frozen=True)
class _Layout:
    """parts: (first byte in the block, byte after the last, zeros of a byte, invalid codes of a byte)."""

    weights: int  # in a block
    size: int  # bytes of a block
    parts: tuple[tuple[int, int, Table, Table], ...]


_TWO, _NONE = _two_bits(), np.zeros(256, np.int64)
_IQ2_BN = _Layout(iq2_bn.BLOCK, iq2_bn.BLOCK_BYTES, ((0, 16, *_TWO),))  # four rows interleaved are as many codes
_LAYOUTS = {
    TensorType.I2_S: _Layout(i2_s.BLOCK, i2_s.BLOCK // 4, ((0, i2_s.BLOCK // 4, *_TWO),)),
    TensorType.TQ2_0: _Layout(tq2_0.BLOCK, tq2_0.BLOCK_BYTES, ((0, 64, *_TWO),)),
    # Code 3 of these two is the weight 2, and Q1_0 has no zeros.
    TensorType.Q2_0: _Layout(q2_0.BLOCK, q2_0.BLOCK_BYTES, ((2, 18, _TWO[0], _NONE),)),
    TensorType.PQ2_0: _Layout(pq2_0.BLOCK, pq2_0.BLOCK_BYTES, ((2, 34, _TWO[0], _NONE),)),
    TensorType.Q1_0: _Layout(q1_0.BLOCK, q1_0.BLOCK_BYTES, ((2, 18, _NONE, _NONE),)),
    TensorType.PTQ1_0: _Layout(ptq1_0.BLOCK, ptq1_0.BLOCK_BYTES, ((0, 24, *_trits(5)), (24, 26, *_trits(4)))),
    TensorType.TQ1_0: _Layout(tq1_0.BLOCK, tq1_0.BLOCK_BYTES, ((0, 48, *_trits(5)), (48, 52, *_trits(4)))),
    TensorType.IQ1_BN: _Layout(iq1_bn.BLOCK, iq1_bn.BLOCK_BYTES, ((0, 12, *_trits(5, True)), (12, 13, *_trits(4, True)))),
    TensorType.IQ2_BN: _IQ2_BN,
    TensorType.IQ2_BN_R4: _IQ2_BN,
    TensorType.IQ2_BN_UNSCALED: _IQ2_BN,
}


def block_bytes(kind: TensorType, cols: int) -> int | None:
    """Bytes that belong together in a ternary type of rows of `cols` weights: a block, or the rows that lie together where rows have
    scales; None for any other type. I2_S: without the tensor's tail.
    """
    layout = _LAYOUTS.get(kind)
    if kind in PREFIXES:
        return row_bytes(kind, cols) * TOGETHER.get(kind, 1)
    return layout.size if layout else None


def count(kind: TensorType, data: NDArray[np.uint8], cols: int) -> Counts:
    """(n,) bytes, a whole number of `block_bytes` -> counts. Zeros are zero codes: where a scale is 0, more weights are."""
    layout = _LAYOUTS[kind]
    if kind in PREFIXES:
        together = TOGETHER.get(kind, 1)
        data = data.reshape(-1, row_bytes(kind, cols) * together)[:, PREFIXES[kind] * together :].reshape(-1)
    blocks = data.reshape(-1, layout.size)
    zeros = invalid = 0
    for first, end, zeros_of, invalid_of in layout.parts:
        part = np.ascontiguousarray(blocks[:, first:end]).reshape(-1)
        even = len(part) // 2 * 2
        pairs = np.bincount(part[:even].view("<u2"), minlength=1 << 16).reshape(256, 256)
        bytes_seen = pairs.sum(0) + pairs.sum(1)
        if even < len(part):
            bytes_seen[part[-1]] += 1
        zeros += int(bytes_seen @ zeros_of)
        invalid += int(bytes_seen @ invalid_of)
    return Counts(len(blocks) * layout.weights, zeros, invalid)
