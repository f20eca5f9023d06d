"""The order of I2_S weights: found in a trained model, left open for random weights, and never decided by chance."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.ternary import i2_s, i2_s_order
from bitnet_cli.ternary.i2_s_order import ARM, PUBLISHED, judge, judge_file


def test_groups_of_columns_that_change_places() -> None:
    """Of eight groups of 16 columns the first and the last stay."""
    raw = np.random.default_rng(0).integers(0, 256, 5 * 96).astype(np.uint8)
    published, arm = (i2_s.unpack_rows(raw, 384, arm=arm).reshape(-1, 8, 16) for arm in (False, True))
    assert np.array_equal(arm, published[:, [0, 2, 4, 6, 1, 3, 5, 7]])


def test_a_trained_model_tells(arm_model: Path) -> None:
    with open_gguf(EMBEDDED_MODEL) as gguf:
        published = judge_file(gguf)
    with open_gguf(arm_model) as gguf:
        arm = judge_file(gguf)
    assert published.order == PUBLISHED and published.sigmas < -2 * i2_s_order.SIGMAS
    assert arm.order == ARM and arm.sigmas > 2 * i2_s_order.SIGMAS
    assert published.published > 0.5 > 0.1 > published.arm and arm.arm > 0.5 > 0.1 > arm.published
    assert f"by {arm.arm:.2f} in the order 64/16" in str(arm)


def test_a_file_that_names_its_order_is_not_judged(arm_model: Path, tmp_path: Path) -> None:
    with open_gguf(arm_model) as gguf:
        tensors = [OutputTensor(i.name, i.type, i.shape, lambda name=i.name: gguf.raw(name)) for i in gguf.tensors.values()]  # type: ignore[misc]
        metadata = gguf.typed_metadata | {i2_s_order.KEY: PUBLISHED}
        write_gguf(tmp_path / "named.gguf", "bitnet-b1.58", metadata, tensors)
    with open_gguf(tmp_path / "named.gguf") as gguf:
        assert judge_file(gguf).order is None


def densities(rng: np.random.Generator, units: int) -> NDArray[np.int64]:
    """Counts with a long tail: the variance of a correlation does not depend on how they are spread."""
    return rng.gamma(0.5, 100, units).astype(np.int64)


def test_densities_without_a_relation_say_nothing() -> None:
    """2,000 models of 4 layers. The standard deviation of `sigmas` is at most 1 (of sizes, hence less than of the numbers themselves)."""
    rng = np.random.default_rng(1)
    found = np.array([judge([(densities(rng, 768), densities(rng, 768)) for _ in range(4)]).sigmas for _ in range(2000)])
    assert 0.3 < found.std() < 1.05 and np.abs(found).max() < 5 < i2_s_order.SIGMAS
    assert abs(found.mean()) < 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_either_sign_of_a_relation_tells(sign: int) -> None:
    rng = np.random.default_rng(2)
    columns = rng.integers(0, 1000, 6912)
    rows = sign * columns + rng.integers(0, 3000, 6912)
    evidence = judge([(columns, rows)])
    assert evidence.order == PUBLISHED and 0.25 < evidence.published < 0.4


def test_sigmas_by_their_definition() -> None:
    """The difference of both sizes in roots of the variance: each layer has 2 / (n - 1), n columns that move. 0 of no layers."""
    rng, arm = np.random.default_rng(3), np.arange(256).reshape(2, 8, 16)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    pairs, moved, published, other = [(densities(rng, 256), densities(rng, 256)) for _ in range(3)], arm != np.arange(256), 0.0, 0.0
    for columns, rows in pairs:
        published += abs(np.corrcoef(columns[moved], rows[moved])[0, 1])
        other += abs(np.corrcoef(columns[arm][moved], rows[moved])[0, 1])
    found = judge(pairs)
    assert (found.published, found.arm) == pytest.approx((published / 3, other / 3))
    assert found.sigmas == pytest.approx((other - published) / np.sqrt(3 * 2 / (moved.sum() - 1)))
    assert judge([]).sigmas == 0


def test_weights_that_are_counted() -> None:
    """All but zeros, of columns and of rows; more rows than a byte counts."""
    values = np.random.default_rng(4).integers(-1, 2, (300, 256)).astype(np.int8)
    values[:, 7] = 1
    raw = i2_s.pack_rows(values)
    assert np.array_equal(i2_s_order.column_counts(raw, 300, 256), (values != 0).sum(0))
    assert np.array_equal(i2_s_order.row_counts(raw, 300, 256), (values != 0).sum(1))


class Layers:
    """As a GGUFFile: of each layer a pair of I2_S matrices. It notes whose bytes are asked for."""

    def __init__(self, down: tuple[int, ...], up: tuple[int, ...], kind: TensorType = TensorType.I2_S, layers: int = 1):
        self.metadata: dict[str, Any] = {}
        each = [(f"blk.{i}.ffn_{part}.weight", shape) for i in range(layers) for part, shape in (("down", down), ("up", up))]
        self.tensors = {name: SimpleNamespace(name=name, shape=shape, type=kind) for name, shape in each}
        self.asked: list[str] = []

    def raw(self, name: str) -> NDArray[np.uint8]:
        self.asked.append(name)
        return i2_s.pack_rows(np.ones(self.tensors[name].shape, np.int8))


@pytest.mark.parametrize(
    ("down", "up"),
    [((256, 384), (256, 256)), ((256, 192), (192, 256)), ((200, 256), (256, 200)), ((256, 256, 1), (256, 256, 1)), ((256,), (256,))],
)
def test_matrices_that_are_not_looked_at(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    """They do not belong together, or are no whole blocks, or no matrices, or of another type."""
    for layers in (Layers(down, up), Layers((256, 256), (256, 256), TensorType.TQ2_0)):
        assert judge_file(cast(GGUFFile, layers)).sigmas == 0 and not layers.asked


@pytest.mark.parametrize(("layers", "expected"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (10, [0, 3, 6, 9])])
def test_layers_that_are_looked_at(layers: int, expected: list[int]) -> None:
    file = Layers((256, 384), (384, 256), layers=layers)
    judge_file(cast(GGUFFile, file))
    assert file.asked == [f"blk.{i}.ffn_{part}.weight" for i in expected for part in ("down", "up")]


def test_no_layers_or_constant_densities_say_nothing() -> None:
    assert judge([]).order is None
    assert judge([(np.full(256, 9), np.arange(256))]).order is None
