"""What does not run, decided in one place: the loader, `inspect`, `convert`, its dry run and `quantize` ask here.

    check_model     metadata, the table of tensors and single numbers: of a file, or of one that is to be written
    check_text      the tokenizer, and whether the model writes text or makes vectors
    check_plan      both, of a file that is to be written
    why_not         both, and the weights or a sample of them: what `inspect` says

A refusal is an error with the exit code and the line that `bitnet run` ends with: BadFileError for what is damaged, UnsupportedError for
what is sound and not run.
"""

from typing import NamedTuple

import numpy as np
from bitnet_kernels.kv_cache import cache_bytes

from bitnet_cli.activations import V2_A4, V2_A8
from bitnet_cli.errors import BitnetError, UnsupportedError, option
from bitnet_cli.gguf_file.parse import require_read
from bitnet_cli.gguf_file.planned import PlannedFile
from bitnet_cli.gguf_file.reader import GGUFFile, TensorType
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.machine.memory import available_bytes
from bitnet_cli.model.config import ACTIVATION_TYPE, NO_POOLING, NO_TEXT, ModelConfig, read_config
from bitnet_cli.model.folds import read_folding
from bitnet_cli.model.grouped import BLOCKED, examine_groups, has_grouped_head, has_groups, head_name, require_groups
from bitnet_cli.model.parts import Scales, require_movable
from bitnet_cli.model.projections import SAMPLE, examine, extra_scale, has_row_scales, i2_s_scale, infos_of, require_layout, scale_name
from bitnet_cli.model.weights import check_tensors, embedding_info, head_info, norm_names, norm_values, rope_factors
from bitnet_cli.ternary import i2_s_order
from bitnet_cli.ternary.layouts import rows_or_columns
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import silent_ids

DEFAULT_CONTEXT = 2048  # tokens
# Beginnings of tensors that are a part of a model: one that is not read would be arithmetic left out (a norm, more layers, experts).
# `.input_scale` is what other engines round activations by, in types that are not ours.
PARTS = ("blk.", "token_", "position_", "rope_f", "output", "cls.", "dense_", "per_layer_")


class Verdict(NamedTuple):
    """reason: None where it runs. sampled: only a sample of the weights was looked at."""

    reason: str | None
    sampled: bool = False


def check_model(file: TensorTable, evidence: i2_s_order.Evidence | None = None) -> ModelConfig:
    """The config of a file whose model runs, as far as that is known without its weights. BadFileError, UnsupportedError: it does not.

    evidence: of the order of I2_S weights, where it is known already.
    """
    require_read(file.path, file.unread)
    c = read_config(file)
    read_folding(file, c)
    for name in check_tensors(file, c):
        if name.endswith((".bias", ".scale")) or (name.startswith(PARTS) and not name.endswith(".input_scale")):
            raise UnsupportedError(f"{file.path}: tensor {name}: changes the result and is not supported by {c.architecture} here")
    for name in norm_names(c):
        norm_values(file, name)
    rope_factors(file, c)
    embedding_info(file)
    head_info(file)
    require_activations(str(file.path), c)
    infos = [info for layer in infos_of(file, c) for info in layer]
    for info in infos:
        require_layout(file, info)
        if has_row_scales(file, info.name) and c.activation == "relu2":
            raise UnsupportedError(f"{file.path}: tensor {scale_name(info.name)}: a scale a row is not supported with ReLU²")
    if isinstance(file, GGUFFile):
        for info in infos:
            if info.type is TensorType.I2_S:
                i2_s_scale(file, info)
            else:
                extra_scale(file, info.name)
        evidence = evidence or i2_s_order.judge_file(file)
        if evidence.order == i2_s_order.ARM:
            raise UnsupportedError(f"{file.path}: I2_S in an order that is not run: {evidence}; `bitnet quantize IN OUT i2_s` rewrites it")
    return c


def require_activations(path: str, c: ModelConfig) -> None:
    """UnsupportedError where the model lacks what its activation scheme needs. Papers: activations.SCHEMES."""
    if c.float_activations and c.activation == "relu2":
        raise UnsupportedError(f"{path}: {c.architecture}.{ACTIVATION_TYPE}: float activations are not supported with ReLU²")
    if c.trained_scheme in (V2_A8, V2_A4):
        for name, width in (("attention", c.inner), ("feed-forward", c.feed_forward)):
            if width % 16:
                raise UnsupportedError(
                    f"{path}: activations {c.trained_scheme}: {name} width {width} is not a multiple of 16, as the transform needs"
                )


def require_memory(c: ModelConfig, context: int, cache_type: str, weights: int = 0) -> None:
    """BitnetError where the KV cache of so many tokens does not fit into this machine's free memory. weights: bytes of `own_bytes`."""
    free, need = available_bytes(), cache_bytes(cache_type, c.layers, c.kv_heads, c.head_dim, context)
    if free is None or need + weights <= free:
        return
    told = f"a context of {context} tokens needs {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
    told += f", of which the weights take {weights / 2**30:.1f}" if weights else ""
    fits = max(0, free - weights) * context // need
    told += f"; use a smaller {option('context')} (up to {fits} tokens)" if fits else "; the model does not fit"
    if cache_type in ("f32", "f16"):
        told += f", or {option('cache_type')} q8: {cache_bytes('q8', c.layers, c.kv_heads, c.head_dim, context) / 2**30:.1f} GiB"
    raise BitnetError(told)


def own_bytes(file: TensorTable, c: ModelConfig) -> int:
    """Bytes that projections and head take beside the mapped file: layouts that kernels do not read in place are moved to memory."""
    infos = [info for layer in infos_of(file, c) for info in layer]
    moved = infos if any(info.type is not TensorType.I2_S for info in infos) else []
    head = [file.tensors[head_name(file)]] if has_grouped_head(file) else []
    return sum(max(info.shape[0] * info.shape[1] // 4, info.nbytes if info.type in BLOCKED else 0) for info in [*moved, *head])


def check_text(file: TensorTable, c: ModelConfig, *, embeds: bool = False) -> Tokenizer:
    """The tokenizer. BadFileError, UnsupportedError: it cannot be built, or the model makes vectors and writes no text.

    embeds: vectors are wanted; of a model that is not made for them too.
    """
    tokenizer = tokenizer_from_metadata(file.metadata, str(file.path), c.vocab)
    silent_ids(file.metadata, str(file.path), c.vocab)
    if c.pooling is not None and not embeds:
        raise UnsupportedError(f"{file.path}: {NO_TEXT}")
    return tokenizer


def check_plan(file: PlannedFile) -> None:
    """BadFileError, UnsupportedError: the file would not be run, nor make vectors."""
    c = read_config(file)
    check_text(file, c, embeds=True)
    check_model(file)
    for number, layer in enumerate(infos_of(file, c)):
        found = []
        for info in layer:
            table, one = file.scales.get(info.name), Scales(np.ones(info.shape[0], np.float32))
            split = None if table is None else rows_or_columns(table, info.shape[1] // table.shape[1])
            if table is not None and split is None:
                require_groups(str(file.path), c, infos_of(file, c))
                return
            found.append(one if split is None else Scales(*split))
        require_movable(str(file.path), c, number, found)


def why_not(file: GGUFFile, evidence: i2_s_order.Evidence | None = None, *, embeds: bool = False, full: bool = False) -> Verdict:
    """Whether `bitnet run` works on a file with its default options.

    evidence: as in `check_model`. embeds: whether `bitnet embed` does, without --pooling. full: read all weights, not a sample.
    """
    sampled = False
    try:
        c = read_config(file)  # in the order of opening.py, for a file with two faults
        check_text(file, c, embeds=embeds)
        if embeds and c.pooling is None:
            raise UnsupportedError(NO_POOLING)
        check_model(file, evidence)
        require_memory(c, min(DEFAULT_CONTEXT, c.context), "f16", own_bytes(file, c))
        sampled = not (examine_groups if has_groups(file, c, None if full else SAMPLE) else examine)(file, c, full)
    except BitnetError as error:
        return Verdict(str(error).removeprefix(f"{file.path}: "))
    return Verdict(None, sampled)
