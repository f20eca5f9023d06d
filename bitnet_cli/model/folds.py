"""`prism.hadamard.*`: weights that are folded with a Hadamard transform, and what must then be done to inputs and embedding rows.

    version, block_size n       1; a power of two (PrismML's files: 1,024)
    transform, axis             normalized-sylvester-walsh-hadamard, input-last-dimension: the only ones
    sign_mode                   identity, or explicit: sign_values has +1 or -1 for each of sign_widths, one vector after the other
    weight_names                take H (signs x) / sqrt(n) in the place of their input x, in blocks of n; H[i, j] = (-1)^popcount(i & j)
    inverse_weight_names        the embedding: a row that is looked up becomes signs (H row) / sqrt(n)
    gdn_v_grouped               of a kind of attention that no architecture here has

Source: PrismML's fork of llama.cpp and the metadata of its files. Whatever is not applied is refused by name: without the transform a model
writes nonsense.
"""

from typing import NamedTuple

import numpy as np
from bitnet_kernels.arrays import PROJECTIONS as COUNT
from bitnet_kernels.arrays import Folds
from bitnet_kernels.naive import folds as naive
from numpy.typing import NDArray

from bitnet_cli.activations import V2_A4, V2_A8
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.metadata import FLOATS
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.layer_table import PROJECTIONS, projection_shapes
from bitnet_cli.model.config import ModelConfig
from bitnet_cli.model.projections import weight_name

PREFIX = "prism.hadamard."
FIXED = {"transform": "normalized-sylvester-walsh-hadamard", "axis": "input-last-dimension"}
KNOWN = {
    *FIXED,
    "version",
    "block_size",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
    "gdn_v_grouped",
}
EMBEDDING = "token_embd.weight"
SHARED = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))  # projections of one input
Floats = NDArray[np.float32]


class Folding(NamedTuple):
    """What a file says."""

    block: int
    signs: dict[int, Floats]  # of each width of an input
    names: frozenset[str]  # tensors that take transformed inputs
    embedding: bool  # whether rows of the embedding are to be transformed back


def read_folding(file: TensorTable, c: ModelConfig) -> Folding | None:
    """None: nothing is folded. BadFileError: keys that are damaged. UnsupportedError: a fold that is not applied here."""
    found = [key.removeprefix(PREFIX) for key in file.metadata if key.startswith(PREFIX)]
    if not found:
        return None
    for name in found:
        if name not in KNOWN:
            raise UnsupportedError(f"{file.path}: {PREFIX}{name}: is not known, and may change what the weights mean")
    version = file.require_int(f"{PREFIX}version", 0, 1 << 31)
    if version != 1:
        raise UnsupportedError(f"{file.path}: {PREFIX}version: {version} is not supported; 1 is")
    for name, value in FIXED.items():
        if file.optional_str(PREFIX + name, value) != value:
            raise UnsupportedError(f"{file.path}: {PREFIX}{name}: '{file.require_str(PREFIX + name):.60}' is not supported; {value} is")
    if file.optional_bool(f"{PREFIX}gdn_v_grouped", False):
        raise UnsupportedError(f"{file.path}: {PREFIX}gdn_v_grouped: true is not supported")
    block = file.require_int(f"{PREFIX}block_size", 16, 1 << 16)
    if block & (block - 1):
        raise BadFileError(file.path, f"{PREFIX}block_size", f"is {block}, expected a power of two")
    inverse = file.optional_strings(f"{PREFIX}inverse_weight_names", [])
    for name in inverse:
        if name != EMBEDDING:
            raise UnsupportedError(f"{file.path}: {PREFIX}inverse_weight_names: {name:.60} is not supported; {EMBEDDING} is")
    folding = Folding(block, _signs(file), frozenset(file.require_strings(f"{PREFIX}weight_names")), bool(inverse))
    _check(file, c, folding)
    return folding


def _signs(file: TensorTable) -> dict[int, Floats]:
    if file.require_str(f"{PREFIX}sign_mode", ("identity", "explicit")) == "identity":
        return {}
    widths, key = file.require_ints(f"{PREFIX}sign_widths", 1, 1 << 22), f"{PREFIX}sign_values"
    count, kind = sum(widths), file.typed_metadata[key].item_type if key in file.typed_metadata else None
    if kind in FLOATS:
        values = np.array(file.require_floats(key, -1.0, 1.0, count), np.float32)
    else:
        values = np.array(file.require_ints(key, -1, 1, count), np.float32)
    if not (np.abs(values) == 1).all():
        raise BadFileError(file.path, key, "has values other than 1 and -1")
    return dict(zip(widths, np.split(values, np.cumsum(widths)[:-1]), strict=True))


def _check(file: TensorTable, c: ModelConfig, folding: Folding) -> None:
    where = f"{file.path}: {PREFIX}weight_names"
    if c.activation == "relu2" or c.trained_scheme in (V2_A8, V2_A4):
        raise UnsupportedError(f"{where}: folded weights are not supported with ReLU², nor with activations of type {V2_A8} or {V2_A4}")
    shapes, known, head = projection_shapes(c), set(), EMBEDDING if c.tied else "output.weight"
    for layer in range(c.layers):
        for together in SHARED:
            names = [weight_name(layer, name) for name in together]
            known.update(names)
            folded = [name for name in names if name in folding.names]
            if len(folded) not in (0, len(names)):
                rest = next(name for name in names if name not in folding.names)
                raise UnsupportedError(f"{where}: {folded[0]} is among them and {rest} is not: both have one input")
            if folded:
                _require_width(file, folding, folded[0], shapes[together[0]][1])
    for name in sorted(folding.names - known):
        if name != head:
            raise UnsupportedError(f"{where}: {name:.60}: no projection of this model, nor its head")
        _require_width(file, folding, name, c.hidden)
    if folding.embedding:
        _require_width(file, folding, EMBEDDING, c.hidden)


def _require_width(file: TensorTable, folding: Folding, name: str, width: int) -> None:
    if width % folding.block:
        raise UnsupportedError(f"{file.path}: {PREFIX}block_size: {folding.block} does not divide the {width} inputs of {name}")
    if folding.signs and width not in folding.signs:
        raise BadFileError(file.path, f"{PREFIX}sign_widths", f"has no {width}, the number of inputs of {name}")


def folds_of(file: TensorTable, c: ModelConfig) -> Folds | None:
    """Weights.folds. The file has passed checks.check_model."""
    folding = read_folding(file, c)
    if folding is None:
        return None
    shapes = projection_shapes(c)
    widths = sorted({cols for _, cols in shapes.values()} | {c.hidden})
    starts = dict(zip(widths, np.cumsum([0, *widths[:-1]]).tolist(), strict=True))
    at = np.full((c.layers + 1, COUNT), -1, np.int64)
    for layer in range(c.layers):
        for which, name in enumerate(PROJECTIONS):
            if weight_name(layer, name) in folding.names:
                at[layer, which] = starts[shapes[name][1]]
    if (EMBEDDING if c.tied else "output.weight") in folding.names:
        at[c.layers, 0] = starts[c.hidden]
    signs = [folding.signs.get(width, np.ones(width, np.float32)) for width in widths]
    return Folds(np.concatenate(signs).astype(np.float32), at, folding.block)


class EmbeddingFold(NamedTuple):
    """How rows of a folded embedding are transformed back."""

    signs: Floats
    block: int

    def unfold(self, rows: Floats) -> Floats:
        """(rows, hidden) float32 -> what the layers begin with."""
        return naive.unfold(self.signs, self.block, rows)


def embedding_fold(file: TensorTable, c: ModelConfig) -> EmbeddingFold | None:
    """None: rows of the embedding are as they are."""
    folding = read_folding(file, c)
    if folding is None or not folding.embedding:
        return None
    return EmbeddingFold(folding.signs.get(c.hidden, np.ones(c.hidden, np.float32)), folding.block)
