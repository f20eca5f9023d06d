"""The decoder against the training code's forward pass, for every activation scheme: the same logits to 1e-5 of the largest.

As in test_oracle.py this holds until a value stands so near a rounding boundary that float32 cannot tell its side; here the boundaries
are those of the scheme: halves for int8 and int4, midpoints of E2M1 for fp4, and for top-k the distance of the last kept value to the
first that is dropped. The training code's forward pass is watched for them.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.commands.convert import convert
from bitnet_cli.embedded import EMBEDDED
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.config import read_config
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import PROJECTIONS
from bitnet_cli.ternary import i2_s
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

from .reference import TIGHT

pytestmark = pytest.mark.live
SCHEMES = ("int8", "a4.8", "a4.8-fp4", "v2-a8", "v2-a4")
NEAR = 1e-6  # distance to a half, as a share of the value: 16 units in the last place of float32
LOOSE = 0.5  # after a code has flipped: one step of four bits is a seventh of an input's largest value
VOCAB = 280
TEXTS = ("It was a fine morning in", "The people of the town were not at all surprised when", "And the king said", "He had been")
NAMES = dict(zip(PROJECTIONS, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), strict=False))
NAMES |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS = {"attn_norm": "input_layernorm", "attn_sub_norm": "self_attn.attn_sub_norm"}
NORMS |= {"ffn_norm": "post_attention_layernorm", "ffn_sub_norm": "mlp.ffn_sub_norm"}


@pytest.fixture(scope="module")
def training(repo_root: Path) -> Iterator[ModuleType]:
    """scripts/bitnet_torch.py."""
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)").set_num_threads(1)
    pytest.importorskip("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo_root / "scripts"))
        yield importlib.import_module("bitnet_torch")


class Watched:
    """An Input that remembers, token by token, how near a value came to a boundary, as a share of that value."""

    def __init__(self, treatment: Any, margins: list[Any]):
        self.treatment, self.margins = treatment, margins

    def transform(self, x: Any) -> Any:
        return self.treatment.transform(x)

    def codes(self, x: Any) -> Any:
        import torch

        codes, factor = self.treatment.codes(x)
        size = (x.double() * factor.double()).abs()
        if self.treatment.quantise.__name__ == "fp4_per_token":
            boundaries = torch.tensor([0.5, 1.5, 2.5, 3.5, 5, 7, 10]).double()
            distance = (size[..., None] - boundaries).abs().amin(-1)
        else:
            distance = (size % 1 - 0.5).abs()
        near = (distance / size.clamp(min=1e-3)).amin(-1)
        if self.treatment.top_k < 1:
            sorted_sizes = size.sort(-1, descending=True).values
            k = round(self.treatment.top_k * x.shape[-1])
            last, dropped = sorted_sizes[..., k - 1], sorted_sizes[..., k]
            near = torch.minimum(near, torch.where(last > dropped, (last - dropped) / last, 1.0))
        self.margins.append(near[0])
        return codes, factor


def watched_logits(model: Any, ids: list[int]) -> tuple[Any, Any]:
    """Logits (tokens, vocab) and margins (tokens,) of one text."""
    import torch

    margins: list[Any] = []
    plain = [(part, part.inputs) for block in model.layers for part in (block.self_attn, block.mlp)]
    for part, inputs in plain:
        part.inputs = tuple(Watched(treatment, margins) for treatment in inputs)
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].numpy()
    for part, inputs in plain:
        part.inputs = inputs
    return logits, torch.stack(margins).amin(0).numpy()


def assert_same(decoder: Sequence, model: Any, texts: list[list[int]]) -> None:
    """Prefill and decode of every text. More than half of all tokens must come before a text's first value near a boundary."""
    tight = 0
    for ids in texts:
        want, margin = watched_logits(model, ids)
        decoder.rewind(0)
        prefill = decoder.feed_all(ids).copy()
        decoder.rewind(0)
        for got in (prefill, np.stack([decoder.feed([token]).copy() for token in ids])):
            errors = np.abs(got - want).max(-1) / np.abs(want).max()
            wrong = np.flatnonzero(errors > TIGHT)
            if len(wrong):
                assert margin[wrong[0]] < NEAR, f"row {wrong[0]}: error {errors[wrong[0]]:.1e}, margin {margin[wrong[0]]:.1e}"
            assert errors.max() < LOOSE
            tight += int(wrong[0]) if len(wrong) else len(ids)
    assert tight > sum(map(len, texts)), f"{tight} tokens agree, prefill and decode together"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_random_model(training: ModuleType, scheme: str, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Through the folder that training saves, `bitnet convert`, and the file. 384 = 3 * 128: the Hadamard transform works in blocks."""
    import torch
    from hf_folder import save_folder, train_tokenizer

    torch.manual_seed(SCHEMES.index(scheme))
    shape = training.Shape(vocab_size=VOCAB, hidden=128, feed_forward=384, layers=2, heads=4, kv_heads=2, context=64)
    model = training.BitNet(shape, scheme)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.embed_tokens.weight.data = model.embed_tokens.weight.data.half().float()
    (tmp_path / "text.txt").write_text("the king said unto the people, and the people heard the king in the 12 cities of the land. " * 9)
    save_folder(model, train_tokenizer(tmp_path / "text.txt", VOCAB), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf", quiet=True)
    rng = np.random.default_rng(5)
    texts = [[int(i) for i in rng.integers(0, VOCAB, count)] for count in (1, 2, 7, 16, 16, 33)]
    assert_same(text_of(tmp_path / "model.gguf"), model, texts)


def test_scales_of_groups(training: ModuleType, tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """What is trained with a scale for each 128 weights and inputs is found in its folder, and gives the logits of the training code."""
    import torch
    from hf_folder import save_folder, train_tokenizer

    torch.manual_seed(3)
    shape = training.Shape(
        vocab_size=VOCAB, hidden=128, feed_forward=384, layers=2, heads=4, kv_heads=2, context=64, group=128, hidden_act="silu"
    )
    model = training.BitNet(shape)
    model.embed_tokens.weight.data = model.embed_tokens.weight.data.half().float()
    (tmp_path / "text.txt").write_text("the king said unto the people, and the people heard the king in the 12 cities of the land. " * 9)
    save_folder(model, train_tokenizer(tmp_path / "text.txt", VOCAB), tmp_path / "hf")
    ids = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB, 40)]
    rounded = model(torch.tensor([ids]))[0].detach().numpy()
    plain = training.BitNet(shape, None)
    multiplied = {
        name: training.ternary_groups(value, 128) if name.endswith("proj.weight") else value for name, value in model.state_dict().items()
    }
    plain.load_state_dict(multiplied)
    floats = plain(torch.tensor([ids]))[0].detach().numpy()
    for activations, want, bound in (("float", floats, 3e-4), ("auto", rounded, 1e-5)):
        convert(tmp_path / "hf", tmp_path / "m.gguf", activations=activations, force=True, quiet=True)
        found = text_of(tmp_path / "m.gguf").feed_all(ids)
        assert np.sqrt(np.mean((found - want) ** 2) / np.mean(want**2)) < bound, activations


def model_of(training: ModuleType, path: Path, scheme: str) -> Any:
    """A GGUF file in PyTorch. The training code ternarises by absmean, so its weights are those whose absmean gives the file's."""
    import torch

    with open_gguf(path) as file:
        c = read_config(file)
        shape = training.Shape(
            c.vocab, c.hidden, c.feed_forward, c.layers, c.heads, c.kv_heads, c.context, c.kinds[0].rope.theta, c.norm_eps
        )
        model = training.BitNet(shape, scheme)
        info = file.tensors["token_embd.weight"]
        assert info.type == TensorType.F16
        embedding = file.raw("token_embd.weight").view(np.float16).reshape(info.shape).astype(np.float32)
        state = {"embed_tokens.weight": embedding, "norm.weight": file.raw("output_norm.weight").view(np.float32).copy()}
        for layer in range(c.layers):
            for name, target in NORMS.items():
                state[f"layers.{layer}.{target}.weight"] = file.raw(f"blk.{layer}.{name}.weight").view(np.float32).copy()
            for name, target in NAMES.items():
                tensor = f"blk.{layer}.{name}.weight"
                values, scale = i2_s.unpack(file.raw(tensor), *file.tensors[tensor].shape)
                weight = values * (float(scale) / np.abs(values).mean())
                state[f"layers.{layer}.{target}.weight"] = weight.astype(np.float32)
                assert np.array_equal(training.ternary(torch.from_numpy(state[f"layers.{layer}.{target}.weight"]))[0].numpy(), values)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model


@pytest.mark.parametrize(("name", "scheme"), [("tiny", "int8"), ("tiny-a4.8", "a4.8")])
def test_an_embedded_model(training: ModuleType, name: str, scheme: str, text_of: Callable[..., Sequence]) -> None:
    """Trained weights, and text as they were trained on."""
    path = EMBEDDED[name].path
    with open_gguf(path) as file:
        tokenizer = tokenizer_from_metadata(file.metadata, str(file.path))
    ids = [tokenizer.encode(text, bos=False)[:64] for text in TEXTS]
    assert_same(text_of(path), model_of(training, path, scheme), ids)
