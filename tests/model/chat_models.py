"""Small models that chat: a vocabulary with ChatML's tokens and a template in the file.

`chat_model` has random weights. `reciting_model` is a Markov chain: its blocks add nothing, and the head's row of each token is
the embedding of the token before it in a text, so that it answers everything with that text, word by word.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_cli.gguf_file.metadata import Typed, ValueType

from .builder import Model, Sizes, byte_alphabet, random_model, tokenizer_metadata, write_model

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
IM_END = 258


def chat_metadata(words: list[str], template: str | None = CHATML) -> dict[str, Any]:
    """Bytes, the controls, then words as tokens of their own (no merges: only the model writes them)."""
    count = 260 + len(words)
    values = tokenizer_metadata(count) | {"tokenizer.chat_template": template, "general.name": "chatty"}
    alphabet = byte_alphabet()
    written = ["".join(alphabet[byte] for byte in word.encode()) for word in words]
    values["tokenizer.ggml.tokens"] = [*alphabet, *CONTROLS, *written]
    values["tokenizer.ggml.token_type"] = [1] * 256 + [3] * 4 + [1] * len(words)
    values["tokenizer.ggml.merges"] = Typed([], ValueType.ARRAY, ValueType.STRING)
    return values | {"tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.eos_token_id": IM_END, "tokenizer.ggml.add_bos_token": False}


def chat_model(path: Path, *, seed: int = 7, context: int = 512, template: str | None = CHATML) -> Path:
    """Random weights: every answer depends on every token before it."""
    model = random_model(Sizes(context=context), seed=seed, tied=False)
    assert model.head is not None
    model.head[256:260] *= 0.1  # control tokens are never the likeliest
    return write_model(path, model, metadata=chat_metadata([], template))


def reciting_model(path: Path, text: str, *, context: int = 4096, endless: bool = False, template: str | None = CHATML) -> Path:
    """Answers `text`, greedily; endless: over and over."""
    tokens: list[str] = []
    piece = ""
    for word in re.findall(r"\s*\S+\s*", text):
        piece += word
        if piece not in tokens:  # a word that was there already is one token with the next
            tokens, piece = [*tokens, piece], ""
    assert not piece, "the text must not end with words that were there already"
    hidden = 256
    model = random_model(Sizes(layers=1, hidden=hidden, vocab=260 + len(tokens), context=context), seed=3, tied=False)
    for name in ("attn_output", "ffn_down"):
        model.ternary[f"blk.0.{name}"][:] = 0
    model.norms["output_norm"][:] = 1
    assert model.head is not None
    model.head[:] = 0
    before = ord("\n")  # the last token of the generation prompt
    for token in range(260, 260 + len(tokens)):
        model.head[token] += model.embedding[before]
        before = token
    model.head[260 if endless else IM_END] += model.embedding[before]
    model.head = np.asarray(model.head, np.float16).astype(np.float32)
    return write_model(path, model, metadata=chat_metadata(tokens, template))


__all__ = ["CHATML", "IM_END", "Model", "chat_model", "reciting_model"]
