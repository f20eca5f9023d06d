"""Two real vocabularies against llama.cpp's published test vectors: 46 texts and their ids for each."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.stream import IncrementalDecoder
from bitnet_cli.text.tokenizer import Tokenizer

END_OF_CASE = "\n__ggml_vocab_test__\n"
Real = tuple[Tokenizer, list[tuple[str, list[int]]]]


@pytest.fixture(scope="module", params=["llama-bpe", "llama-spm"])
def real(request: pytest.FixtureRequest, shared_vocab: Path) -> Real:
    path = shared_vocab / f"ggml-vocab-{request.param}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(END_OF_CASE)
    assert texts.pop() == ""  # what follows the last end of a case
    ids = [[int(n) for n in line.split()] for line in path.with_suffix(".gguf.out").read_text().splitlines()]
    with open_gguf(path) as file:
        return tokenizer_from_metadata(file.metadata, str(path)), list(zip(texts, ids, strict=True))


def test_all_vectors(real: Real) -> None:
    tokenizer, cases = real
    assert len(cases) == 46
    assert [(text, tokenizer.encode(text, bos=False)) for text, _ in cases] == cases


def test_vectors_decode_to_their_text(real: Real) -> None:
    tokenizer, cases = real
    for text, ids in cases:
        decoder = IncrementalDecoder(tokenizer)
        assert tokenizer.decode(ids) == text
        assert "".join([*map(decoder.push, ids), decoder.finish()]) == text


@pytest.fixture(scope="module")
def llama3(shared_vocab: Path) -> Tokenizer:
    """Without the name of the word pattern, like Microsoft's BitNet-2B-4T file."""
    path = shared_vocab / "ggml-vocab-llama-bpe.gguf"
    with open_gguf(path) as file:
        metadata: dict[str, Any] = dict(file.metadata)
    del metadata["tokenizer.ggml.pre"]
    return tokenizer_from_metadata(metadata, str(path))


def test_llama3_vocabulary_without_pre(llama3: Tokenizer) -> None:
    # GPT-2's pattern would take 12345 and o' as other words.
    ids = llama3.encode("It's 12345 o'clock")
    assert [llama3.token_text(i) for i in ids] == ["<|begin_of_text|>", "It", "'s", " ", "123", "45", " o", "'clock"]
    assert (llama3.vocab_size, llama3.bos_id, llama3.eos_ids) == (128256, 128000, {128001, 128009})


def test_llama3_special_tokens_come_from_templates_only(llama3: Tokenizer) -> None:
    assert llama3.encode("<|eot_id|>", special=True) == [128000, 128009]
    assert not set(llama3.encode("<|eot_id|>", bos=False)) & llama3.special_ids
