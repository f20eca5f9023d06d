"""Sizes and names of tensor types, against the gguf package's own table where it has the type."""

import gguf
import pytest

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.types import BLOCKS, PREFIXES, TAILS, TOGETHER, UNREAD, TensorType, nbytes, tensor_type

OWN = {
    TensorType.I2_S,
    TensorType.Q1_0,
    TensorType.Q2_0,
    TensorType.PQ2_0,
    TensorType.PTQ1_0,
    *PREFIXES,
    TensorType.IQ2_BN_UNSCALED,
}  # ids that the gguf package does not know
UPSTREAM = sorted(set(TensorType) - OWN)


@pytest.mark.parametrize("kind", UPSTREAM)
def test_blocks_agree_with_gguf(kind: TensorType) -> None:
    upstream = gguf.GGMLQuantizationType(int(kind))
    assert upstream.name == kind.name
    assert gguf.GGML_QUANT_SIZES[upstream] == BLOCKS[kind]


def test_every_type_of_gguf_is_known() -> None:
    assert {int(t) for t in gguf.GGMLQuantizationType} <= {int(t) for t in TensorType} | set(UNREAD)
    assert not set(UNREAD) & {int(t) for t in TensorType}
    assert set(BLOCKS) == set(TensorType)


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [
        (TensorType.F32, (5,), 20),
        (TensorType.F16, (3, 5), 30),
        (TensorType.BF16, (1, 1, 1, 7), 14),
        (TensorType.Q8_0, (2, 64), 2 * 2 * 34),
        (TensorType.Q4_0, (1, 32), 18),
        (TensorType.Q6_K, (3, 512), 3 * 2 * 210),
        (TensorType.TQ1_0, (4, 256), 4 * 54),
        (TensorType.TQ2_0, (4, 512), 4 * 2 * 66),
        (TensorType.Q2_0, (4, 128), 4 * 2 * 18),
        (TensorType.Q1_0, (4, 256), 4 * 2 * 18),
        (TensorType.PQ2_0, (4, 256), 4 * 2 * 34),
        (TensorType.PTQ1_0, (4, 256), 4 * 2 * 28),
        (TensorType.I2_S, (2560, 6912), 2560 * 6912 // 4 + 32),
        (TensorType.I2_S, (3, 2, 128), 3 * 2 * 32 + 32),  # one tail a tensor, not one a matrix
        (TensorType.IQ1_BN, (3, 128), 3 * (2 + 2 * 13)),
        (TensorType.IQ2_BN, (2560, 6912), 2560 * (4 + 6912 // 4)),  # a scale a row
        (TensorType.IQ2_BN, (3, 5, 64), 15 * (4 + 16)),
        (TensorType.IQ2_BN_R4, (8, 192), 8 * (4 + 48)),
        (TensorType.IQ2_BN_UNSCALED, (3, 128), 3 * 32),
        (TensorType.F32, (2**33, 2**33), 2**68),  # 0 in 64 bits
    ],
)
def test_nbytes(kind: TensorType, shape: tuple[int, ...], size: int) -> None:
    assert nbytes(kind, shape) == size


def test_nbytes_of_numpy_integers_is_exact() -> None:
    np = pytest.importorskip("numpy")
    assert nbytes(TensorType.F32, tuple(np.array([2**33, 2**33]))) == 2**68


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (-4,), (-4, -4)])
def test_impossible_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dimensions of at least 1"):
        nbytes(TensorType.F32, shape)


@pytest.mark.parametrize("kind", [kind for kind in TensorType if BLOCKS[kind][0] > 1])
def test_rows_are_whole_blocks(kind: TensorType) -> None:
    weights = BLOCKS[kind][0]
    assert nbytes(kind, (12, weights)) == 12 * (PREFIXES.get(kind, 0) + BLOCKS[kind][1]) + TAILS.get(kind, 0)
    with pytest.raises(ValueError, match=f"row length {weights + 1} is not a multiple of the {weights}"):
        nbytes(kind, (weights, weights + 1))  # whole blocks in all, but not row by row


@pytest.mark.parametrize("shape", [(64,), (3, 64), (6, 64), (4, 2, 64)])
def test_rows_that_lie_together(shape: tuple[int, ...]) -> None:
    for kind, rows in TOGETHER.items():
        with pytest.raises(ValueError, match=f"rows are not a multiple of the {rows} that {kind.name} interleaves"):
            nbytes(kind, shape)


def test_ids() -> None:
    assert [tensor_type(int(kind), "f", "x") for kind in TensorType] == list(TensorType)


@pytest.mark.parametrize("number", sorted(UNREAD))
def test_known_but_not_read(number: int) -> None:
    with pytest.raises(UnsupportedError) as caught:
        tensor_type(number, "model.gguf", "tensor a")
    assert str(caught.value).startswith(f"model.gguf: tensor a: type {UNREAD[number]} ({number}) is not supported; supported: F32, ")


@pytest.mark.parametrize("number", [43, 100, 2**32 - 1])
def test_unknown(number: int) -> None:
    with pytest.raises(BadFileError, match=rf"^model\.gguf: tensor a: unknown tensor type {number} \(byte 99\)$"):
        tensor_type(number, "model.gguf", "tensor a", 99)
