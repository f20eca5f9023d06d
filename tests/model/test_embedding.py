"""BitNet-embedding 0.6B (Qwen3) and 270M (Gemma3), made small: converted and run, against the formulas and against transformers.

As in test_oracle.py, states agree to 1e-5 of the largest until a code stands at a rounding border.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bitnet_kernels import arrays

from bitnet_cli.commands.convert import convert
from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model import embedding
from bitnet_cli.model.checks import why_not
from bitnet_cli.model.config import read_config
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.weights import load_weights, rope_tables
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

from .builder import random_model, write_model
from .embedding_models import CONFIGS, arrays_of, hf_model, write_folder
from .reference import assert_agree, forward

KINDS = tuple(CONFIGS)
TEXTS = ("What is BitNet?", "A model whose weights are -1, 0 and 1.", "The weather in the mountains", "in", "Größe 12345")


@pytest.fixture(scope="module")
def converted(models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("embedding")
    for kind in KINDS:
        convert(write_folder(models, base / kind, kind), base / f"{kind}.gguf", quiet=True)
    return {kind: base / f"{kind}.gguf" for kind in KINDS}


def id_lists() -> list[list[int]]:
    """Up to 40 tokens: Gemma3's sliding layers see 16."""
    rng = np.random.default_rng(1)
    return [[int(i) for i in rng.integers(0, 282, count)] for count in (1, 2, 7, 20, 24, 28, 33, 40)]


def check_states(decoder: Sequence, ids: list[int], want: np.ndarray, margin: np.ndarray) -> int:
    """In one go and token by token. Returns how many tokens agreed to 1e-5."""
    decoder.rewind(0)
    states = decoder.states(ids)
    decoder.rewind(0)
    assert np.array_equal(np.concatenate([decoder.states([token]) for token in ids]), states)
    return assert_agree(states, want, margin)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_formulas(
    kind: str, converted: dict[str, Path], models: ModuleType, text_of: Callable[..., Sequence]
) -> None:
    decoder, model = text_of(converted[kind]), arrays_of(models, kind)
    tight = 0
    for ids in id_lists():
        want = forward(model, ids)
        tight += check_states(decoder, ids, want.states, want.margin)
    assert tight > 0.5 * sum(map(len, id_lists()))


@pytest.mark.live
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers(
    kind: str, converted: dict[str, Path], models: ModuleType, transformers: ModuleType, text_of: Callable[..., Sequence]
) -> None:
    import torch

    reference, model, decoder = hf_model(transformers, models, kind), arrays_of(models, kind), text_of(converted[kind])
    tight, beyond_the_window = 0, 0
    for ids in id_lists():
        with torch.no_grad():
            want = reference(torch.tensor([ids]), use_cache=False).last_hidden_state[0].numpy()
        # Where both leave the formulas at one border, the margins of later tokens are those of another computation.
        agreed = check_states(decoder, ids, want, np.minimum.accumulate(forward(model, ids).margin))
        tight, beyond_the_window = tight + agreed, beyond_the_window + max(0, agreed - 16)
    assert tight > 0.5 * sum(map(len, id_lists()))
    assert beyond_the_window > 10


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_chunks_do_not_matter(kind: str, converted: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    ids = [int(i) for i in np.random.default_rng(2).integers(0, 282, 300)]
    one, two = text_of(converted[kind], threads=1), text_of(converted[kind], threads=2)
    states = one.states(ids)
    pieces = np.concatenate([two.states(ids[:170]), two.states(ids[170:171]), two.states(ids[171:])])
    assert np.array_equal(states, pieces)


def test_metadata(converted: dict[str, Path]) -> None:
    """Keys and names of llama.cpp and of microsoft/BitNet's converter."""
    with open_gguf(converted["gemma3"]) as file:
        assert file.require_str("general.architecture") == "gemma3"
        keys = ("sliding_window", "sliding_window_pattern", "scale")
        assert [file.metadata[f"gemma3.attention.{key}"] for key in keys] == [16, 3, 0.125]
        assert file.metadata["gemma3.rope.freq_base_swa"] == 10000.0 and file.metadata["gemma3.rope.freq_base"] == 1e6
        assert file.metadata["gemma3.pooling_type"] == 3
        assert file.metadata["tokenizer.ggml.add_eos_token"] is True and file.metadata["tokenizer.ggml.eos_token_id"] == 1
        for name in ("attn_output_norm_in", "ffn_down_norm_in", "attn_q_norm", "post_attention_norm", "post_ffw_norm"):
            assert f"blk.5.{name}.weight" in file.tensors
        c = read_config(file)
        assert c.embedding_scale == pytest.approx(128**0.5) and c.query_factor == pytest.approx((96 / 64) ** 0.5)
        w = load_weights(file, c, *rope_tables(file, c, 8))
        assert w.windows.tolist() == [16, 16, arrays.EVERYTHING] * 2 and w.rope_rows.tolist() == [8, 8, 0] * 2
    with open_gguf(converted["qwen3"]) as file:
        assert file.metadata["qwen3.pooling_type"] == 3 and "qwen3.attention.sliding_window" not in file.metadata
        assert file.metadata["tokenizer.ggml.pre"] == "qwen2" and file.metadata["tokenizer.ggml.add_bos_token"] is False


def test_norms_of_gemma3_are_stored_from_1_on(converted: dict[str, Path], models: ModuleType) -> None:
    model = arrays_of(models, "gemma3")
    with open_gguf(converted["gemma3"]) as file:
        for name, values in model.norms.items():
            assert np.array_equal(file.raw(f"{name}.weight").view("<f4"), values), name


def test_a_folder_with_other_names(models: ModuleType, tmp_path: Path, converted: dict[str, Path]) -> None:
    """Names that begin with `model.`, windows by a period, RoPE as transformers 5 writes it, pooling from sentence-transformers' file."""
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    changes = {"rope_parameters": rope, "rope_theta": None, "rope_local_base_freq": None, "layer_types": None, "sliding_window_pattern": 3}
    folder = write_folder(models, tmp_path / "hf", "gemma3", prefix="model.", **changes)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_lasttoken": false}')
    convert(folder, tmp_path / "m.gguf", quiet=True)
    with open_gguf(tmp_path / "m.gguf") as file, open_gguf(converted["gemma3"]) as other:
        assert all(np.array_equal(file.raw(name), other.raw(name)) for name in other.tensors)
        assert file.metadata == other.metadata | {"general.name": "hf", "gemma3.pooling_type": 1}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True is not supported"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 is not supported"),
        ("gemma3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling 'llama3' is not supported"),
        ("gemma3", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "expected one for each type of layer"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}},
            "rope_type: 'linear' is not supported in layers that see a window",
        ),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "is not supported in this family"),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 5]}, "in another order"),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 3, "sliding_window": 511},
            "layer_types: windows of 511 positions are not supported",
        ),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; silu is"),
    ],
)
def test_switches_that_are_not_supported(kind: str, changes: dict, expected: str, models: ModuleType, tmp_path: Path) -> None:
    folder = write_folder(models, tmp_path / "hf", kind, **changes)
    with pytest.raises(UnsupportedError) as caught:
        convert(folder, tmp_path / "m.gguf", quiet=True)
    assert expected in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_input_norms_are_in_all_projections_or_in_none(models: ModuleType, tmp_path: Path) -> None:
    folder = write_folder(models, tmp_path / "hf", "qwen3", num_hidden_layers=4)
    with pytest.raises(BadFileError, match=r"missing: layers\.3\.input_layernorm\.weight"):
        convert(folder, tmp_path / "m.gguf", quiet=True)


def test_a_file_as_microsofts_converter_writes_it(converted: dict[str, Path], tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    """Norms in F16, no window, no activation, no scale of queries, mean pooling: read as bitnet.cpp reads it."""
    from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf

    with open_gguf(converted["gemma3"]) as file:
        tensors = []
        for info in file.tensors.values():
            raw, kind = file.raw(info.name).copy(), info.type
            if "norm" in info.name:
                raw, kind = raw.view("<f4").astype("<f2").view(np.uint8), TensorType.F16
            tensors.append(OutputTensor(info.name, kind, info.shape, lambda raw=raw: raw))
        left = {k: v for k, v in file.typed_metadata.items() if not k.endswith(("_swa", "window", "pattern", "activation", "scale"))}
        write_gguf(tmp_path / "m.gguf", "gemma3", left | {"gemma3.pooling_type": 1}, tensors)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert why_not(file, embeds=True).reason is None
        c = read_config(file)
        assert (c.pooling, c.kinds[0].window, c.activation, c.query_factor) == ("mean", 0, "gelu_pytorch_tanh", 1.0)
    assert np.isfinite(text_of(tmp_path / "m.gguf").states([1, 2, 3])).all()


# ---- from texts to vectors ----


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_do_not_depend_on_their_company(kind: str, converted: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    with open_gguf(converted[kind]) as file:
        tokenizer = tokenizer_from_metadata(file.metadata, kind)
    decoder = text_of(converted[kind], threads=2)
    seen = []
    vectors = embedding.embed(Scheduler(decoder.engine), tokenizer, TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert vectors.shape == (5, decoder.engine.config.hidden) and vectors.dtype == np.float32
    assert seen == [(i, 5) for i in range(1, 6)]
    assert np.allclose(np.square(vectors).sum(-1), 1, atol=1e-6)
    again = embedding.embed(Scheduler(decoder.engine), tokenizer, TEXTS[::-1])
    assert np.array_equal(again[::-1], vectors)
    alone = embedding.embed(Scheduler(text_of(converted[kind]).engine), tokenizer, TEXTS[2:3])
    assert np.array_equal(alone[0], vectors[2])
    cosines = vectors @ vectors.T
    assert np.allclose(np.diag(cosines), 1, atol=1e-6) and np.abs(cosines - np.diag(np.diag(cosines))).max() < 0.99
    mean = embedding.embed(Scheduler(decoder.engine), tokenizer, TEXTS, pooling="mean")
    assert not np.allclose(mean, vectors, atol=1e-2)


def test_pooling_and_length(converted: dict[str, Path], text_of: Callable[..., Sequence]) -> None:
    decoder, ids = text_of(converted["qwen3"]), [5, 6, 7, 8]
    states, scheduler = decoder.states(ids), Scheduler(decoder.engine)
    decoder.release()

    def embed_ids(pooling: str, normalize: bool) -> np.ndarray:
        return embedding.embed_ids(scheduler, [ids], pooling, normalize)[0]

    assert np.array_equal(embed_ids("none", False), states)
    assert np.array_equal(embed_ids("last", False), states[3:])
    assert np.allclose(embed_ids("mean", False)[0], states.astype(np.float64).mean(0), rtol=1e-6)
    assert np.allclose(embed_ids("last", True), states[3:] / np.linalg.norm(states[3]), rtol=1e-6)
    assert np.array_equal(embedding.normalized(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))


def test_long_texts_are_cut_before_their_end_token(converted: dict[str, Path]) -> None:
    with open_gguf(converted["qwen3"]) as file:
        tokenizer = tokenizer_from_metadata(file.metadata, "m")
    whole, cut = embedding.token_ids(tokenizer, TEXTS[0], 100)
    assert cut == 0 and whole[-1] == tokenizer.eos_id == 1
    short, cut = embedding.token_ids(tokenizer, TEXTS[0], 5)
    assert short == [*whole[:4], 1] and cut == len(whole) - 5
    assert embedding.token_ids(tokenizer, "", 5) == ([1], 0)


def test_a_model_without_pooling(tmp_path: Path, text_of: Callable[..., Sequence]) -> None:
    path = write_model(tmp_path / "m.gguf", random_model())
    with open_gguf(path) as file:
        tokenizer = tokenizer_from_metadata(file.metadata, "m")
        assert "no embedding model; --pooling last or --pooling mean" in str(why_not(file, embeds=True).reason)
    with pytest.raises(UsageError, match="expected last or mean"):
        embedding.embed(Scheduler(text_of(path).engine), tokenizer, ["a"])
    assert embedding.embed(Scheduler(text_of(path).engine), tokenizer, ["a"], pooling="mean").shape == (1, 128)


@pytest.mark.parametrize(("value", "expected"), [(2, "type: 2 is not supported; 1 (mean) and 3 (last) are"), (4, "4 is not supported")])
def test_other_poolings(tmp_path: Path, value: int, expected: str) -> None:
    path = write_model(tmp_path / "m.gguf", random_model(), metadata={"pooling_type": value})
    with open_gguf(path) as file, pytest.raises(UnsupportedError) as caught:
        read_config(file)
    assert expected in str(caught.value)
