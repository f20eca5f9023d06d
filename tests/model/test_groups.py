"""Models with a scale for every group of weights (Bonsai): logits beside the formulas in float64 and beside transformers, of every layout.

Activations are int8 with one scale for each 128 of a token, or not rounded; BOUND, of the latter, is test_float_activations.py's: what two
digits may add.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bitnet_kernels.group_rows import Groups

from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import projection_bytes_a_token
from bitnet_cli.ternary import i2_s

from .builder import packed
from .group_models import BONSAI, YARN, blocks, grouped_tensor, random_values, scales_like, write_grouped
from .reference import FLOAT, Activations, assert_agree, forward
from .test_float_activations import relative_rms
from .test_rope import expected

KINDS = [getattr(TensorType, name) for name in ("Q2_0", "PQ2_0", "PTQ1_0", "Q1_0", "TQ1_0", "TQ2_0")]
INT8 = Activations(128)
BOUND = np.sqrt(7 * BONSAI.layers) * 8 / (127 * 254 * np.sqrt(12))
IDS = [int(i) for i in np.random.default_rng(6).integers(0, 256, 60)]
SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
Make = Callable[..., Sequence]


def with_yarn(model: Any) -> Any:
    """The formulas' model of a file with YARN."""
    z = model.sizes
    cos, sin = expected(SCALED, z.head_dim, z.theta, z.context, 2)
    model.rope_amplitude = float(np.hypot(cos[0, 0], sin[0, 0]))
    model.rope_factors = z.theta ** (-np.arange(0, z.head_dim, 2) / z.head_dim) / np.arctan2(sin[1].astype(np.float64), cos[1])
    return model


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_logits_are_those_of_the_formulas(kind: TensorType, tmp_path: Path, text_of: Make) -> None:
    """Beyond the length that rotations were trained for; prompt and single tokens have the same bits."""
    model = with_yarn(write_grouped(tmp_path / "m.gguf", kind, metadata=YARN))
    want, text = forward(model, IDS, INT8), text_of(tmp_path / "m.gguf")
    assert_agree(text.feed_all(IDS), want.logits, want.margin)
    text.rewind(0)
    stepped = np.stack([text.feed([token]).copy() for token in IDS])
    assert assert_agree(stepped, want.logits, want.margin) > 5
    text.rewind(0)
    assert np.array_equal(text.feed(IDS), stepped[-1])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_float_activations(kind: TensorType, tmp_path: Path, text_of: Make) -> None:
    model = with_yarn(write_grouped(tmp_path / "m.gguf", kind, metadata=YARN | {"activation_type": "float"}))
    want, text = forward(model, IDS, FLOAT).logits, text_of(tmp_path / "m.gguf")
    assert relative_rms(text.feed_all(IDS), want) < BOUND
    text.rewind(0)
    assert relative_rms(np.stack([text.feed([token]).copy() for token in IDS]), want) < BOUND


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_in_the_layout(kind: TensorType, tied: bool, tmp_path: Path, text_of: Make) -> None:
    model = write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, tied=tied, embedding=kind, metadata={"activation_type": "float"})
    text = text_of(tmp_path / "m.gguf")
    np.testing.assert_array_equal(text.engine.embedding_rows(IDS), model.embedding[IDS].astype(np.float32))
    want = forward(model, IDS, FLOAT).logits
    assert text.engine.arrays.weights.head_groups is not None and text.engine.head_note is None
    assert relative_rms(np.stack([text.feed([token]).copy() for token in IDS]), want) < BOUND
    text.rewind(0)
    assert relative_rms(text.feed_all(IDS), want) < BOUND


def test_scales_beside_those_of_groups(tmp_path: Path, text_of: Make) -> None:
    """A tensor with one scale, in I2_S, and one with a factor of its own."""
    model = write_grouped(tmp_path / "a.gguf", TensorType.PTQ1_0)
    values = random_values(np.random.default_rng(1), TensorType.I2_S, (512, 256))
    factor = np.array([0.75], np.float32)
    name, up = "blk.0.ffn_gate", "blk.1.ffn_up"
    model.ternary[name], model.scales[name], model.scales[up] = values, np.float32(0.0123), factor[0]
    changed: dict[str, Any] = {f"{name}.weight": packed(f"{name}.weight", values, 0.0123)}
    changed[f"{up}.scale"] = OutputTensor(f"{up}.scale", TensorType.F32, (1,), lambda: factor)
    write_grouped(tmp_path / "b.gguf", TensorType.PTQ1_0, tensors=changed)
    want = forward(model, IDS, INT8)
    assert assert_agree(text_of(tmp_path / "b.gguf").feed_all(IDS), want.logits, want.margin) > 5


def test_layouts_together(tmp_path: Path, text_of: Make) -> None:
    """Groups of 64, 128 and 256 in one model."""
    rng, tensors, weights = np.random.default_rng(4), {}, {}
    for layer, kinds in enumerate((KINDS, KINDS[::-1])):
        for (name, shape), kind in zip(BONSAI.projections().items(), [*kinds, TensorType.PQ2_0], strict=True):
            full = f"blk.{layer}.{name}.weight"
            tensors[full], weights[full.removesuffix(".weight")] = grouped_tensor(rng, full, kind, shape)
    model = write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, tensors=tensors)
    model.ternary.update(weights)  # type: ignore[arg-type]
    want = forward(model, IDS, INT8)
    assert assert_agree(text_of(tmp_path / "m.gguf").feed_all(IDS), want.logits, want.margin) > 5


def test_the_number_of_prisms_first_files(tmp_path: Path, text_of: Make) -> None:
    """Groups of 128 under the number 42: told by the sizes of all tensors together."""
    write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0)
    want = text_of(tmp_path / "m.gguf").feed(IDS).copy()
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    with open_gguf(tmp_path / "m.gguf") as file:
        names = [name for name, info in file.tensors.items() if info.type is TensorType.PQ2_0]
    for name in names:
        at = data.index(name.encode()) + len(name) + 4 + 2 * 8
        assert data[at : at + 4] == (142).to_bytes(4, "little")
        data[at : at + 4] = (42).to_bytes(4, "little")
    (tmp_path / "old.gguf").write_bytes(data)
    assert np.array_equal(text_of(tmp_path / "old.gguf").feed(IDS), want)


def test_pairs_of_groups_of_64(tmp_path: Path, text_of: Make) -> None:
    """Q2_0 of a model with groups of 128: the same rows in memory as PQ2_0 has."""
    write_grouped(tmp_path / "a.gguf", TensorType.PQ2_0)
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q2_0", quiet=True)
    one, other = (text_of(tmp_path / f"{name}.gguf").engine.arrays.weights for name in "ab")
    assert one.groups == other.groups == Groups(128)
    assert np.array_equal(one.packed, other.packed) and np.array_equal(one.scales, other.scales)
    text = text_of(tmp_path / "a.gguf")
    assert sum(projection_bytes_a_token(text.engine)) == pytest.approx(len(one.packed))
    assert len(one.packed) < 1.05 * text.engine.config.ternary_weights * 34 / 128  # scales of a panel begin and end at 64 bytes


def test_a_code_3_alone_makes_groups(tmp_path: Path, text_of: Make) -> None:
    """One scale in all blocks of all tensors, and a weight of 2: kernels of one scale have no such weight."""
    rng = np.random.default_rng(8)
    values = random_values(rng, TensorType.TQ2_0, (256, 512))
    one = np.full((256, 4), 0.0123, np.float16)
    model = write_grouped(tmp_path / "a.gguf", TensorType.TQ2_0)
    for two in (False, True):
        values[3, 5] = 2 if two else 1
        raw = blocks(TensorType.PQ2_0, values, one)
        every: dict[str, OutputTensor] = {}
        for name, old in model.ternary.items():
            part = np.resize(raw.reshape(-1, 34), (old.size // 128, 34)).reshape(-1)
            every[f"{name}.weight"] = OutputTensor(f"{name}.weight", TensorType.PQ2_0, old.shape, lambda part=part: part)  # type: ignore[misc]
        write_grouped(tmp_path / "b.gguf", TensorType.TQ2_0, tensors=every)
        assert (text_of(tmp_path / "b.gguf").engine.arrays.weights.groups is not None) == two


@pytest.mark.parametrize(("scale", "why"), [(np.nan, "not finite"), (np.inf, "not finite"), (-0.01, "negative")])
def test_scales_that_are_none(scale: float, why: str, tmp_path: Path, text_of: Make) -> None:
    rng = np.random.default_rng(1)
    values, scales = random_values(rng, TensorType.PQ2_0, (128, 256)), scales_like(rng, (128, 2))
    scales[77, 1] = scale
    raw = blocks(TensorType.PQ2_0, values, scales)
    tensor = OutputTensor("blk.1.attn_k.weight", TensorType.PQ2_0, values.shape, lambda: raw)
    write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, tensors={tensor.name: tensor})
    with pytest.raises(BadFileError, match=f"tensor blk.1.attn_k.weight.*{why}"):
        text_of(tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert why in str(why_not(file, full=True).reason)


def test_what_groups_do_not_go_with(tmp_path: Path, text_of: Make) -> None:
    rows = OutputTensor("blk.0.ffn_up.scale", TensorType.F32, (512,), lambda: np.ones(512, np.float32))
    for changes, message in (
        ({"metadata": {"hidden_activation": "relu2"}}, "scales that differ from group to group are not supported with ReLU²"),
        ({"tensors": {rows.name: rows}}, "a scale a row beside scales that differ from group to group"),
    ):
        write_grouped(tmp_path / "m.gguf", TensorType.PQ2_0, **changes)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match=message):
            text_of(tmp_path / "m.gguf")
        with open_gguf(tmp_path / "m.gguf") as file:
            assert message in str(why_not(file).reason)


def test_i2_s_has_no_groups(tmp_path: Path, text_of: Make) -> None:
    model = write_grouped(tmp_path / "m.gguf", TensorType.TQ2_0)
    tensors = {
        f"{name}.weight": OutputTensor(
            f"{name}.weight", TensorType.I2_S, values.shape, lambda values=values: i2_s.pack(np.sign(values).astype(np.int8), 0.01)
        )  # type: ignore[misc]
        for name, values in model.ternary.items()
    }
    write_grouped(tmp_path / "m.gguf", TensorType.TQ2_0, tensors=tensors)
    assert text_of(tmp_path / "m.gguf").engine.arrays.weights.groups is None


@pytest.mark.live
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_logits_are_those_of_transformers(kind: TensorType, transformers: ModuleType, tmp_path: Path, text_of: Make) -> None:
    """Qwen3ForCausalLM in float32, of the weights multiplied out, with YaRN beyond its original length."""
    import torch

    model = write_grouped(tmp_path / "m.gguf", kind, metadata=YARN | {"activation_type": "float"})
    z = model.sizes
    config = transformers.Qwen3Config(
        vocab_size=z.vocab,
        hidden_size=z.hidden,
        intermediate_size=z.feed_forward,
        num_hidden_layers=z.layers,
        num_attention_heads=z.heads,
        num_key_value_heads=z.kv_heads,
        head_dim=z.head_dim,
        max_position_embeddings=z.context,
        rms_norm_eps=z.eps,
        rope_parameters=SCALED | {"rope_theta": z.theta},
        tie_word_embeddings=True,
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    names |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
    names |= {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm"}
    state = {
        "model.embed_tokens.weight": model.embedding,
        "lm_head.weight": model.embedding,
        "model.norm.weight": model.norms["output_norm"],
    }
    for name, value in [*model.ternary.items(), *model.norms.items()]:
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            state[f"model.layers.{layer}.{names[part]}.weight"] = value
    theirs.load_state_dict({name: torch.tensor(np.asarray(value, np.float32)) for name, value in state.items()})
    with torch.no_grad():
        want = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert relative_rms(text_of(tmp_path / "m.gguf").feed_all(IDS), want) < BOUND
