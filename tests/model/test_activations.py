"""Activation schemes from the file to the logits: keys, refusals, `activations` of the decoder, and the formulas."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import arrays, control
from bitnet_kernels.naive import dense, norm
from bitnet_kernels.naive import step as naive_step
from numpy.typing import NDArray

from bitnet_cli.activations import SCHEMES, WANTED
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.checks import require_activations
from bitnet_cli.model.config import read_config
from bitnet_cli.model.engine import QUERY_TYPES
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import sizes_of
from bitnet_cli.options.shared import Activations, QueryType, SchemeType

from .builder import Model, random_model, write_model

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5]
ROUNDED = [name for name in SCHEMES if name != "float"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights with each scheme."""
    folder, model = tmp_path_factory.mktemp("schemes"), random_model(seed=5)
    paths = {name: write_model(folder / f"{name}.gguf", model, metadata={"activation_type": name}) for name in ROUNDED}
    return paths | {"silent": write_model(folder / "silent.gguf", model)}


def test_names_of_options_are_those_of_the_library() -> None:
    assert [kind.value for kind in Activations] == list(WANTED)
    assert [kind.value for kind in SchemeType] == ["auto", *SCHEMES]
    assert [kind.value for kind in QueryType] == list(QUERY_TYPES)


@pytest.mark.parametrize("scheme", ROUNDED)
def test_the_scheme_of_the_file_is_run(scheme: str, files: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    """And no other one. Token by token gives the same bits as all at once."""
    decoder = text_of(files[scheme])
    assert (decoder.engine.scheme, decoder.engine.note) == (scheme, None)
    states = decoder.states(IDS)
    decoder.rewind(0)
    assert np.array_equal(np.concatenate([decoder.states([token]) for token in IDS]), states)
    for other in ROUNDED:
        difference = np.abs(text_of(files[other]).states(IDS) - states).max() / np.abs(states).max()
        assert difference == 0 if other == scheme else difference > 1e-3, other


def test_a_file_that_says_nothing_is_int8(files: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    assert np.array_equal(text_of(files["silent"]).states(IDS), text_of(files["int8"]).states(IDS))


@pytest.mark.parametrize(
    ("trained", "wanted", "scheme"),
    [
        ("silent", "auto", "int8"),
        ("silent", "a8", "int8"),
        ("silent", "a4", "a4.8"),
        ("silent", "fp4", "a4.8-fp4"),
        ("a4.8", "a8", "int8"),
        ("a4.8-fp4", "a4", "a4.8"),
        ("v2-a4", "a8", "v2-a8"),
        ("v2-a8", "a4", "v2-a4"),
    ],
)
def test_another_scheme_on_demand(trained: str, wanted: str, scheme: str, files: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    """The logits of a file with that scheme, and a word about it unless the model was trained so."""
    decoder = text_of(files[trained], activations=wanted)
    assert decoder.engine.scheme == scheme
    assert np.array_equal(decoder.states(IDS), text_of(files[scheme]).states(IDS))
    if scheme == ("int8" if trained == "silent" else trained):
        assert decoder.engine.note is None
    else:
        assert decoder.engine.note is not None
        assert f"{scheme} are post-hoc" in decoder.engine.note


@pytest.mark.parametrize(("arch", "trained", "wanted"), [("bitnet", None, "a4"), ("bitnet", None, "fp4"), ("bitnet-b1.58", "v2-a8", "fp4")])
def test_refused_on_demand(arch: str, trained: str | None, wanted: str, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    activation = "silu" if arch == "bitnet" else "relu2"
    model = random_model(seed=1, activation=activation)
    path = write_model(tmp_path / "m.gguf", model, arch=arch, metadata={"activation_type": trained})
    with pytest.raises(UnsupportedError, match=f"activations {wanted}: .*not"):
        text_of(path, activations=wanted)
    assert text_of(path, activations="a8").engine.scheme in ("int8", "v2-a8")


@pytest.mark.slow
def test_queries_in_4_bits(files: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    """Another result, near the first, and near the twin's; none for a name that does not exist."""
    states = text_of(files["int8"]).states(IDS)
    rounded = text_of(files["int8"], query_type="q4").states(IDS)
    assert not np.array_equal(rounded, states)
    assert np.array_equal(rounded[0], states[0])  # one position: its weight is 1, whatever the query
    assert np.sqrt(np.square(rounded - states).mean() / np.square(states).mean()) < 0.2
    decoder = text_of(files["int8"], query_type="q4")
    w, s = decoder.engine.arrays.weights, decoder.engine.arrays.scratch
    words = control.new_control()
    words[[control.TOKENS, control.TEXTS, control.LAST_LAYER]] = len(IDS), 1, 2
    s.texts[0], s.tables[0] = control.Text(0, len(IDS), 0), np.arange(s.tables.shape[1])
    s.x[: len(IDS)] = dense.rows(w.head, int(w.head_offset[0]), arrays.HEAD_F16, 0, 260, 128)[IDS]
    naive_step.run_step(decoder.engine.arrays.sizes, w, decoder.engine.arrays.cache, s, words)
    at = int(w.norm_offsets[2, 0])
    twin = norm.rms_norm(s.x[: len(IDS)], w.norms[at : at + 128], 1e-5)
    assert np.abs(twin - rounded).max() < 1e-5
    with pytest.raises(UsageError, match="query type q5: expected f32 or q4"):
        text_of(files["int8"], query_type="q5")


def sizes(path: Path, **change: Any) -> arrays.Sizes:
    write_model(path, metadata=change)
    with open_gguf(path) as file:
        c = read_config(file)
        return sizes_of(file, c, c.trained_scheme)


def test_share_that_is_kept(tmp_path: Path) -> None:
    """Of 128 inputs of o."""
    assert sizes(tmp_path / "m.gguf", activation_type="a4.8").kept == 64
    assert sizes(tmp_path / "m.gguf", activation_type="a4.8", activation_top_k=0.25).kept == 32
    assert sizes(tmp_path / "m.gguf", activation_type="a4.8", activation_top_k=1e-6).kept == 1
    assert sizes(tmp_path / "m.gguf", activation_type="a4.8-fp4", activation_top_k=0.25).kept == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"activation_type": "int2"},
            UnsupportedError,
            "activation_type: 'int2' is not supported; supported are int8, float, a4.8, a4.8-fp4,",
        ),
        ({"activation_type": 4}, BadFileError, "activation_type"),
        ({"activation_top_k": 0.0}, BadFileError, "activation_top_k: is 0.0, expected more"),
        ({"activation_top_k": 1.5}, BadFileError, "activation_top_k"),
        ({"activation_top_k": "half"}, BadFileError, "activation_top_k"),
    ],
)
def test_refused_keys(change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        sizes(tmp_path / "m.gguf", **change)
    assert f"m.gguf: bitnet-b1.58.{message}" in str(caught.value)


def test_widths_that_the_transform_does_not_take(tmp_path: Path) -> None:
    with open_gguf(write_model(tmp_path / "m.gguf")) as file:
        odd = dataclasses.replace(read_config(file), feed_forward=5460)
        assert sizes_of(file, odd, "a4.8").hadamard == 0
        require_activations("m.gguf", odd)
        with pytest.raises(UnsupportedError, match="v2-a4: feed-forward width 5460 is not a multiple of 16"):
            require_activations("m.gguf", dataclasses.replace(odd, activation_type="v2-a4"))


def test_projections_see_what_the_scheme_says(tmp_path: Path) -> None:
    """The twin's projections against the formulas in float64, from the definitions of the papers."""
    model: Model = random_model(seed=3)
    path = write_model(tmp_path / "m.gguf", model)
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    with open_gguf(path) as file:
        c = read_config(file)
        z = {scheme: sizes_of(file, c, scheme) for scheme in ROUNDED}
        from bitnet_cli.model.weights import load_weights, rope_tables

        weights = load_weights(file, c, *rope_tables(file, c, 16))
        for which, name in ((arrays.Q, "attn_q"), (arrays.O, "attn_output")):
            matrix = model.ternary[f"blk.0.{name}"].astype(np.float64) * float(model.scales[f"blk.0.{name}"])
            for scheme in ROUNDED:
                got = naive_step._project(z[scheme], weights, 0, int(which), x, 128)
                want = rounded(x.astype(np.float64), scheme, name) @ matrix.T
                assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), (name, scheme)


def rounded(x: NDArray[np.float64], scheme: str, name: str) -> NDArray[np.float64]:
    """What a projection multiplies by, as numbers."""
    size, mean = np.abs(x).max(-1, keepdims=True), np.abs(x).mean(-1, keepdims=True)
    if name == "attn_output" and scheme.startswith("v2"):
        n = x.shape[-1]
        signs = np.array([[(i & j).bit_count() % 2 for j in range(n)] for i in range(n)])
        x = x @ (1 - 2 * signs) / np.sqrt(n)
        size, mean = np.abs(x).max(-1, keepdims=True), np.abs(x).mean(-1, keepdims=True)
    if scheme == "a4.8-fp4":
        levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        nearest = np.abs(np.abs(x / size * 6)[..., None] - levels).argmin(-1)
        return np.sign(x) * levels[nearest] * size / 6
    if scheme == "v2-a4" or (scheme == "a4.8" and name == "attn_q"):
        step = mean / np.sqrt(7)
        return np.clip(np.rint(x / step), -8, 7) * step
    if scheme == "a4.8":
        x = np.where(np.abs(x) >= np.sort(np.abs(x))[:, [x.shape[-1] // 2]], x, 0)
    return np.rint(x * 127 / size) * size / 127
