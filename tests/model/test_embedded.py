"""The model that ships: its text and its perplexity are those of the training code (scripts/make_golden.py)."""

import json
from pathlib import Path

import pytest

from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.decoder import Decoder
from bitnet_cli.model.generate import Plan, generate
from bitnet_cli.model.perplexity import score
from bitnet_cli.model.sampler import Sampler, Sampling
from bitnet_cli.model.session import Session
from bitnet_cli.text.tokenizer import Tokenizer, tokenizer_from_metadata

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED = json.loads((GOLDEN / "embedded.json").read_text())


@pytest.fixture(scope="module")
def opened() -> tuple[Decoder, Tokenizer]:
    with open_gguf(EMBEDDED_MODEL) as file:
        return Decoder(file), tokenizer_from_metadata(file.metadata, str(file.path))


def test_it_is_small_enough_to_ship() -> None:
    assert EMBEDDED_MODEL.stat().st_size <= 6 << 20


@pytest.mark.parametrize("prompt", EXPECTED["greedy"])
def test_greedy_text(opened: tuple[Decoder, Tokenizer], prompt: str) -> None:
    decoder, tokenizer = opened
    expected = EXPECTED["greedy"][prompt]
    decoder.rewind(0)
    sampler = Sampler(Sampling(temperature=0))
    assert list(generate(Session(decoder), tokenizer.encode(prompt), sampler, Plan(len(expected)))) == expected


def test_golden_texts_are_long_enough_to_mean_something() -> None:
    assert sum(map(len, EXPECTED["greedy"].values())) >= 40


def test_perplexity_to_three_digits(opened: tuple[Decoder, Tokenizer]) -> None:
    decoder, tokenizer = opened
    ids = tokenizer.encode((GOLDEN / "excerpt.txt").read_text(encoding="utf-8"))
    result = score(decoder, ids, decoder.context, decoder.context)
    assert result.tokens == EXPECTED["tokens"]
    assert result.perplexity == pytest.approx(EXPECTED["perplexity"], rel=5e-4)
    assert result.perplexity < 60  # a model that predicts nothing has 4096
