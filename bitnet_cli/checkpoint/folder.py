"""Hugging Face folder -> Checkpoint: config, flavour, and the tensors by GGUF name, each with the shape that the config gives it.

Everything that can be refused without reading weights is refused here, before an output file exists.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet_cli.activations import FLOAT, INT8
from bitnet_cli.checkpoint.as_stored import as_stored
from bitnet_cli.checkpoint.blocks import Rows, Table, read_blocks, round_blocks, table_of
from bitnet_cli.checkpoint.config import FolderConfig, is_skipped, read_config
from bitnet_cli.checkpoint.families import IGNORED, with_input_norms
from bitnet_cli.checkpoint.flavours import BY_BLOCK, Flavour, has_one_scale, is_packed, looks_ternary
from bitnet_cli.checkpoint.packing import FINEST, scale_table
from bitnet_cli.checkpoint.pooling import POOLING_FILE
from bitnet_cli.checkpoint.rows import rows_have_one_scale
from bitnet_cli.checkpoint.shards import read_tensors, refuse_pickle
from bitnet_cli.checkpoint.stored import StoredTensor
from bitnet_cli.checkpoint.tokenizer import TOKENIZER_FILES
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.layer_table import PROJECTIONS, VECTORS, file_name, projection_shapes, shapes
from bitnet_cli.ternary.layouts import rows_or_columns


@dataclass(frozen=True)
class Projection:
    """A linear layer. `flavour` None: kept in float (`modules_to_not_convert`)."""

    shape: tuple[int, int]  # rows (outputs), cols (inputs)
    weight: StoredTensor
    scale: StoredTensor | None
    flavour: Flavour | None
    scales: Table | None = None  # of BY_BLOCK: packing.scale_table, rows as in the checkpoint
    group: int = 0  # of Flavour.MASTER_GROUPS: weights that share a scale

    def blocks(self, size: int, rows: int = 1) -> Iterator[Rows]:
        """Of BY_BLOCK: all rows, scales for each `size` weights. rows: chunks are a multiple of it."""
        return round_blocks(self.weight, self.group, size, rows) if self.group else read_blocks(self.weight, size, rows)


@dataclass(frozen=True)
class Checkpoint:
    """GGUF names, without `.weight`, in the order of the written file: embedding, layers, final norm, head."""

    folder: Path
    config: FolderConfig
    flavour: Flavour
    dense: dict[str, StoredTensor]  # token_embd, output: (vocab_size, hidden)
    norms: dict[str, StoredTensor]  # and biases: 1-dimensional
    projections: dict[str, Projection]
    order: tuple[str, ...] = ()  # all names, as the written file has them
    dropped: tuple[str, ...] = ()  # tensors that the written file does without: buffers, a copy of a tied embedding
    activation_type: str = INT8  # a name of activations.SCHEMES
    group: int = 0  # of Flavour.MASTER_GROUPS: weights that share a scale

    @property
    def assumed_master(self) -> bool:
        """Whether only the caller says that these floats are BitNet master weights; nothing in the folder does."""
        return self.flavour in (Flavour.MASTER, Flavour.MASTER_ROWS, Flavour.MASTER_GROUPS) and not _is_master(self.config, self.order)

    @property
    def files(self) -> list[Path]:
        """What the conversion reads, as far as it exists: none of it may be the output."""
        stored = [*self.dense.values(), *self.norms.values(), *(p.weight for p in self.projections.values())]
        others = (POOLING_FILE, *TOKENIZER_FILES)
        return [self.config.path, *(self.folder / name for name in others), *dict.fromkeys(t.path for t in stored)]


def open_checkpoint(
    folder: Path, *, float_is_master: bool = False, by_row: bool = False, group: int = 0, activations: str = "auto"
) -> Checkpoint:
    """`activations`: a name of activations.SCHEMES, or `auto`: as config.json says; where it says nothing, float where a row has several
    scales, which so far only models have that are ternary in their weights only, else int8.

    `float_is_master`: treat float weights without a quantization_config as BitNet master weights (`--ternarise`).
    `by_row`: such weights have a scale for each row (`--ternarise-by row`); `group`: for so many neighbours of a row (`--group`).

    Raises UsageError where that has to be said and is not, BadFileError and UnsupportedError for what the folder holds.
    """
    if not folder.is_dir():
        refuse_pickle(folder)
        raise UsageError(f"{folder}: " + ("not a folder; give the folder with config.json" if folder.exists() else "no such folder"))
    config = read_config(folder)
    tensors = read_tensors(folder)
    config = as_stored(config, tensors.keys())
    names = _source_names(config, tensors)
    _refuse_extra(tensors, names, config)
    if missing := [name for name in names if name not in tensors]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BadFileError(folder, "tensors", f"missing: {', '.join(missing[:5])}{more}")
    flavour = _flavour(tensors, names, config, float_is_master or by_row or group > 0 or _is_master(config, tuple(names.values())))
    if by_row or group:
        wanted, there = (Flavour.MASTER_ROWS, Flavour.ROWS) if by_row else (Flavour.MASTER_GROUPS, Flavour.GROUPS)
        if flavour not in (Flavour.MASTER, there):
            option = "--ternarise-by row" if by_row else "--group"
            raise UsageError(f"{folder}: {option} is for float master weights; these are flavour {flavour.value}")
        flavour = wanted if flavour is Flavour.MASTER else flavour
    scheme = _scheme(config, flavour) if activations == "auto" else activations
    used = set(names) | {f"{name}_scale" for name in names}
    checkpoint = Checkpoint(folder, config, flavour, {}, {}, {}, tuple(names.values()), tuple(sorted(tensors.keys() - used)), scheme, group)
    for name, target in names.items():
        _place(checkpoint, name, target, tensors)
    return checkpoint


def _scheme(config: FolderConfig, flavour: Flavour) -> str:
    said = config.quantization.activation_type if config.quantization else None
    return said or (FLOAT if flavour is Flavour.SEVERAL else INT8)


def _source_names(config: FolderConfig, tensors: dict[str, StoredTensor]) -> dict[str, str]:
    """Checkpoint name -> GGUF name without `.weight`, in file order."""
    layer, prefix = config.family.layer, "model."
    if config.family.base and "model.embed_tokens.weight" not in tensors:
        prefix = ""
    if config.family.input_norms and any(name.endswith("_proj.norm.weight") for name in tensors):
        layer = with_input_norms(layer)
    names = {f"{prefix}embed_tokens.weight": "token_embd"}
    for n in range(config.layers):
        names |= {file_name(f"{prefix}layers.{n}.{source}"): f"blk.{n}.{target}" for source, target in layer.items()}
    names[f"{prefix}norm.weight"] = "output_norm"
    if not config.tied:
        names["lm_head.weight"] = "output"
    return names


def _is_master(config: FolderConfig, order: tuple[str, ...]) -> bool:
    """Whether the family, or norms that only BitNet models have, say that float weights are master weights."""
    return config.family.float_is_master or any(target.endswith("_norm_in") for target in order)


def _kind(target: str) -> str:
    return target.split(".", 2)[-1]


def _refuse_extra(tensors: dict[str, StoredTensor], names: dict[str, str], config: FolderConfig) -> None:
    """A tensor that nothing below reads would be arithmetic left out: biases, norms inside projections, more layers than the config's."""
    known = set(names) | {f"{name}_scale" for name, target in names.items() if _kind(target) in PROJECTIONS}
    if config.tied:
        known.add("lm_head.weight")  # a copy of the embedding; transformers ties it whatever it holds
    for name in sorted(tensors.keys() - known):
        if not name.endswith(IGNORED):
            what = {"bias": "biases are", "rms_norm.weight": "norms inside projections are"}
            reason = next((f"{text} not supported" for end, text in what.items() if name.endswith(f".{end}")), "not a tensor of this model")
            raise UnsupportedError(f"{tensors[name].path}: {name}: {reason} ({config.family.architecture}, {config.layers} layers)")


def _flavour(tensors: dict[str, StoredTensor], names: dict[str, str], config: FolderConfig, float_is_master: bool) -> Flavour:
    """From the config and the first projection that is not skipped; `_place` then holds every other projection to it."""
    name = next((n for n, t in names.items() if _kind(t) in PROJECTIONS and not _skipped(n, config)), None)
    if name is None:
        raise UnsupportedError(f"{config.path}: modules_to_not_convert: keeps every projection in float, so nothing here is ternary")
    weight, quantization = tensors[name], config.quantization
    multiply = quantization is not None and quantization.linear_class == "autobitlinear"
    if f"{name}_scale" in tensors:
        if quantization is None:
            raise BadFileError(config.path, "quantization_config", f"missing, but {name}_scale is here: multiply or divide by it?")
        if weight.dtype == "U8":
            return Flavour.PACKED_MULTIPLY if multiply else Flavour.PACKED_DIVIDE
        return Flavour.UNPACKED_MULTIPLY if multiply else Flavour.UNPACKED_DIVIDE
    if not weight.is_float:
        raise BadFileError(weight.path, name, f"dtype {weight.dtype} without {name}_scale")
    if quantization is not None:
        if multiply and quantization.mode == "online":
            return Flavour.ONLINE
        raise BadFileError(config.path, "quantization_config", f"says packed weights, but {name}_scale is missing")
    if looks_ternary(weight):
        return _dequantised(tensors, names, config)
    if float_is_master:
        return Flavour.MASTER
    raise UsageError(
        f"{config.path}: quantization_config: missing, and the weights are plain floats: nothing says that they were trained for "
        "ternary values; if they were, --ternarise rounds them, with one scale a tensor (BitNet), --ternarise-by row (axolotl), or "
        "--group 128 (Bonsai)"
    )


def _dequantised(tensors: dict[str, StoredTensor], names: dict[str, str], config: FolderConfig) -> Flavour:
    """One scale a tensor, a row, or a block: what all projections have. Those of one scale are read whole, 4 GB in some seconds.

    Scales of blocks that differ by row alone or by column alone are shares of a matrix (TriLM), others are scales of groups (Bonsai).
    """
    chosen = [tensors[name] for name, target in names.items() if _kind(target) in PROJECTIONS and not _skipped(name, config)]
    floats = [tensor for tensor in chosen if tensor.is_float and len(tensor.shape) == 2]  # `_place` refuses the others
    if all(map(has_one_scale, floats)):
        return Flavour.DEQUANTISED
    if all(map(rows_have_one_scale, floats)):
        return Flavour.ROWS
    for tensor in floats:
        if tensor.shape[1] % FINEST == 0:
            scales = table_of(read_blocks(tensor, FINEST, 1)).scales
            if rows_or_columns(scales, FINEST) is None:
                return Flavour.GROUPS
    return Flavour.SEVERAL


def _skipped(name: str, config: FolderConfig) -> bool:
    return is_skipped(name.removesuffix(".weight"), config)


def _place(checkpoint: Checkpoint, name: str, target: str, tensors: dict[str, StoredTensor]) -> None:
    """Check one tensor's type and shape, and file it under its GGUF name."""
    config, weight, kind = checkpoint.config, tensors[name], _kind(target)
    weight.require_readable()
    if kind in PROJECTIONS:
        checkpoint.projections[target] = _projection(name, target, tensors, checkpoint)
        return
    if kind in VECTORS or kind == "output_norm":
        _require_float(weight, shapes(config).get(kind, (config.hidden,)))
        checkpoint.norms[target] = weight
        return
    if weight.dtype == "U8" or (checkpoint.flavour is Flavour.ONLINE and not _head_is_float(config)):
        raise UnsupportedError(f"{weight.path}: {name}: a ternary head or embedding is not supported")
    _require_float(weight, (config.vocab_size, config.hidden))
    checkpoint.dense[target] = weight


def _head_is_float(config: FolderConfig) -> bool:
    """transformers leaves the head alone when modules_to_not_convert is null; when it is a list, even an empty one, only what it names."""
    return config.quantization is None or config.quantization.skipped is None or is_skipped("lm_head", config)


def _projection(name: str, target: str, tensors: dict[str, StoredTensor], checkpoint: Checkpoint) -> Projection:
    weight, scale, shape = tensors[name], tensors.get(f"{name}_scale"), projection_shapes(checkpoint.config)[_kind(target)]
    if _skipped(name, checkpoint.config):
        _require_float(weight, shape)
        return Projection(shape, weight, None, None)
    flavour = checkpoint.flavour
    if (scale is not None) != flavour.has_stored_scale:
        raise BadFileError(weight.path, f"{name}_scale", "missing" if scale is None else "here, though other projections have none")
    if scale is not None and not scale.is_float:
        raise BadFileError(scale.path, scale.name, f"dtype {scale.dtype}, expected a float")
    if flavour in (Flavour.PACKED_MULTIPLY, Flavour.PACKED_DIVIDE):
        if not is_packed(weight, shape):
            expected = f"U8 {[shape[0] / 4, shape[1]]}" if shape[0] % 4 else f"U8 {[shape[0] // 4, shape[1]]}"
            raise BadFileError(weight.path, name, f"{weight.dtype} {list(weight.shape)}, expected {expected}: four weights a byte")
    elif not (weight.dtype == "I8" and flavour.has_stored_scale and weight.shape == shape):
        _require_float(weight, shape)
    if flavour not in BY_BLOCK:
        return Projection(shape, weight, scale, flavour)
    found = Projection(shape, weight, None, flavour, group=checkpoint.group if flavour is Flavour.MASTER_GROUPS else 0)
    if found.group and shape[1] % found.group:
        raise UsageError(f"{weight.path}: {name}: --group {found.group} does not divide rows of {shape[1]} weights")
    return dataclasses.replace(found, scales=scale_table(shape, weight.path, name, found.blocks))


def _require_float(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if not tensor.is_float:
        raise BadFileError(tensor.path, tensor.name, f"dtype {tensor.dtype}, expected a float")
    if tensor.shape != shape:
        raise BadFileError(tensor.path, tensor.name, f"shape {list(tensor.shape)}, expected {list(shape)} from config.json")
