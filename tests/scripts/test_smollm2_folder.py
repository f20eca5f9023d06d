"""scripts/smollm2_folder.py on a tiny file of the same kind: tensors back in transformers' order, and the same tokens as our own reader."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.gguf_file.writer import OutputTensor, write_gguf
from bitnet_cli.text.byte_bpe import BYTE_OF
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 32


@pytest.fixture
def script(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(repo_root / "scripts"))
    return importlib.import_module("smollm2_folder")


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's conversion/llama.py, LlamaModel.permute: transformers' row order -> GGUF's for the architecture `llama`."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tiny_gguf(path: Path, weights: dict[str, np.ndarray]) -> Path:
    merges = ["Ġ t", "h e", "Ġt he", "1 2"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(BYTE_OF), *(m.replace(" ", "") for m in merges)]
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": 64, "vocab_size": len(tokens)}
    metadata: dict[str, Any] = {f"llama.{key}": value for key, value in sizes.items()}
    metadata |= {"llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS, "llama.rope.freq_base": 100000.0}
    metadata |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3)}
    metadata |= {"tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    metadata |= {"tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.add_bos_token": False}
    tensors = [OutputTensor(f"{name}.weight", TensorType.F32, w.shape, lambda w=w: w) for name, w in weights.items()]
    write_gguf(path, "llama", metadata, tensors)
    return path


def test_folder_of_a_tiny_file(script: ModuleType, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(heads * HEAD_DIM, HIDDEN)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    norm = rng.normal(size=HIDDEN).astype(np.float32)
    weights = {"blk.0.attn_q": permuted(q, HEADS), "blk.0.attn_k": permuted(k, KV_HEADS), "blk.0.attn_v": v, "output_norm": norm}
    gguf = tiny_gguf(tmp_path / "tiny.gguf", weights)
    script.write(gguf, tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    expected = {"model.norm.weight": norm} | {f"model.layers.0.self_attn.{n}_proj.weight": w for n, w in zip("qkv", (q, k, v), strict=True)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["num_key_value_heads"], config["rms_norm_eps"], config["rope_theta"]) == (KV_HEADS, 1e-5, 100000.0)
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["chat_template"]) == ("<|im_end|>", "{{ messages }}")
    theirs = Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    with open_gguf(gguf) as file:
        ours = tokenizer_from_metadata(file.metadata, str(gguf))
    for text in ("the 12 kings' 1984", "  the\n\nthe12the", "<|im_start|>user\nthé<|im_end|>", "½ ²3 x"):
        assert theirs.encode(text).ids == ours.encode(text, special=True, bos=False)
        assert theirs.decode(theirs.encode(text).ids, skip_special_tokens=False) == text
