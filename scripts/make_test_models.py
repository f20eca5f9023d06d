"""Tiny random checkpoint folders in every flavour that they come in, with NumPy alone.

    python scripts/make_test_models.py OUT              OUT/A_online, B_packed_auto, C_packed, D_dequantised, E_master, F_unpacked
    python scripts/make_test_models.py OUT --kind llama     the same of another family: KINDS
    python scripts/make_test_models.py OUT --fixtures   also tests/golden/tiny_c.npz, from transformers in float32 (needs extra `train`)

All flavours of one seed come from one set of master weights. With `exact` scales, mean|W| of every projection is a power of two: it
survives bfloat16 (B), the reciprocal (C) and the product with the ternary values (D), so all folders hold the same model to the bit.
Without, the masters are normal and B and D lose up to 2^-8 of the scale: bfloat16 keeps 8 bits.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
FLAVOURS = ("A_online", "B_packed_auto", "C_packed", "D_dequantised", "E_master", "F_unpacked")
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
MERGES = ("t h", "h e", "th e", "i n", "a n", "Ġ t", "Ġ a", "Ġt he", "Ġ w", "e r", "o n", "an d", "Ġ and", "r e", "Ġ s", "o u", "in g")
MERGES += ("1 2", "12 3", "Ġ b", "Ġ ó", "Ċ Ċ", "' s")
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tiny_c.npz"


@dataclass(frozen=True)
class Shape:
    """`feed_forward` is an odd multiple of 128, so that code for multiples of 256 is found out."""

    vocab_size: int = 320
    hidden: int = 256
    feed_forward: int = 640
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    context: int = 256
    rope_theta: float = 500000.0
    own_head_dim: int = 0  # 0: hidden / heads

    @property
    def head_dim(self) -> int:
        return self.own_head_dim or self.hidden // self.heads

    @property
    def widths(self) -> dict[str, int]:
        """h hidden, f feed-forward, q all query heads, k all key heads."""
        return {"h": self.hidden, "f": self.feed_forward, "q": self.heads * self.head_dim, "k": self.kv_heads * self.head_dim}


@dataclass(frozen=True)
class Kind:
    """A model family: its names and the parts of config.json that it decides."""

    architecture: str
    model_type: str
    activation: str
    norms: dict[str, str]  # beside the two that all have: name in a layer -> width
    shape: Shape
    tied: bool = True
    shards: int = 1  # GPUs that trained it, each with a scale for its rows of a matrix, or columns of those after attention and the gate


# Widths have the remainders by 64, 128 and 256 of published models: 8,640 is 64 mod 128, 5,460 is divided by 4 and not by 32.
KINDS = {
    "bitnet": Kind("BitNetForCausalLM", "bitnet", "relu2", {"self_attn.attn_sub_norm": "q", "mlp.ffn_sub_norm": "f"}, Shape()),
    "1bitllm": Kind(
        "BitnetForCausalLM",
        "llama",
        "silu",
        {"self_attn.inner_attn_ln": "q", "mlp.ffn_layernorm": "f"},
        Shape(hidden=320, feed_forward=832, heads=4, kv_heads=4, rope_theta=10000.0),
    ),
    "1bitllm-xl": Kind(
        "BitnetForCausalLM",
        "llama",
        "silu",
        {"self_attn.inner_attn_ln": "q", "mlp.ffn_layernorm": "f"},
        Shape(hidden=256, feed_forward=676, heads=4, kv_heads=4, rope_theta=10000.0),
    ),
    "llama": Kind("LlamaForCausalLM", "llama", "silu", {}, Shape(feed_forward=768, own_head_dim=96), tied=False),
    "trilm": Kind("LlamaForCausalLM", "llama", "silu", {}, Shape(hidden=512, feed_forward=1024, kv_heads=4, own_head_dim=128), shards=2),
}


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """float32 -> the upper 16 bits, rounded to nearest, halves to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x: NDArray[np.uint16]) -> Floats:
    return (x.astype(np.uint32) << 16).view(np.float32)


def exact_master(rng: np.random.Generator, rows: int, cols: int) -> Floats:
    """Multiples of s / 32 with mean|W| exactly s, s a power of two; all of them bfloat16 numbers."""
    steps = np.clip(np.rint(rng.normal(0, 40, rows * cols)), -100, 100).astype(np.int64)
    while excess := int(np.abs(steps).sum()) - 32 * steps.size:
        movable = np.flatnonzero(np.abs(steps) < 100) if excess < 0 else np.flatnonzero(steps)
        chosen = rng.permutation(movable)[: abs(excess)]
        direction = np.where(steps[chosen] < 0, -1, 1)
        steps[chosen] -= direction if excess > 0 else -direction
    return (steps.reshape(rows, cols) * 2.0 ** (-5 - int(rng.integers(4, 8)))).astype(np.float32)


def normal_master(rng: np.random.Generator, rows: int, cols: int) -> Floats:
    return rng.normal(0, rng.uniform(0.01, 0.04), (rows, cols)).astype(np.float32)


def masters(shape: Shape, seed: int = 0, exact: bool = True, kind: Kind = KINDS["bitnet"]) -> dict[str, Floats]:
    """All parameters by their transformers names; every value is a bfloat16 number."""
    rng, widths = np.random.default_rng(seed), shape.widths
    h, f, q, kv = widths["h"], widths["f"], widths["q"], widths["k"]
    sizes = {"self_attn.q": (q, h), "self_attn.k": (kv, h), "self_attn.v": (kv, h), "self_attn.o": (h, q)}
    sizes |= {"mlp.gate": (f, h), "mlp.up": (f, h), "mlp.down": (h, f)}
    norms = {"input_layernorm": h, "post_attention_layernorm": h} | {name: widths[width] for name, width in kind.norms.items()}
    result: dict[str, Floats] = {"model.embed_tokens.weight": rng.normal(0, 0.5, (shape.vocab_size, h)).astype(np.float32)}
    for n in range(shape.layers):
        for name, (rows, cols) in sizes.items():
            weight = exact_master(rng, rows, cols) if exact else normal_master(rng, rows, cols)
            result[f"model.layers.{n}.{name}_proj.weight"] = weight
        for name, size in norms.items():
            result[f"model.layers.{n}.{name}.weight"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
    result["model.norm.weight"] = rng.uniform(0.5, 1.5, h).astype(np.float32)
    if not kind.tied:
        result["lm_head.weight"] = rng.normal(0, 0.5, (shape.vocab_size, h)).astype(np.float32)
    return {name: from_bf16(to_bf16(value)) for name, value in result.items()}


def ternary(weight: Floats) -> tuple[NDArray[np.int8], np.float32]:
    """Written out here, so that tests do not compare the package with itself."""
    scale = np.float32(np.abs(weight.astype(np.float64)).mean())
    return np.clip(np.rint(weight / scale), -1, 1).astype(np.int8), scale


def packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Byte row r holds rows r, r + R, r + 2R, r + 3R at bits 0, 2, 4, 6; R = rows / 4."""
    blocks = (values + 1).astype(np.uint8).reshape(4, -1, values.shape[1])
    return blocks[0] + 4 * blocks[1] + 16 * blocks[2] + 64 * blocks[3]


def in_shards(weight: Floats, shards: int, columns: bool) -> Floats:
    """Each shard -s, 0, s with the s of its own mean, a float16: (rows, cols) float32."""
    parts = np.split(weight, shards, axis=1 if columns else 0)
    done = []
    for number, part in enumerate(parts):
        codes, scale = ternary(part * np.float32(1 + number / 3))
        done.append(codes * np.float32(np.float16(scale)))
    return np.concatenate(done, axis=1 if columns else 0)


def sharded(parameters: dict[str, Floats], shards: int) -> dict[str, tuple[str, NDArray[Any]]]:
    """As SpectraSuite/TriLM_*_Unpacked: float16, with several scales a matrix."""
    result = {}
    for name, value in parameters.items():
        if "_proj" in name:
            value = in_shards(value, shards, name.endswith(("o_proj.weight", "down_proj.weight")))  # noqa: PLW2901
        result[name] = ("F16", value.astype("<f2"))
    return result


def tensors_of(flavour: str, parameters: dict[str, Floats]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Name -> (safetensors dtype, array in that type)."""
    result: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, value in parameters.items():
        if "_proj" not in name or flavour in ("A_online", "E_master"):
            result[name] = ("BF16", to_bf16(value))
            continue
        codes, scale = ternary(value)
        if flavour == "D_dequantised":
            result[name] = ("BF16", to_bf16(codes * scale))
        elif flavour == "F_unpacked":
            result[name] = ("BF16", to_bf16(codes.astype(np.float32)))
        else:
            result[name] = ("U8", packed(codes))
        if flavour == "B_packed_auto":
            result[f"{name}_scale"] = ("BF16", to_bf16(scale.reshape(1)))
        elif flavour in ("C_packed", "F_unpacked"):
            result[f"{name}_scale"] = ("F32", (np.float32(1) / scale).reshape(1))
    return result


def write_safetensors(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, value) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in tensors.values():
            file.write(np.ascontiguousarray(value).tobytes())


def config_of(flavour: str, shape: Shape, kind: Kind = KINDS["bitnet"]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": kind.activation,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": kind.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }
    modes = {
        "A_online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
        "B_packed_auto": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
        "C_packed": {},
        "F_unpacked": {"linear_class": "bitlinear"},
    }
    if shape.own_head_dim:
        config["head_dim"] = shape.head_dim
    if flavour in modes:
        config["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": None} | modes[flavour]
    return config


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte 0 to 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = {byte: 256 + i for i, byte in enumerate(b for b in range(256) if b not in printable)}
    return [chr(other.get(byte, byte)) for byte in range(256)]


def tokenizer_json() -> dict[str, Any]:
    """282 tokens: 3 special, 256 bytes, 23 merges. The embedding's other rows are padding."""
    tokens = [*SPECIAL, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token} | flags for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": template,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def write_folder(
    folder: Path, flavour: str, shape: Shape | None = None, seed: int = 0, exact: bool = True, kind: str = "bitnet", **config: Any
) -> Path:
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json of one flavour; returns `folder`.

    kind: one of KINDS; config: further fields of config.json.
    """
    family = KINDS[kind]
    shape = shape or family.shape
    folder.mkdir(parents=True, exist_ok=True)
    parameters = masters(shape, seed, exact, family)
    write_safetensors(
        folder / "model.safetensors", sharded(parameters, family.shards) if family.shards > 1 else tensors_of(flavour, parameters)
    )
    settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": "{{ messages[0]['content'] }}"}
    for name, value in {
        "config.json": config_of(flavour, shape, family) | config,
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": settings | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }.items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    return folder


def write_fixtures(folder: Path) -> None:
    """From C: token ids (24,), hidden states before each layer and after the last norm (layers + 1, 24, hidden), logits (24, vocab)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(1).integers(0, 282, 24)
    ids[0] = 0
    with torch.no_grad():
        out = model(torch.from_numpy(ids)[None], output_hidden_states=True, use_cache=False)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    hidden = np.stack([h[0].float().numpy() for h in out.hidden_states])
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        GOLDEN, ids=ids.astype(np.int32), hidden=hidden, logits=out.logits[0].float().numpy(), model_sha256=np.array(digest)
    )
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, model {digest[:12]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fixtures", action="store_true", help="write tests/golden/tiny_c.npz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="bitnet")
    arguments = parser.parse_args()
    for flavour in FLAVOURS:
        print(write_folder(arguments.out / flavour, flavour, seed=arguments.seed, kind=arguments.kind))
    if arguments.fixtures:
        if arguments.seed or arguments.kind != "bitnet":
            sys.exit("the fixtures are for seed 0 and kind bitnet")
        write_fixtures(arguments.out / "C_packed")


if __name__ == "__main__":
    main()
