"""Tokens that are never chosen: those of type unused. Their rows of the head are made the largest here, and no numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitnet_kernels import isa

from bitnet_cli.api import load
from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.model import head
from bitnet_cli.model.completion import Request, complete
from bitnet_cli.model.constraint import regex_grammar
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.model.traffic import head_rows
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

from .builder import EOS, Sizes, random_model, tokenizer_metadata, write_model
from .held import prefill

VOCAB, PROMPT = 600, [3, 100, 200, 30]
SILENT = sorted({5, 77, 130, *range(270, 560, 2), *range(561, VOCAB)})
K = "tokenizer.ggml."
TYPES = [5 if i in SILENT else kind for i, kind in enumerate(tokenizer_metadata(VOCAB)[K + "token_type"])]
REQUESTS: dict[str, tuple[Sampling, Request]] = {
    "greedy": (Sampling(temperature=0), Request(40)),
    "top 40": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, seed=1), Request(40)),
    "top 250": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, top_k=250, seed=1), Request(40)),
    "more than there are": (Sampling(temperature=3.0, min_p=0.0, top_p=1.0, top_k=599, seed=1), Request(40)),
    "all": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, top_k=0, seed=1), Request(40)),
    "mirostat": (Sampling(temperature=2.0, mirostat=2, mirostat_tau=9.0, seed=2), Request(40)),
    "penalty": (Sampling(temperature=0, repeat_penalty=1.3), Request(40)),
    "reward": (Sampling(temperature=0, repeat_penalty=0.9), Request(40)),
    "no end": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, seed=3), Request(40, ignore_eos=True)),
    "logprobs": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, seed=4), Request(40, logprobs=VOCAB)),
    "drafts": (Sampling(temperature=0), Request(40, draft=8)),
    "a form": (Sampling(temperature=2.0, min_p=0.0, top_p=1.0, seed=5), Request(40, grammar=regex_grammar("(?s).{30,60}"))),
    "a greedy form": (Sampling(temperature=0), Request(40, grammar=regex_grammar("[a-z<>\\[\\] ]{30,60}"))),
}


def write(path: Path, row: float, types: Any = TYPES, **keys: Any) -> Path:
    """A model with random rows for silent tokens, so many times as large as the others; half of their logits are positive."""
    model = random_model(Sizes(vocab=VOCAB), seed=11, tied=False)
    assert model.head is not None
    model.head[SILENT] *= row
    return write_model(path, model, metadata={K + "token_type": types} | {K + key: value for key, value in keys.items()})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("silent") / "loud.gguf", 50.0)


@pytest.fixture
def opening() -> Iterator[Callable[[Path], OpenModel]]:
    opened: list[OpenModel] = []

    def make(path: Path) -> OpenModel:
        opened.append(open_model(path, Options(threads=1)))
        return opened[-1]

    yield make
    for model in opened:
        model.scheduler.close()


@pytest.mark.parametrize("name", REQUESTS)
def test_unused_tokens_are_never_chosen(
    name: str, path: Path, tmp_path: Path, opening: Callable[[Path], OpenModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where all logits are there, not where the largest are searched, with the same tokens; nor does it matter what the rows hold."""
    sampling, request = REQUESTS[name]
    plain = opening(path)
    assert plain.engine.silent.tolist() == SILENT
    assert int(prefill(plain.engine, PROMPT)[0].argmax()) in SILENT
    monkeypatch.setattr(head, "SMALLEST_HEAD", 0)
    models = [plain, opening(path), opening(write(tmp_path / "quiet.gguf", 0.0)), opening(write(tmp_path / "nan.gguf", np.nan))]
    texts = []
    for model in models:
        completion = complete(model, PROMPT, sampling, request)
        list(completion)
        texts.append(completion.ids)
        assert set(completion.ids).isdisjoint(SILENT)
        for one in completion.logprobs:
            assert len(one.top) == VOCAB - len(SILENT) and {i for i, _ in one.top}.isdisjoint(SILENT)
            assert sum(np.exp(logprob) for _, logprob in one.top) == pytest.approx(1.0)
    assert len(texts[0]) > 5 and texts.count(texts[0]) == len(texts)


@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="the naive kernels read every row")
def test_a_search_reads_no_byte_of_them(path: Path, opening: Callable[[Path], OpenModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "SMALLEST_HEAD", 0)
    engine = opening(path).engine
    found, _ = prefill(engine, PROMPT, top=40)
    assert head_rows(engine)[0] == VOCAB - len(SILENT)
    assert (found[SILENT] == -np.inf).all()
    every = engine.all_logits(len(PROMPT) - 1, 0).copy()
    assert np.isfinite(every).all() and int(every.argmax()) in SILENT
    every[SILENT] = -np.inf
    largest = np.argsort(-every)[:40]
    assert np.array_equal(found[largest], every[largest])
    assert (prefill(engine, PROMPT, top=40)[0][SILENT] == -np.inf).all()  # after all of them were computed
    sampler = Sampler(Sampling(), never=[1, 2])
    sampler.silence(engine.silent)
    assert sampler.top == 42


def test_perplexity_and_logits(path: Path) -> None:
    """Probabilities are of the tokens that there are; logits are what the model computes."""
    ids = [3, 100, 200, 30, 41, 250, 9]
    with load(path, threads=1) as model:
        logits = model.logits(ids, every=True)[:-1].astype(np.float64)
        assert np.isfinite(logits).all()
        logits[:, SILENT] = -np.inf
        nats = np.log(np.exp(logits).sum(1)) - logits[range(6), ids[1:]]
        assert model.perplexity(ids).nats == pytest.approx(nats.mean(), rel=1e-4)
        with pytest.raises(UsageError, match="token 77 is unused"):
            model.perplexity([3, 77, 4])
        assert model.perplexity([77, 3, 4]).tokens == 2  # the first token is not foretold


def test_an_end_is_chosen_whatever_its_type(tmp_path: Path, opening: Callable[[Path], OpenModel]) -> None:
    types = [5 if i == EOS else kind for i, kind in enumerate(TYPES)]
    opened = opening(write(tmp_path / "m.gguf", 50.0, types, eos_token_ids=[EOS, 300, 302]))
    assert opened.engine.silent.tolist() == [i for i in SILENT if i not in (300, 302)]
    assert {EOS, 300, 302} <= opened.tokenizer.eos_ids
    assert sorted(opened.tokenizer.silent_ids) == opened.engine.silent.tolist()


@pytest.mark.parametrize("end", [65, 258, 300, 400, 561])
def test_every_end_that_a_file_names_stops_the_text(end: int, tmp_path: Path, opening: Callable[[Path], OpenModel]) -> None:
    """However many: here seven, of which one is likelier than any other token."""
    model = random_model(Sizes(vocab=VOCAB), seed=11, tied=False)
    assert model.head is not None
    model.head[end] = 0
    keys = {K + "token_type": TYPES, K + "eos_token_ids": [65, 258, 300, 302, 304, 400, 561]}
    plain = opening(write_model(tmp_path / "m.gguf", model, metadata=keys))
    state = Sequence(plain.engine).states(PROMPT)[-1]
    model.head[end] = state
    opened = opening(write_model(tmp_path / "m.gguf", model, metadata=keys))
    completion = complete(opened, PROMPT, Sampling(temperature=0), Request(10))
    assert "".join(completion) == "" and completion.finish == "stop"
    ignored = complete(opened, PROMPT, Sampling(temperature=0), Request(10, ignore_eos=True))
    list(ignored)
    assert len(ignored.ids) == 10 and not {65, 258, 300, 302, 304, 400, 561} & set(ignored.ids)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"eos_token_ids": [1, VOCAB]}, "eos_token_ids: is not an array of ids from 0 to 599"),
        ({"eos_token_ids": [1, -1]}, "eos_token_ids: is not an array of ids"),
        ({"eos_token_ids": ["a"]}, "eos_token_ids: is not an array of ids"),
        ({"eos_token_ids": [1.5]}, "eos_token_ids: is not an array of ids"),
        ({"eos_token_ids": 3}, "eos_token_ids: is not an array of ids"),
        ({"token_type": [5] * VOCAB, "eos_token_id": None}, "token_type: is 5 .unused. for every token"),
    ],
)
def test_wrong_ends(keys: dict[str, Any], word: str) -> None:
    metadata = {
        key: value for key, value in (tokenizer_metadata(VOCAB) | {K + key: v for key, v in keys.items()}).items() if value is not None
    }
    metadata[K + "merges"] = []
    with pytest.raises(BadFileError, match=word):
        tokenizer_from_metadata(metadata, "m.gguf")


def test_rows_past_the_tokenizer(tmp_path: Path, opening: Callable[[Path], OpenModel]) -> None:
    """A file whose vocabulary was not filled up: the rows are no tokens, whatever their logits, and every mode goes as with unused ones."""
    model = random_model(Sizes(vocab=VOCAB), seed=11, tied=False)
    assert model.head is not None
    model.head[260:] *= 50
    types = [1] * 256 + [3] * 4 + [5] * (VOCAB - 260)
    filled = opening(write_model(tmp_path / "filled.gguf", model, metadata={K + "token_type": types}))
    short = opening(write_model(tmp_path / "short.gguf", model, metadata=tokenizer_metadata(260) | {"vocab_size": 260}))
    for sampling, request in REQUESTS.values():
        texts = []
        for opened in (filled, short):
            completion = complete(opened, PROMPT, sampling, request)
            list(completion)
            texts.append(completion.ids)
        assert texts[0] == texts[1] and max(texts[0]) < 260
