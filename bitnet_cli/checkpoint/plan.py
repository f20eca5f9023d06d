"""What a conversion will do, known before it begins: for `convert --dry-run`. No weights are read, no file is written.

In: an open checkpoint and the tensors and metadata that a writer would get. Out: `ConversionPlan`, plain values for a report or for JSON.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet_cli.checkpoint.flavours import Flavour
from bitnet_cli.checkpoint.folder import Checkpoint
from bitnet_cli.checkpoint.rows import BY_ROW
from bitnet_cli.checkpoint.stored import FLOATS, StoredTensor
from bitnet_cli.gguf_file.types import BLOCKS, TAILS, TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, gguf_size

EXACT_IN_F32 = ("F32", "F16", "BF16")
# BF16 has fewer digits than F16 but reaches further down: only values below F16's smallest normal number, 2^-14, can change.
BF16_TO_F16 = "exact from 6.1e-05 to 65504 in size; smaller values are rounded to multiples of 6e-08, larger ones refused"
DIGITS = {
    TensorType.F16: "rounded to 11 significant bits",
    TensorType.Q8_0: "rounded to 8 bits, a scale for every 32 weights",
    TensorType.Q6_K: "rounded to 6 bits, a scale for every 16 weights",
    TensorType.Q4_0: "rounded to 4 bits, a scale for every 32 weights",
}


@dataclass(frozen=True)
class Loss:
    """Tensors that the written file does not hold to the last bit."""

    tensors: tuple[str, ...]  # GGUF names; the checkpoint's where the tensor is left out
    stored: str  # type in the checkpoint
    written: str | None  # None: left out
    effect: str


@dataclass(frozen=True)
class ConversionPlan:
    family: str  # `architectures` of config.json
    architecture: str  # general.architecture
    activation: str
    activation_type: str  # of what enters a projection: a name of activations.SCHEMES
    flavour: str
    scale_rule: str
    parameters: int  # weights of all tensors
    tensors: dict[str, int]  # type -> number of tensors
    size: int  # bytes of the file
    losses: tuple[Loss, ...]


def make_plan(checkpoint: Checkpoint, architecture: str, metadata: Mapping[str, Any], tensors: Sequence[OutputTensor]) -> ConversionPlan:
    """`metadata`, `tensors`: exactly what `write_gguf` would get."""
    stored = checkpoint.dense | checkpoint.norms | {name: p.weight for name, p in checkpoint.projections.items()}
    ternary = {name for name, p in checkpoint.projections.items() if p.flavour is not None}
    own_scale = {tensor.name.removesuffix(".scale"): tensor.shape[0] for tensor in tensors if tensor.name.endswith(".scale")}
    found: dict[tuple[str, str | None, str], list[str]] = {}
    parameters = 0
    for tensor in tensors:
        name = tensor.name.removesuffix(".weight")
        if name not in stored:
            continue  # a scale in a tensor of its own
        parameters += _weights(tensor)
        if name in ternary:
            effect = _ternary_effect(checkpoint, tensor.type, name in own_scale, own_scale.get(name, 1) == tensor.shape[0])
        else:
            effect = _float_effect(stored[name], tensor.type)
        if effect is not None:
            found.setdefault((stored[name].dtype, tensor.type.name, effect), []).append(tensor.name)
    for name in checkpoint.dropped:
        reason = "left out: a tied head is the embedding" if name == "lm_head.weight" else "left out: every runtime computes it"
        found.setdefault(("", None, reason), []).append(name)
    return ConversionPlan(
        family=checkpoint.config.family.architecture,
        architecture=architecture,
        activation=checkpoint.config.activation,
        activation_type=checkpoint.activation_type,
        flavour=checkpoint.flavour.value,
        scale_rule=checkpoint.flavour.scale_rule,
        parameters=parameters,
        tensors=dict(Counter(tensor.type.name for tensor in tensors).most_common()),
        size=gguf_size(architecture, metadata, tensors),
        losses=tuple(Loss(tuple(names), stored, written, effect) for (stored, written, effect), names in found.items()),
    )


def _weights(tensor: OutputTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _ternary_effect(checkpoint: Checkpoint, kind: TensorType, own_scale: bool, one_a_row: bool) -> str | None:
    """Packed types hold -1, 0, 1 and the scale exactly; float types hold the product of both, unless the scale is a tensor of its own."""
    rounded = None
    if checkpoint.flavour in (Flavour.ONLINE, Flavour.MASTER, Flavour.MASTER_ROWS, Flavour.MASTER_GROUPS):
        rounded = f"rounded to -s, 0, s with s = {checkpoint.flavour.scale_rule}"
        rounded += "; nothing says that the model was trained for that" if checkpoint.assumed_master else ", as in training"
    if checkpoint.flavour in BY_ROW and not one_a_row and kind is not TensorType.IQ2_BN:
        return f"{rounded}; s {DIGITS[TensorType.F16]}" if rounded else f"the scale of each row is {DIGITS[TensorType.F16]}"
    if not own_scale and BLOCKS[kind][0] == 1 and kind is not TensorType.F32 and kind not in TAILS:
        return f"{rounded}; s {DIGITS[TensorType.F16]}" if rounded else f"the scale is {DIGITS[TensorType.F16]}"
    return rounded


def _float_effect(tensor: StoredTensor, kind: TensorType) -> str | None:
    if kind.name == tensor.dtype or (kind is TensorType.F32 and tensor.dtype in EXACT_IN_F32):
        return None
    if kind is TensorType.F16 and tensor.dtype == "BF16":
        return BF16_TO_F16
    if kind is TensorType.F32:
        return "rounded to 24 significant bits"
    assert tensor.dtype in FLOATS
    return DIGITS.get(kind, f"rounded to {kind.name}")
