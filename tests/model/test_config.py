"""Metadata -> ModelConfig: every refusal names the file and the key, and what was found beside what was expected."""

import math
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.angles import UNSCALED, Scaling

from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError
from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.model.config import ARCHITECTURES, LayerKind, ModelConfig, Rope, read_config

from ..hostile import forge
from .builder import Sizes, f32, random_model, tokenizer_metadata, write_model

Open = Callable[[Path], GGUFFile]
INTEGERS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length")
OPTIONAL_INTEGERS = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size")
ONE_A_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
EPSILON, THETA = "attention.layer_norm_rms_epsilon", "rope.freq_base"
ARCH = "bitnet-b1.58"


def config(folder: Path, arch: str = ARCH, tensors: Any = None, sizes: Sizes | None = None, **metadata: Any) -> ModelConfig:
    """Of a file with these keys changed; `__` stands for a dot, `_` before a name for `general.`."""
    path = write_model(folder / "model.gguf", random_model(sizes), arch=arch, tensors=tensors, metadata=metadata)
    with open_gguf(path) as file:
        return read_config(file)


def refused(folder: Path, kind: type[BitnetError], key: str, value: Any, **others: Any) -> str:
    """The message, without the file's name, which must come first."""
    with pytest.raises(kind) as caught:
        config(folder, **{key: value}, **others)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model.gguf'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'model.gguf'}: ")


def test_a_valid_file(tmp_path: Path) -> None:
    c = config(tmp_path)
    assert c == ModelConfig(
        architecture=ARCH,
        name="random",
        layers=2,
        hidden=128,
        feed_forward=256,
        heads=4,
        kv_heads=2,
        head_dim=32,
        vocab=260,
        context=64,
        norm_eps=pytest.approx(1e-5),
        kinds=(LayerKind(Rope(10000.0)),) * 2,
        rotated=32,
        activation="relu2",
        has=frozenset({"sub_norms"}),
        rope_pairs=False,
        activation_type=None,
        tied=True,
    )
    assert c.inner == 128
    assert c.ternary_weights == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128)


def test_defaults_of_absent_keys(tmp_path: Path) -> None:
    absent = ["attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size"]
    absent += [THETA, "hidden_activation", "general.name", *tokenizer_metadata()]
    c = config(tmp_path, **dict.fromkeys(absent))
    assert (c.kv_heads, c.head_dim, c.vocab, c.kinds[0].rope.theta) == (4, 32, 260, 10000.0)
    assert (c.activation, c.name) == ("relu2", "model")


@pytest.mark.parametrize(("arch", "activation"), [("bitnet-b1.58", "relu2"), ("bitnet-25", "relu2"), ("bitnet", "silu")])
def test_an_architecture_implies_its_activation(tmp_path: Path, arch: str, activation: str) -> None:
    assert config(tmp_path, arch=arch, hidden_activation=None).activation == activation
    assert config(tmp_path, arch=arch, hidden_activation="silu").activation == "silu"
    assert config(tmp_path, arch=arch, hidden_activation="relu2").activation == "relu2"


def test_every_architecture_is_tested() -> None:
    assert set(ARCHITECTURES) == {"bitnet-b1.58", "bitnet-25", "bitnet", "llama", "qwen2", "qwen3", "gemma3"}


def test_an_unknown_activation(tmp_path: Path) -> None:
    message = refused(tmp_path, UnsupportedError, "hidden_activation", "gelu")
    assert message == f"{ARCH}.hidden_activation: 'gelu' is not supported; relu2, silu, gelu_pytorch_tanh are"
    assert config(tmp_path, hidden_activation="swish").activation == "silu"


@pytest.mark.parametrize("arch", ["mistral", "bitnet-b1.59", "BITNET"])
def test_an_unknown_architecture(tmp_path: Path, arch: str) -> None:
    with pytest.raises(UnsupportedError, match=r"general\.architecture: '.*' is not supported; supported are bitnet-b1\.58") as caught:
        config(tmp_path, arch=arch)
    assert caught.value.exit_code == 4
    assert f"'{arch}'" in str(caught.value)


def forged(folder: Path, *entries: bytes) -> Path:
    """A file with these entries and an embedding."""
    (folder / "m.gguf").write_bytes(forge.forge(entries, [forge.tensor("token_embd.weight", [4, 2], 0, 0)], bytes(32)))
    return folder / "m.gguf"


def test_no_architecture(tmp_path: Path, opened: Open) -> None:
    with pytest.raises(BadFileError, match=r"general\.architecture: is missing, expected a string"):
        read_config(opened(forged(tmp_path)))
    with pytest.raises(BadFileError, match=r"general\.architecture: is UINT32, expected a string"):
        read_config(opened(forged(tmp_path, forge.entry("general.architecture", forge.UINT32, forge.u32(7)))))


@pytest.mark.parametrize("arch", ["", "a\x1b]0;b\x07", "\u202e"])
def test_an_architecture_that_is_no_name_cannot_drive_a_terminal(tmp_path: Path, opened: Open, arch: str) -> None:
    path = forged(tmp_path, forge.entry("general.architecture", forge.STRING, forge.string(arch)))
    with pytest.raises(UnsupportedError) as caught:
        read_config(opened(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", [*INTEGERS, EPSILON])
def test_a_required_key_is_missing(tmp_path: Path, key: str) -> None:
    assert refused(tmp_path, BadFileError, key, None).startswith(f"{ARCH}.{key}: is missing, expected a")


@pytest.mark.parametrize("key", [*INTEGERS, *OPTIONAL_INTEGERS])
@pytest.mark.parametrize(
    ("value", "found"),
    [("4", "STRING"), (4.0, "FLOAT32"), (True, "BOOL"), ([4, 4], "ARRAY of INT32")],
    ids=["str", "float", "bool", "array"],
)
def test_an_integer_of_another_type(tmp_path: Path, key: str, value: Any, found: str) -> None:
    expected = "an integer from "
    if found.startswith("ARRAY") and key in ONE_A_LAYER:  # which may have an array, of integers
        value, found, expected = [4.0], "ARRAY of FLOAT32", "an array of integers from "
    assert refused(tmp_path, BadFileError, key, value).startswith(f"{ARCH}.{key}: is {found}, expected {expected}")


@pytest.mark.parametrize("key", [*INTEGERS, *OPTIONAL_INTEGERS])
@pytest.mark.parametrize("value", [0, -1, -(2**40), 2**32, 2**63])
def test_an_integer_out_of_range(tmp_path: Path, key: str, value: int) -> None:
    assert refused(tmp_path, BadFileError, key, value).startswith(f"{ARCH}.{key}: is {value}, expected an integer from ")


@pytest.mark.parametrize("kind", [ValueType.UINT8, ValueType.INT16, ValueType.UINT64, ValueType.INT64])
def test_integers_of_any_width(tmp_path: Path, kind: ValueType) -> None:
    assert config(tmp_path, block_count=Typed(2, kind)).layers == 2


@pytest.mark.parametrize("key", [EPSILON, THETA])
@pytest.mark.parametrize(("value", "found"), [("1e-5", "STRING"), (1, "UINT32"), (True, "BOOL")], ids=["str", "int", "bool"])
def test_a_float_of_another_type(tmp_path: Path, key: str, value: Any, found: str) -> None:
    assert refused(tmp_path, BadFileError, key, value).startswith(f"{ARCH}.{key}: is {found}, expected a float from ")


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k in (EPSILON, THETA) for v in (float("nan"), float("inf"), -1.0, -float("inf"))] + [(EPSILON, 1.5), (THETA, 0.5)],
)
def test_a_float_out_of_range(tmp_path: Path, key: str, value: float) -> None:
    assert refused(tmp_path, BadFileError, key, value).startswith(f"{ARCH}.{key}: is {value}, expected a float from ")


@pytest.mark.parametrize("key", ["general.name", "rope.scaling.type", "hidden_activation"])
def test_a_string_of_another_type(tmp_path: Path, key: str) -> None:
    assert f"{key}: is UINT32, expected " in refused(tmp_path, BadFileError, key, 3)


@pytest.mark.parametrize(
    ("key", "value", "others", "numbers"),
    [
        ("attention.head_count", 3, {"attention.key_length": None}, ("128", "3")),  # 128 wide, 3 heads
        ("attention.head_count", 256, {"attention.key_length": None}, ("128", "256")),  # more heads than numbers
        ("attention.head_count_kv", 3, {}, ("3", "4")),
        ("attention.head_count_kv", 8, {}, ("8", "4")),
        ("attention.key_length", 31, {}, ("31", "even")),
        ("rope.dimension_count", 34, {}, ("34", "32")),
        ("rope.dimension_count", 15, {}, ("15", "even")),
        ("vocab_size", 261, {}, ("260", "261")),
    ],
)
def test_numbers_that_disagree(tmp_path: Path, key: str, value: Any, others: dict[str, Any], numbers: tuple[str, str]) -> None:
    message = refused(tmp_path, BadFileError, key, value, **others)
    words = message.replace(",", " ").split()
    assert set(numbers) <= set(words), message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("attention.value_length", 64, "64 differs from the key length 32"),
        ("rope.scaling.type", "longrope", "'longrope' is not supported; supported are none, default, linear, yarn"),
        ("rope.scaling.alpha", 1000.0, "1000 is not supported with the scaling type linear"),
        ("rope.scaling.yarn_ext_factor", 1.0, "1 is not supported with the scaling type linear"),
        ("attn_logit_softcapping", 50.0, "50.0 is not supported; 0 is, which changes nothing"),
        ("expert_count", 8, "8 is not supported; 0 is, which changes nothing"),
        ("logit_scale", 0.5, "0.5 is not supported; 0 or 1 is, which changes nothing"),
        ("attention.sliding_window", 63, "63 is not supported; 0 is, which changes nothing"),
        ("attention.causal", False, "False is not supported; 1 is, which changes nothing"),
        ("attention.key_length_swa", 16, "16 is not supported; 0 or 32 is, which changes nothing"),
        ("attention.rope_pattern", [1, 0], "array('i', [1, 0]) is not supported; 1 is, which changes nothing"),
        ("use_parallel_residual", "yes", "'yes' is not supported; 0 is, which changes nothing"),
    ],
)
def test_known_but_unsupported(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    message = refused(tmp_path, UnsupportedError, key, value)
    assert message == f"{ARCH}.{key}: {expected}"


def test_llama_rotates_whole_heads(tmp_path: Path) -> None:
    message = refused(tmp_path, UnsupportedError, "rope.dimension_count", 16, arch="llama", hidden_activation="silu")
    assert message == "llama.rope.dimension_count: 16 differs from the head's 32, which llama rotates whole"


def test_a_width_that_no_head_has(tmp_path: Path) -> None:
    message = refused(tmp_path, UnsupportedError, "embedding_length", 200)
    assert message == f"{ARCH}.embedding_length: 200 is not a multiple of 32, which the head needs"


@pytest.mark.parametrize("tensor", [None, f32("token_embd.weight", np.zeros(128)), f32("token_embd.weight", np.zeros((2, 2, 32)))])
def test_an_embedding_that_is_no_matrix(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(BadFileError, match=r"tensor token_embd\.weight: is missing or not a matrix"):
        config(tmp_path, tensors={"token_embd.weight": tensor})


def test_a_head_of_its_own(tmp_path: Path) -> None:
    assert config(tmp_path, tensors={"output.weight": f32("output.weight", np.zeros((260, 128)))}).tied is False


def test_a_head_wider_than_the_model(tmp_path: Path) -> None:
    """key_length frees the heads' width from the model's: 4 heads of 64 on a hidden size of 128."""
    c = config(tmp_path, sizes=Sizes(head_dim=64))
    assert (c.inner, c.hidden) == (256, 128)


NEUTRAL = {
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 1.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.finetuned": False,
    "rope.scaling.yarn_ext_factor": -1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.dimension_count_swa": 32,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.key_length_swa": 32,
    "attention.max_alibi_bias": 0.0,
    "attention.scale": 32**-0.5,
    "attention.sliding_window": 64,
    "attention.rope_pattern": [1, 1],
    "attn_logit_softcapping": 0.0,
    "embedding_length_out": 128,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "residual_scale": 1.0,
    "swiglu_clamp_exp": [0.0, 0.0],
    "use_parallel_residual": False,
    "of_nobody": 3,
}


def test_keys_that_change_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, **NEUTRAL) == config(tmp_path)
    assert config(tmp_path, **{"attention.scale": 0.0, "rope.scale_linear": 1.0, "logit_scale": 0.0}) == config(tmp_path)
    for kind in ("none", "yarn"):
        scaled = config(tmp_path, **{"rope.scaling.type": kind, "rope.scaling.factor": 1.0}).kinds[0].rope.scaling
        assert (scaled.factor, scaled.amplitude) == (1.0, 1.0)


def test_linear_scaling(tmp_path: Path) -> None:
    """Without a type it is linear, and 0 is no factor (llama.cpp)."""
    assert config(tmp_path, **{"rope.scaling.factor": 2.5}).kinds[0].rope.scaling == UNSCALED._replace(factor=2.5)
    assert config(tmp_path, **{"rope.scale_linear": 2.5}).kinds[0].rope.scaling == UNSCALED._replace(factor=2.5)
    assert config(tmp_path, **{"rope.scaling.factor": 0.0}).kinds[0].rope.scaling == UNSCALED
    assert config(tmp_path, **{"rope.scaling.type": "none", "rope.scaling.factor": 2.5}).kinds[0].rope.scaling == UNSCALED
    assert config(tmp_path, **{"rope.scaling.type": "default", "rope.scaling.factor": 2.5}).kinds[0].rope.scaling == UNSCALED
    assert config(tmp_path, **{"rope.scaling.attn_factor": 0.5}).kinds[0].rope.scaling == UNSCALED._replace(amplitude=0.5)


def test_yarn(tmp_path: Path) -> None:
    """What Bonsai's files have, and the keys that make its amplitude another."""
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    usual = 0.1 * math.log(4) + 1
    assert config(tmp_path, **yarn).kinds[0].rope.scaling == Scaling(4.0, 16, amplitude=usual)
    assert config(tmp_path, **yarn | {"rope.scaling.original_context_length": None}).kinds[0].rope.scaling.trained == 64
    turns = {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 0.5, "rope.scaling.yarn_truncate": False}
    assert config(tmp_path, **yarn, **turns).kinds[0].rope.scaling == Scaling(4.0, 16, 8.0, 0.5, False, usual)
    for keys in ({"yarn_attn_factor": 0.75}, {"attn_factor": 0.75 / usual}, {"yarn_attn_factor": 0.75, "attn_factor": 0.75 / usual}):
        scaled = config(tmp_path, **yarn, **{f"rope.scaling.{key}": value for key, value in keys.items()}).kinds[0].rope.scaling
        assert scaled.amplitude == pytest.approx(0.75)
    assert "do not agree" in refused(
        tmp_path, UnsupportedError, "rope.scaling.yarn_attn_factor", 0.5, **yarn, **{"rope.scaling.attn_factor": 0.75}
    )
    assert "YaRN" in refused(tmp_path, BadFileError, "rope.freq_base", 1.0, **yarn)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("factor", -1.0),
        ("factor", float("nan")),
        ("factor", 1e-9),
        ("factor", 2),
        ("attn_factor", 0.0),
        ("attn_factor", float("inf")),
        ("original_context_length", 0),
        ("yarn_beta_fast", 0.0),
        ("yarn_truncate", 1),
        ("yarn_attn_factor", -1.0),
    ],
)
def test_numbers_of_a_scaling_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    message = refused(tmp_path, BadFileError, f"rope.scaling.{key}", value, **{"rope.scaling.type": "yarn"})
    assert message.startswith(f"{ARCH}.rope.scaling.{key}: is ")


def test_layers_with_windows_one_by_one(tmp_path: Path) -> None:
    key = "attention.sliding_window_pattern"
    keys = {"arch": "gemma3", "hidden_activation": None, "attention.sliding_window": 16}
    for layers in ([1, 0], [0, 1], [0, 0], [1, 1]):
        c = config(tmp_path, **keys, **{key: Typed(array("B", layers), ValueType.ARRAY, ValueType.BOOL)})
        assert [kind.window for kind in c.kinds] == [16 * sliding for sliding in layers]
    assert [kind.window for kind in config(tmp_path, **keys, **{key: 4}, sizes=Sizes(layers=9)).kinds] == [16, 16, 16, 0] * 2 + [16]
    message = refused(tmp_path, BadFileError, key, Typed(array("B", [0, 1, 1]), ValueType.ARRAY, ValueType.BOOL), **keys)
    assert "has 3 values, expected one for each of 2 layers" in message


def test_a_model_without_sub_norms_says_so(tmp_path: Path) -> None:
    assert config(tmp_path, use_sub_norms=False).has == frozenset()
    assert config(tmp_path, use_sub_norms=True).has == {"sub_norms"}
    assert "use_sub_norms: is UINT32" in refused(tmp_path, BadFileError, "use_sub_norms", 0)


def test_sizes_layer_by_layer(tmp_path: Path) -> None:
    same = {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2], "feed_forward_length": [256, 256]}
    assert config(tmp_path, **same) == config(tmp_path)
    for key in ONE_A_LAYER:
        assert "layers of different sizes" in refused(tmp_path, UnsupportedError, key, [2, 4])
