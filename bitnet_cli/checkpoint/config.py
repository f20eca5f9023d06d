"""config.json -> FolderConfig: the numbers of a model, each checked against a range before anything is read or allocated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_cli.activations import SAME_ACTIVATIONS, TOP_K, known_scheme
from bitnet_cli.checkpoint.families import FAMILIES, Family
from bitnet_cli.checkpoint.rope import Rope, read_rope
from bitnet_cli.checkpoint.strict_json import MEGABYTE, read_object
from bitnet_cli.checkpoint.switches import neutral_sizes, refuse_switches
from bitnet_cli.checkpoint.windows import Windows, read_windows
from bitnet_cli.errors import BadFileError, UnsupportedError


@dataclass(frozen=True)
class Quantization:
    """`quantization_config` of a BitNet checkpoint, as transformers reads it."""

    linear_class: str  # bitlinear or autobitlinear
    mode: str  # offline: scales are stored; online: they are computed from float weights
    skipped: tuple[str, ...] | None  # `modules_to_not_convert`: these stay in float; None: the head does
    activation_type: str | None = None  # a name of activations.SCHEMES; of this project, transformers knows int8 only
    top_k: float = TOP_K


@dataclass(frozen=True)
class FolderConfig:
    family: Family
    path: Path
    vocab_size: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int  # tokens
    norm_eps: float
    rope: Rope
    activation: str  # transformers' name: relu2, silu or gelu_pytorch_tanh
    windows: Windows | None
    query_scalar: float  # attention scores are divided by its root
    tied: bool | None  # the head is the embedding; None: the tensors say (as_stored.py)
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    quantization: Quantization | None
    use_sub_norms: bool | None = None  # BitNet's; None: the tensors say
    notes: tuple[str, ...] = ()  # what was taken for granted, a sentence each


def read_config(folder: Path) -> FolderConfig:
    """Raises BadFileError for a value out of range, UnsupportedError for a model or a feature that is not handled."""
    path = folder / "config.json"
    fields = _Fields(path, read_object(path, 4 * MEGABYTE))
    family = _family(fields)
    hidden = fields.integer("hidden_size", 1, 1 << 20)
    heads = fields.integer("num_attention_heads", 1, 1 << 12)
    kv_heads = fields.integer("num_key_value_heads", 1, 1 << 12, heads)
    if heads % kv_heads:
        raise BadFileError(path, "num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {heads}")
    if fields.get("head_dim") is None and hidden % heads:
        raise BadFileError(path, "num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    head_dim = fields.integer("head_dim", 2, 1 << 12, hidden // heads)
    if head_dim % 2:
        raise BadFileError(path, "head_dim", f"{head_dim}, expected an even number")
    activation = fields.get("hidden_activation", fields.get("hidden_act", family.activation))
    activation = SAME_ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else activation
    if not isinstance(activation, str) or activation not in family.gguf:
        known = " and ".join(family.gguf) + (" are" if len(family.gguf) > 1 else " is")
        raise UnsupportedError(f"{path}: hidden_act: {_short(activation)} is not supported; {known}")
    rope = read_rope(fields, head_dim, family.rope_theta, windows=family.windows, divisors=family.pairs)
    layers = fields.integer("num_hidden_layers", 1, 1 << 12)
    refuse_switches(fields, neutral_sizes(hidden, layers, head_dim, family))
    vocab_size = fields.integer("vocab_size", 1, 1 << 24)
    return FolderConfig(
        family=family,
        path=path,
        vocab_size=vocab_size,
        hidden=hidden,
        feed_forward=fields.integer("intermediate_size", 1, 1 << 22),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=fields.integer("max_position_embeddings", 1, 1 << 30),
        norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0, family.norm_eps),
        rope=rope,
        activation=activation,
        windows=read_windows(fields, family.windows),
        query_scalar=fields.number("query_pre_attn_scalar", 1e-6, 1e9, head_dim) if family.windows else float(head_dim),
        tied=_tied(fields, family),
        bos=_one_id(fields, "bos_token_id", vocab_size),
        eos=_ids(fields, "eos_token_id", 1 << 32),
        pad=_padding(fields, vocab_size),
        quantization=_quantization(fields),
        use_sub_norms=None if fields.get("use_sub_norms") is None else fields.boolean("use_sub_norms", True),
        notes=rope.notes,
    )


class _Fields:
    """Typed access to a JSON object; every refusal names the file and the field."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = ""):
        self.path, self.values, self.prefix = path, values, prefix

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _required(self, key: str, default: Any, expected: str) -> Any:
        value = self.get(key, default)
        if value is None:
            raise BadFileError(self.path, self.prefix + key, f"missing, expected {expected}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._required(key, default, f"an integer from {low} to {high}")
        if type(value) is not int or not low <= value <= high:
            raise BadFileError(self.path, self.prefix + key, f"{_short(value)}, expected an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._required(key, default, f"a number from {low:g} to {high:g}")
        # `not (low <= value <= high)` also refuses an integer too large for a float, which float() itself cannot take.
        if type(value) not in (int, float) or not low <= value <= high:
            raise BadFileError(self.path, self.prefix + key, f"{_short(value)}, expected a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise BadFileError(self.path, self.prefix + key, f"{_short(value)}, expected true or false")
        return value

    def section(self, key: str) -> "_Fields | None":
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise BadFileError(self.path, self.prefix + key, f"{_short(value)}, expected an object")
        return _Fields(self.path, value, f"{self.prefix}{key}.")


def _short(value: Any) -> str:
    # repr of an int of 4300 digits or more raises; the JSON reader has refused those.
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _family(fields: _Fields) -> Family:
    """The table's row for `architectures`. Code that a folder brings along (`auto_map`) is never run: only known architectures pass."""
    names = fields.get("architectures", [])
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    supported = ", ".join(FAMILIES)
    own_code = "; the code this folder brings along (auto_map) is never run" if fields.get("auto_map") else ""
    described = f"architectures {_short(names)}, model_type {_short(fields.get('model_type'))}"
    raise UnsupportedError(f"{fields.path}: {described}: not supported; supported: {supported}{own_code}")


def _tied(fields: _Fields, family: Family) -> bool | None:
    if family.base or (fields.get("tie_word_embeddings") is None and family.windows):
        return True
    return None if fields.get("tie_word_embeddings") is None else fields.boolean("tie_word_embeddings", False)


def _ids(fields: _Fields, key: str, vocab_size: int) -> tuple[int, ...]:
    """A token id, a list of them, or nothing. -1 stands for nothing in old files."""
    value = fields.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if len(ids) > 64 or not all(type(i) is int and -1 <= i < vocab_size for i in ids):
        raise BadFileError(fields.path, key, f"{_short(value)}, expected token ids below {vocab_size}")
    return tuple(i for i in ids if i >= 0)


def _one_id(fields: _Fields, key: str, vocab_size: int) -> int | None:
    return next(iter(_ids(fields, key, vocab_size)), None)


def _padding(fields: _Fields, vocab_size: int) -> int | None:
    """Nothing is padded here, so a name of a token that is not there, as many files have it, does no harm."""
    return next((i for i in _ids(fields, "pad_token_id", 1 << 32) if i < vocab_size), None)


def _quantization(fields: _Fields) -> Quantization | None:
    section = fields.section("quantization_config")
    if section is None:
        return None
    path, method = fields.path, section.get("quant_method")
    if method != "bitnet":
        raise UnsupportedError(f"{path}: quantization_config.quant_method: {_short(method)} is not supported; bitnet is")
    linear_class, mode = section.get("linear_class", "bitlinear"), section.get("quantization_mode", "offline")
    for key, value, known in (
        ("linear_class", linear_class, ("bitlinear", "autobitlinear")),
        ("quantization_mode", mode, ("offline", "online")),
    ):
        if value not in known:
            raise UnsupportedError(f"{path}: quantization_config.{key}: {_short(value)} is not supported; {' and '.join(known)} are")
    if section.boolean("use_rms_norm", False):
        raise UnsupportedError(f"{path}: quantization_config.use_rms_norm: norms inside projections are not supported")
    scheme, top_k = _activations(section)
    skipped = section.get("modules_to_not_convert")
    if skipped is None:
        return Quantization(linear_class, mode, None, scheme, top_k)
    if not isinstance(skipped, list) or not all(isinstance(s, str) and 0 < len(s) < 256 for s in skipped):
        raise BadFileError(path, "quantization_config.modules_to_not_convert", "expected a list of module names")
    for name in skipped:
        # transformers takes each as a regular expression. One from a stranger's file can run for ever, so only plain names pass.
        if not all(c.isalnum() or c in "._-" for c in name):
            raise UnsupportedError(f"{path}: quantization_config.modules_to_not_convert: {_short(name)} is not a plain module name")
    return Quantization(linear_class, mode, tuple(skipped), scheme, top_k)


def _activations(section: _Fields) -> tuple[str | None, float]:
    """Activation scheme, None where the section says none, and the share of inputs that a sparse one keeps."""
    name = section.get("activation_type")
    scheme = None if name is None else known_scheme(name, f"{section.path}: {section.prefix}activation_type")
    return scheme, section.number("top_k", 1e-6, 1.0, TOP_K)


def is_skipped(module: str, config: FolderConfig) -> bool:
    """Whether `modules_to_not_convert` keeps `module` (such as model.layers.0.mlp.up_proj) in float.

    transformers' rule: a name matches as a prefix that ends at a module boundary, or as a suffix.
    """
    skipped = (config.quantization.skipped if config.quantization else None) or ()
    return any(module == s or module.startswith(s.rstrip(".") + ".") or module.endswith(s) for s in skipped)
