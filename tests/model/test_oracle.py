"""The decoder against transformers' BitNetForCausalLM in float32: the same logits to 1e-5 of the largest.

That holds token by token until a code is rounded the other way: an activation that stands at a half, up to float32's error, goes up
or down with the order of a float sum, and one int8 step moves that token's logits, and those after it, by about 3e-3. It happens to
one token in tens to hundreds, so prompts here are fixed and at most 64 tokens; reference.py computes which tokens stand that near,
and only there `assert_agree` accepts a difference.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet_cli.commands.convert import convert
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.config import read_config
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import PROJECTIONS
from bitnet_cli.ternary import i2_s

from .builder import NORMS, Model, Sizes
from .reference import assert_agree, forward

HF_NAMES = dict(zip(PROJECTIONS, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), strict=False))
HF_NAMES |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
HF_NAMES |= {"attn_norm": "input_layernorm", "attn_sub_norm": "self_attn.attn_sub_norm"}
HF_NAMES |= {"ffn_norm": "post_attention_layernorm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
TEXTS = (
    "It was a fine morning in",
    "The people of the town were not at all surprised when",
    "“No,” said she, “I have never seen him",
    "Once upon a time",
    "In the year of our Lord 1745",
    "He had been",
)
embedded = pytest.mark.skipif(not EMBEDDED_MODEL.exists(), reason="the package has no embedded model yet")


def prompts(vocab: int) -> list[list[int]]:
    """Of 1 to 64 tokens."""
    rng = np.random.default_rng(5)
    return [[0, *(int(i) for i in rng.integers(0, vocab, count - 1))] for count in (1, 2, 7, 16, 16, 33, 33, 64)]


@pytest.fixture(scope="module")
def folder(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed ternary weights with float32 scales: the one flavour whose integer products transformers computes exactly."""
    made: Path = models.write_folder(tmp_path_factory.mktemp("hf") / "C_packed", "C_packed")
    return made


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    convert(folder, folder.parent / "model.gguf", quiet=True)
    return folder.parent / "model.gguf"


def arrays_of(file: GGUFFile) -> Model:
    """The file's tensors as the formulas take them."""
    c = read_config(file)
    sizes = Sizes(
        c.layers, c.hidden, c.feed_forward, c.heads, c.kv_heads, c.head_dim, c.vocab, c.context, c.kinds[0].rope.theta, c.norm_eps
    )
    model = Model(sizes, c.activation)
    for name, info in file.tensors.items():
        short = name.removesuffix(".weight")
        if info.type == TensorType.I2_S:
            model.ternary[short], model.scales[short] = i2_s.unpack(file.raw(name), *info.shape)
        elif len(info.shape) == 1:
            model.norms[short] = file.raw(name).view(np.float32)
    info = file.tensors["token_embd.weight"]
    assert info.type == TensorType.F16
    model.embedding = file.raw("token_embd.weight").view(np.float16).reshape(info.shape).astype(np.float32)
    return model


def compare(decoder: Sequence, model: Model, oracle: Callable[[list[int]], NDArray[np.float32]], texts: list[list[int]]) -> int:
    """Prefill and decode of every text; returns how many tokens agreed to 1e-5."""
    tight = 0
    for ids in texts:
        want, margin = oracle(ids), forward(model, ids).margin
        decoder.rewind(0)
        tight += assert_agree(decoder.feed_all(ids), want, margin)
        decoder.rewind(0)
        assert_agree(np.stack([decoder.feed([token]).copy() for token in ids]), want, margin)
    return tight


def oracle_of(transformers: ModuleType, hf_model: Any) -> Callable[[list[int]], NDArray[np.float32]]:
    import torch

    def logits(ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = hf_model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        return result

    hf_model.eval()
    return logits


@pytest.mark.live
def test_a_converted_checkpoint(transformers: ModuleType, folder: Path, converted: Path, text_of: Callable[..., Sequence]) -> None:
    import torch

    oracle = oracle_of(transformers, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    with open_gguf(converted) as file:
        model = arrays_of(file)
    texts = prompts(282)
    assert compare(text_of(converted), model, oracle, texts) > 0.5 * sum(map(len, texts))


def test_stored_logits(models: ModuleType, folder: Path, converted: Path, text_of: Callable[..., Sequence]) -> None:
    """tests/golden/tiny_c.npz holds what transformers computed for the same folder (scripts/make_test_models.py --fixtures)."""
    golden = np.load(models.GOLDEN)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert str(golden["model_sha256"]) == digest, "the script makes another model now: write the fixtures again"
    with open_gguf(converted) as file:
        model = arrays_of(file)
    ids = [int(i) for i in golden["ids"]]
    compare(text_of(converted), model, lambda _: golden["logits"], [ids])


def hf_of(transformers: ModuleType, model: Model, rope: dict[str, Any] | None = None) -> Any:
    """BitNetForCausalLM with the tensors of a GGUF file: packed as its BitLinear wants them, which divides by `weight_scale`."""
    import torch
    from transformers.integrations.bitnet import pack_weights, replace_with_bitnet_linear

    z = model.sizes
    config = transformers.BitNetConfig(
        vocab_size=z.vocab,
        hidden_size=z.hidden,
        intermediate_size=z.feed_forward,
        num_hidden_layers=z.layers,
        num_attention_heads=z.heads,
        num_key_value_heads=z.kv_heads,
        hidden_act=model.activation,
        max_position_embeddings=z.context,
        rms_norm_eps=z.eps,
        rope_parameters={"rope_type": "default", "rope_theta": z.theta} | (rope or {}),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf_model = transformers.BitNetForCausalLM(config).float()
    quantization = transformers.BitNetQuantConfig()
    replace_with_bitnet_linear(hf_model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    state = {"model.embed_tokens.weight": torch.from_numpy(model.embedding), "lm_head.weight": torch.from_numpy(model.embedding)}
    state["model.norm.weight"] = torch.from_numpy(model.norms["output_norm"].copy())
    for layer in range(z.layers):
        block, target = f"blk.{layer}.", f"model.layers.{layer}."
        for name in PROJECTIONS:
            values = torch.from_numpy(model.ternary[block + name].copy())
            state[f"{target}{HF_NAMES[name]}.weight"] = pack_weights(values)
            state[f"{target}{HF_NAMES[name]}.weight_scale"] = torch.tensor([1.0 / float(model.scales[block + name])])
        for name in NORMS:
            state[f"{target}{HF_NAMES[name]}.weight"] = torch.from_numpy(model.norms[block + name].copy())
    hf_model.load_state_dict(state)
    return hf_model


@pytest.mark.live
@embedded
def test_the_embedded_model(transformers: ModuleType, text_of: Callable[..., Sequence]) -> None:
    """Trained weights, and text as it was trained on: rebuilt in transformers from the file alone."""
    from bitnet_cli.text.from_gguf import tokenizer_from_metadata

    with open_gguf(EMBEDDED_MODEL) as file:
        model = arrays_of(file)
        tokenizer = tokenizer_from_metadata(file.metadata, str(file.path))
    # Without BOS: were one of its codes near a half, every text that begins with it would be excused from the first token on.
    ids = [tokenizer.encode(text, bos=False)[:64] for text in TEXTS]
    oracle = oracle_of(transformers, hf_of(transformers, model))
    assert compare(text_of(EMBEDDED_MODEL), model, oracle, ids) > 0.5 * sum(map(len, ids))


@pytest.mark.live
def test_the_rebuilt_model_is_the_loaded_one(transformers: ModuleType, folder: Path, converted: Path) -> None:
    """That `hf_of` puts every tensor in its place: it gives the logits of the folder that transformers itself reads."""
    import torch

    with open_gguf(converted) as file:
        model = arrays_of(file)
    ids = prompts(282)[2]
    embedding = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight
    exact = dataclasses.replace(model, embedding=embedding.detach().numpy())
    want = oracle_of(transformers, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))(ids)
    assert_agree(oracle_of(transformers, hf_of(transformers, exact))(ids), want, forward(exact, ids).margin)
