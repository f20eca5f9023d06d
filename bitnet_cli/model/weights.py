"""GGUF tensors -> the arrays that the kernels read.

I2_S rows and the head stay where they are, in the memory-mapped file; kernels find them by byte offset. Norms and scales, a few
thousand numbers, are copied; projections in other layouts are repacked (projections.py), and heads of types without a kernel re-coded
(recode.py). Every name, shape and type is checked before a kernel may touch a byte: kernels check nothing.
"""

from collections.abc import Iterator

import numpy as np
from bitnet_kernels import arrays
from bitnet_kernels.angles import angles
from numpy.typing import NDArray

from bitnet_cli.activations import A4_8, A4_8_FP4, INT8, V2_A4, V2_A8
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import GGUFFile, TensorInfo, TensorType
from bitnet_cli.gguf_file.table import TensorTable
from bitnet_cli.layer_table import BIASES, EVERY, LAYER, PROJECTIONS, QKV_BIASES, VECTORS, projection_shapes, shapes
from bitnet_cli.model.columns import columns_for
from bitnet_cli.model.config import ModelConfig, Rope
from bitnet_cli.model.folds import folds_of
from bitnet_cli.model.grouped import BLOCKED, has_grouped_head, has_groups, head_name, load_groups, load_head
from bitnet_cli.model.head import planes_for
from bitnet_cli.model.projections import load_projections, scale_name, weight_name
from bitnet_cli.model.recode import RECODED, recode_note, recoded
from bitnet_cli.tensors.dequantise import FLOATS, READABLE, rows_as_float32

ROPE_FACTORS = "rope_freqs.weight"
MIN_ROPE_FACTOR = 1e-6  # real ones are 1 to 32
HEAD_KINDS = {
    TensorType.F32: arrays.HEAD_F32,
    TensorType.F16: arrays.HEAD_F16,
    TensorType.Q8_0: arrays.HEAD_Q8_0,
    TensorType.Q4_0: arrays.HEAD_Q4_0,
    TensorType.Q6_K: arrays.HEAD_Q6_K,
    TensorType.Q4_K: arrays.HEAD_Q4_K,
    TensorType.BF16: arrays.HEAD_BF16,
}


# Place of each norm in arrays.Weights.norm_offsets. Norms of the inputs of O and DOWN stand where other models have their sub-norms.
PLACES = {
    "attn_norm": arrays.ATTENTION_NORM,
    "attn_sub_norm": arrays.ATTENTION_SUB_NORM,
    "ffn_norm": arrays.FFN_NORM,
    "ffn_sub_norm": arrays.FFN_SUB_NORM,
    "attn_q_norm_in": arrays.Q_NORM,
    "attn_k_norm_in": arrays.K_NORM,
    "attn_v_norm_in": arrays.V_NORM,
    "attn_output_norm_in": arrays.ATTENTION_SUB_NORM,
    "ffn_gate_norm_in": arrays.GATE_NORM,
    "ffn_up_norm_in": arrays.UP_NORM,
    "ffn_down_norm_in": arrays.FFN_SUB_NORM,
    "attn_q_norm": arrays.Q_HEAD_NORM,
    "attn_k_norm": arrays.K_HEAD_NORM,
    "post_attention_norm": arrays.ATTENTION_OUT_NORM,
    "post_ffw_norm": arrays.FFN_OUT_NORM,
}


def packed_shapes(c: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(rows, cols) of each of PROJECTIONS as they lie in memory: cols in whole blocks of 128."""
    return tuple((rows, arrays.packed_width(cols)) for rows, cols in projection_shapes(c).values())


def layer_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that each layer of a model has."""
    every = shapes(c)
    return {tensor.name: every[tensor.name] for tensor in LAYER if tensor.group == EVERY or tensor.group in c.has}


def expected_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the model must have."""
    yield "token_embd.weight", (c.vocab, c.hidden)
    yield "output_norm.weight", (c.hidden,)
    if not c.tied:
        yield "output.weight", (c.vocab, c.hidden)
    for layer in range(c.layers):
        for name, shape in layer_shapes(c).items():
            yield weight_name(layer, name), shape


def check_tensors(file: TensorTable, c: ModelConfig) -> list[str]:
    """BadFileError where a tensor is missing or has another shape; returns the names of tensors that the model does not use."""
    expected = dict(expected_shapes(c))
    missing = [name for name in expected if name not in file.tensors]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise BadFileError(file.path, "tensors", f"missing {', '.join(missing[:5])}{more}")
    for name, shape in expected.items():
        if file.tensors[name].shape != shape:
            raise BadFileError(file.path, f"tensor {name}", f"has shape {file.tensors[name].shape}, expected {shape}")
    read = {scale_name(weight_name(layer, name)) for layer in range(c.layers) for name in PROJECTIONS}
    if c.rope_pairs:
        read.add(ROPE_FACTORS)
    return [name for name in file.tensors if name not in expected and name not in read]


def rope_factors(file: TensorTable, c: ModelConfig) -> NDArray[np.float32] | None:
    """What rotations are divided by, (rotated / 2,) float32; None where the file has none (llama.cpp, src/models/llama.cpp)."""
    info = file.tensors.get(ROPE_FACTORS)
    if info is None or not c.rope_pairs:
        return None
    if info.type != TensorType.F32 or info.shape != (c.rotated // 2,):
        raise BadFileError(file.path, f"tensor {ROPE_FACTORS}", f"is {info.type.name} {info.shape}, expected F32 ({c.rotated // 2},)")
    factors = file.raw(ROPE_FACTORS).view("<f4").astype(np.float32)
    if not ((factors >= MIN_ROPE_FACTOR) & (factors <= 1 / MIN_ROPE_FACTOR)).all():
        raise BadFileError(file.path, f"tensor {ROPE_FACTORS}", "holds values that are not positive numbers of a sane size", info.offset)
    return factors


def rope_tables(file: GGUFFile, c: ModelConfig, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of every position: (context, rotated / 2), and as many rows again for each further kind of rotations that layers have."""
    factors, still = rope_factors(file, c), np.ones((context, c.rotated // 2), np.float32)
    tables = [
        (still, np.zeros_like(still)) if kind is None else angles(context, c.rotated, kind.theta, factors, kind.scaling)
        for kind in _ropes(c)
    ]
    cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return cos, sin


def _ropes(c: ModelConfig) -> list[Rope | None]:
    """Kinds of rotations, in the order of their tables: those of layers that see all positions come first."""
    return list(dict.fromkeys(kind.rope for kind in sorted(c.kinds, key=lambda kind: kind.window > 0)))


def norm_names(c: ModelConfig) -> Iterator[str]:
    """Names of all norms and biases, which `norm_values` reads."""
    for layer in range(c.layers):
        yield from (weight_name(layer, name) for name in layer_shapes(c) if name in VECTORS)
    yield "output_norm.weight"


def norm_values(file: TensorTable, name: str) -> NDArray[np.float32]:
    """(size,) float32. UnsupportedError: a type that is no float. BadFileError: values that are not finite."""
    info = file.tensors[name]
    if info.type not in FLOATS:
        kinds = ", ".join(kind.name for kind in FLOATS)
        raise UnsupportedError(f"{file.path}: tensor {name}: norms of type {info.type.name} are not read; {kinds} are")
    values: NDArray[np.float32] = rows_as_float32(info.type, file.raw(name), info.shape[0])[0]
    if not np.isfinite(values).all():
        raise BadFileError(file.path, f"tensor {name}", "holds values that are not finite", info.offset)
    return values


def load_weights(
    file: GGUFFile,
    c: ModelConfig,
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    silent: NDArray[np.int64] = arrays.NO_ROWS,
    threads: int = 1,
) -> arrays.Weights:
    """Describe the tensors of an open file, which checks.check_model has seen, to the kernels.

    cos, sin: of `rope_tables`; silent: rows as Engine.silent; threads: that re-code a head.
    """
    projections = (load_groups if has_groups(file, c) else load_projections)(file, c)
    norm_offsets = np.full((c.layers + 1, arrays.NORM_PLACES), -1, np.int64)
    norms: list[NDArray[np.float32]] = []
    size = 0
    for layer in range(c.layers):
        for name in filter(PLACES.__contains__, layer_shapes(c)):
            norm_offsets[layer, PLACES[name]] = size
            weights = norm_values(file, weight_name(layer, name))
            # Attention divides scores by sqrt(head_dim); another scale is put where every query passes.
            norms.append(weights * np.float32(c.query_factor) if PLACES[name] == arrays.Q_HEAD_NORM else weights)
            size += len(weights)
    norm_offsets[c.layers, 0] = size
    norms.append(norm_values(file, "output_norm.weight"))
    head, head_groups = head_info(file), None
    if has_grouped_head(file):
        matrix, head_groups = load_head(file)
    else:
        matrix = file.file_bytes() if head.type in HEAD_KINDS else recoded(file, head, threads)
    biases = [norm_values(file, weight_name(layer, name)) for layer in range(c.layers) for name in BIASES if QKV_BIASES in c.has]
    return arrays.Weights(
        packed=projections.packed,
        offsets=projections.offsets,
        scales=projections.scales,
        groups=projections.groups,
        biases=np.concatenate(biases).reshape(c.layers, -1) if biases else None,
        folds=folds_of(file, c),
        part_at=projections.parts.at,
        part_ends=projections.parts.ends,
        part_scales=projections.parts.scales,
        norms=np.concatenate(norms),
        norm_offsets=norm_offsets,
        head=matrix,
        head_groups=head_groups,
        head_offset=np.array([head.offset if head.type in HEAD_KINDS else 0], np.int64),
        head_file=np.array([-1], np.int64),
        cos=cos,
        sin=sin,
        rope_rows=np.array([len(cos) // len(_ropes(c)) * _ropes(c).index(kind.rope) for kind in c.kinds], np.int64),
        windows=np.array([kind.window or arrays.EVERYTHING for kind in c.kinds], np.int64),
        # A head that is re-coded has no pages of the file to give back: planes beside it would be as large again.
        planes=planes_for(HEAD_KINDS.get(head.type), c.vocab, c.hidden, silent),
        columns=columns_for(c),
        columns_built=np.zeros(1, np.int64),
    )


def _dense(file: TensorTable, name: str) -> TensorInfo:
    info = file.tensors[name]
    if info.type not in READABLE:
        kinds = ", ".join(kind.name for kind in READABLE)
        raise UnsupportedError(f"{file.path}: tensor {name}: type {info.type.name} is not run; {kinds} are")
    return info


def head_info(file: TensorTable) -> TensorInfo:
    """The matrix that makes logits: `output.weight`, or the embedding where they are tied."""
    return _dense(file, head_name(file))


def head_note(file: TensorTable) -> str | None:
    """What a user should know of a head that is re-coded; None where it is not, or cannot be, or is not there."""
    info = file.tensors.get(head_name(file))
    return recode_note(info) if info is not None and info.type in READABLE and info.type not in (*HEAD_KINDS, *BLOCKED) else None


def embedding_info(file: TensorTable) -> TensorInfo:
    """The matrix whose rows are the tokens' first states."""
    return _dense(file, "token_embd.weight")


def sizes_of(file: GGUFFile, c: ModelConfig, scheme: str = INT8, query_bits: int | None = None) -> arrays.Sizes:
    """The numbers that kernels need. scheme: a name of activations.SCHEMES, with which the model is run; query_bits: 4, or None."""
    return arrays.Sizes(
        layers=c.layers,
        hidden=c.hidden,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        feed_forward=c.feed_forward,
        vocab=c.vocab,
        activation={"relu2": arrays.RELU2, "silu": arrays.SILU, "gelu_pytorch_tanh": arrays.GELU}[c.activation],
        norm_eps=float(c.norm_eps),
        head_kind=HEAD_KINDS.get(head_info(file).type, RECODED),
        rope=arrays.ROPE_PAIRS if c.rope_pairs else arrays.ROPE_HALVES,
        rotated=None if c.rotated == c.head_dim else c.rotated,
        query_bits=query_bits,
        **_inputs(c, scheme),
    )


def _inputs(c: ModelConfig, scheme: str) -> dict[str, int]:
    """What a scheme does to the inputs of projections, as fields of arrays.Sizes. Papers: activations.SCHEMES."""
    if scheme == A4_8:
        return {"codes": arrays.INT4, "kept": max(1, round(c.top_k * c.inner))}
    if scheme == A4_8_FP4:
        return {"codes": arrays.FP4, "codes_o": arrays.FP4}
    if scheme == V2_A4:
        return {"codes": arrays.INT4, "codes_o": arrays.INT4, "codes_down": arrays.INT4, "hadamard": 1}
    return {"hadamard": 1} if scheme == V2_A8 else {}
