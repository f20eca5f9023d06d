"""GGUF metadata -> how rotations are scaled: none, linear or YaRN. Anything else is refused by name.

Keys are `<arch>.rope.scaling.<name>`. llama.cpp (src/llama-model.cpp, src/llama-context.cpp) takes a factor without a type as linear, 0 as
no factor, and multiplies cos and sin by `attn_factor` whatever the type; YaRN's own 0.1 ln(factor) + 1 comes beside it. Its converter
writes a config.json's `attention_factor`, which stands in the place of that number, as `yarn_attn_factor`, and `yarn_beta_fast`,
`yarn_beta_slow`; its runtime reads these in few architectures, and so leaves numbers of the model out that are applied here.
`yarn_truncate` is this package's: false leaves the ends of YaRN's range as they are (transformers, `truncate`).
"""

import math

from bitnet_kernels.angles import UNSCALED, Scaling, yarn_amplitude

from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.table import TensorTable

TYPES = ("none", "default", "linear", "yarn")  # the second is config.json's word for the first
FACTORS = (1e-3, 1e6)
TURNS = (1e-3, 1e6)


def read_scaling(file: TensorTable, arch: str, context: int, theta: float) -> Scaling:
    """Of the layers that see all positions. context: tokens that the model was trained for; theta: base of its frequencies.

    BadFileError: a number out of range; UnsupportedError: another type, or numbers that only other types have.
    """
    prefix = f"{arch}.rope.scaling."
    kind = file.optional_str(f"{prefix}type", "linear")
    if kind not in TYPES:
        raise UnsupportedError(f"{file.path}: {prefix}type: '{kind:.40}' is not supported; supported are {', '.join(TYPES)}")
    factor = _factor(file, arch)
    amplitude = file.optional_float(f"{prefix}attn_factor", 1e-3, 1e3, 1.0)
    _refuse_others(file, prefix, kind)
    if kind != "yarn":
        return UNSCALED._replace(factor=1.0 if kind in ("none", "default") else factor, amplitude=amplitude)
    if theta == 1.0:
        raise BadFileError(file.path, f"{arch}.rope.freq_base", "is 1.0, expected more for YaRN, which orders rotations by their length")
    return Scaling(
        factor,
        file.optional_int(f"{prefix}original_context_length", 1, 1 << 30, context),
        file.optional_float(f"{prefix}yarn_beta_fast", *TURNS, 32.0),
        file.optional_float(f"{prefix}yarn_beta_slow", *TURNS, 1.0),
        file.optional_bool(f"{prefix}yarn_truncate", True),
        _yarn_amplitude(file, prefix, factor, amplitude),
    )


def _factor(file: TensorTable, arch: str) -> float:
    """Of `rope.scaling.factor`, or `rope.scale_linear` of older files."""
    for key in (f"{arch}.rope.scaling.factor", f"{arch}.rope.scale_linear"):
        factor = file.optional_float(key, 0.0, FACTORS[1], None)
        if factor is not None:
            return file.require_float(key, *FACTORS) if factor else 1.0
    return 1.0


def _yarn_amplitude(file: TensorTable, prefix: str, factor: float, beside: float) -> float:
    """beside: value of `attn_factor`, which multiplies the usual amplitude; `yarn_attn_factor` is all of it."""
    usual = yarn_amplitude(factor) * beside
    key = f"{prefix}yarn_attn_factor"
    own = file.optional_float(key, 1e-3, 1e3, None)
    if own is None:
        return usual
    if beside != 1.0 and not math.isclose(own, usual, rel_tol=1e-5):
        raise UnsupportedError(f"{file.path}: {key}: {own:g} and {prefix}attn_factor, which makes {usual:g}, do not agree")
    return own


def _refuse_others(file: TensorTable, prefix: str, kind: str) -> None:
    """What would change the rotations and is not applied."""
    neutral: dict[str, tuple[float, ...]] = {"alpha": (0.0, 1.0)}
    if kind == "yarn":
        neutral |= {"yarn_ext_factor": (1.0, -1.0), "yarn_log_multiplier": (0.0,)}
    else:
        neutral |= {"yarn_ext_factor": (0.0, -1.0), "yarn_attn_factor": (1.0,)}
    for name, values in neutral.items():
        found = file.optional_float(f"{prefix}{name}", -1e9, 1e9, None)
        if found is not None and found not in values:
            raise UnsupportedError(f"{file.path}: {prefix}{name}: {found:g} is not supported with the scaling type {kind}")
