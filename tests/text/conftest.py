"""Small vocabularies, trained here by the libraries themselves, as the metadata that a GGUF file would hold.

Each fixture gives a fresh dictionary, which a test may damage, or the library's own tokenizer, which is the oracle.
"""

import io
import json
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's 1984 or 2024.\n\n"
    "Le cœur déçu mais l'âme plutôt naïve. Größe, Straße, übermäßig.  Съешь же ещё этих мягких булок.\n"
    "def main():\n    return [x * 2 for x in range(100)]  # two spaces, four spaces\n"
    "こんにちは世界 — 你好，世界！ 😀😀 👍🏽 12345678 ½ ٣٤٥ THE THEY'LL\t\ttab\r\nend   \n   end\n"
)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
K = "tokenizer.ggml."


def split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def built_in() -> pre_tokenizers.PreTokenizer:
    """GPT-2's pattern, as the library has it compiled in."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def train_byte_bpe(pre: str) -> Library:
    """The library's tokenizer for one kind of word splitting, put together as the models' tokenizer.json files do."""
    library = Library(models.BPE(ignore_merges=pre == "llama-bpe"))
    steps = {
        "llama-bpe": lambda: split(LLAMA3),
        "qwen2": lambda: split(QWEN2),
        "gpt-2": lambda: [built_in()],
        "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), built_in()],
    }[pre]()
    if pre == "qwen2":
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    return library


def metadata_of(library: Library, pre: str) -> dict[str, Any]:
    """Normal tokens only; `add` appends the others."""
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        K + "model": "gpt2",
        K + "pre": pre,
        K + "tokens": tokens,
        K + "token_type": [NORMAL] * len(tokens),
        K + "merges": [" ".join(pair) for pair in model["merges"]],
    }


def add(metadata: dict[str, Any], text: str, kind: int) -> int:
    """Appends one token and returns its id."""
    metadata[K + "tokens"].append(text)
    metadata[K + "token_type"].append(kind)
    if K + "scores" in metadata:
        metadata[K + "scores"].append(0.0)
    return len(metadata[K + "tokens"]) - 1


@pytest.fixture(scope="session")
def libraries() -> dict[str, Library]:
    return {pre: train_byte_bpe(pre) for pre in ("llama-bpe", "qwen2", "gpt-2", "smollm")}


@pytest.fixture
def bpe(libraries: dict[str, Library]) -> dict[str, Any]:
    """Byte-level BPE, Llama 3's pattern; after the normal tokens: begin, end, end of turn, a user-defined one, padding, invalid UTF-8."""
    metadata = metadata_of(libraries["llama-bpe"], "llama-bpe")
    metadata[K + "bos_token_id"] = add(metadata, "<|begin_of_text|>", CONTROL)
    metadata[K + "eos_token_id"] = add(metadata, "<|end_of_text|>", CONTROL)
    add(metadata, "<|eot_id|>", CONTROL)
    add(metadata, "<image>", USER_DEFINED)
    add(metadata, "[PAD0]", UNUSED)
    add(metadata, "\udcff\udcfe", NORMAL)
    return metadata


@pytest.fixture
def add_token() -> Any:
    return add


@pytest.fixture(scope="session")
def training_text() -> str:
    return TEXT


@pytest.fixture(scope="session")
def spm_library() -> Any:
    """SentencePiece's own processor of a small vocabulary with byte fallback and two user-defined pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 5),
        model_writer=model,
        model_type="bpe",
        vocab_size=480,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<image>", "▁▁▁"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture
def spm(spm_library: Any) -> dict[str, Any]:
    """The same vocabulary as metadata; `▁▁▁` is written with spaces, as converters do."""
    p = spm_library
    count = p.vocab_size()
    tokens, types = [p.id_to_piece(i) for i in range(count)], []
    for i, text in enumerate(tokens):
        kinds = {2: p.is_unknown(i), 3: p.is_control(i), 4: text in ("<image>", "▁▁▁"), 6: p.is_byte(i)}
        types.append(next((kind for kind, holds in kinds.items() if holds), NORMAL))
    tokens[tokens.index("▁▁▁")] = "   "
    return {
        K + "model": "llama",
        K + "tokens": tokens,
        K + "scores": [p.get_score(i) for i in range(count)],
        K + "token_type": types,
        K + "bos_token_id": p.bos_id(),
        K + "eos_token_id": p.eos_id(),
        K + "unknown_token_id": p.unk_id(),
        K + "add_bos_token": True,
    }
