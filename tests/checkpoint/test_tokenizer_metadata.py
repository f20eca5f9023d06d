"""Tokenizer files -> `tokenizer.*` metadata, and the faults of row 29."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from bitnet_cli.checkpoint.config import read_config
from bitnet_cli.checkpoint.tokenizer import tokenizer_metadata
from bitnet_cli.errors import BadFileError, UnsupportedError
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.pre_tokenizers import IGNORE_MERGES, STEPS

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(models: ModuleType, tmp_path: Path) -> Path:
    written: Path = models.write_folder(tmp_path / "model", "C_packed")
    return written


def edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def metadata(folder: Path) -> dict[str, Any]:
    return tokenizer_metadata(folder, read_config(folder)).values


def test_byte_level_bpe(folder: Path, models: ModuleType) -> None:
    values = metadata(folder)
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    assert tokens[:3] == list(models.SPECIAL) and tokens[3:259] == models.byte_alphabet()
    assert values["tokenizer.ggml.merges"] == list(models.MERGES)
    # 3 special, 256 bytes, 23 merges, and padding up to the 320 rows of the embedding.
    assert types == [3] * 3 + [1] * 279 + [5] * 38 and len(tokens) == len(set(tokens)) == 320
    ids = {key.split(".")[-1]: value for key, value in values.items() if key.endswith("_id")}
    assert ids == {"bos_token_id": 0, "eos_token_id": 1, "eot_token_id": 2}
    assert values["tokenizer.ggml.add_bos_token"] is True  # from the post-processor's template
    assert values["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"


def test_merges_in_the_older_form(folder: Path) -> None:
    before = metadata(folder)

    def as_strings(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    edit(folder / "tokenizer.json", as_strings)
    assert metadata(folder) == before


def test_the_reader_of_gguf_gives_the_ids_of_the_folder(folder: Path) -> None:
    """The whole point: our tokenizer on this metadata, and the tokenizers package on the folder."""
    ours = tokenizer_from_metadata(metadata(folder), str(folder))
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for line in ("the and in 1234\n\n\nó's  thing", "", " ", "ærø 東京 \U0001f600", "a\tb\r\nc"):
        assert list(ours.encode(line)) == reference.encode(line).ids


def test_added_tokens_that_are_not_special(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda d: d["added_tokens"].append({"id": 290, "content": "<tool>", "special": False}))
    values = metadata(folder)
    assert values["tokenizer.ggml.tokens"][290] == "<tool>" and values["tokenizer.ggml.token_type"][290] == 4
    assert values["tokenizer.ggml.token_type"][282:290] == [5] * 8  # ids between that nobody has


def test_padding_never_repeats_a_token(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda d: d["added_tokens"].append({"id": 282, "content": "[PAD319]", "special": True}))
    tokens = metadata(folder)["tokenizer.ggml.tokens"]
    assert tokens[282] == "[PAD319]" and tokens[319] == "[[PAD319]]" and len(set(tokens)) == 320


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m["model"]["vocab"].update({"zz": 400}), BadFileError, "401 tokens, but config.json has vocab_size 320"),
        (lambda m: m["model"]["vocab"].update({"zz": 10**9}), BadFileError, "'zz' with id 1000000000"),
        (lambda m: m["model"]["vocab"].update({"zz": 50000}), BadFileError, "283 tokens, but ids up to 50000"),
        (lambda m: m["model"]["vocab"].update({"zz": -1}), BadFileError, "'zz' with id -1"),
        (lambda m: m["model"]["vocab"].update({"zz": 1.5}), BadFileError, "'zz' with id 1.5"),
        (lambda m: m["model"]["vocab"].update({"": 290}), BadFileError, "'' with id 290"),
        (lambda m: m["model"]["vocab"].update({"zz": 5}), BadFileError, "token id 5: belongs to both"),
        (lambda m: m["model"]["vocab"].update({"\ud800": 290}), BadFileError, "token 290: half of a surrogate pair"),
        (lambda m: m["model"].update(vocab=[]), BadFileError, "model.vocab: expected an object"),
        (lambda m: m["model"].update(vocab={}), BadFileError, "model.vocab: expected an object"),
        (lambda m: m["model"].update(merges={}), BadFileError, "model.merges: expected a list"),
        (lambda m: m["model"]["merges"].append(["t", "zz"]), BadFileError, r"model.merges\[23\]: 'zz' is not in the vocabulary"),
        (lambda m: m["model"]["merges"].append(["h", "t"]), BadFileError, r"model.merges\[23\]: 'ht' is not in the vocabulary"),
        (lambda m: m["model"]["merges"].append("t h e"), BadFileError, "expected two tokens"),
        (lambda m: m["model"]["merges"].append(["t", ""]), BadFileError, "expected two tokens"),
        (lambda m: m["model"]["merges"].append(7), BadFileError, "expected two tokens"),
        (lambda m: m["added_tokens"].append({"id": 3, "content": "<x>"}), BadFileError, "token id 3: belongs to both"),
        (lambda m: m["added_tokens"].append({"id": 290, "content": "<|eot_id|>"}), BadFileError, "has id 290, and 2 in model.vocab"),
        (lambda m: m["added_tokens"].extend({"id": i, "content": "<x>"} for i in (290, 291)), BadFileError, "one token has two ids"),
        (lambda m: m["added_tokens"].append("x"), BadFileError, "added_tokens: expected objects"),
        (lambda m: m["model"].update(type="Unigram"), UnsupportedError, "model.type: Unigram is not supported"),
        (lambda m: m["model"].update(byte_fallback=True), UnsupportedError, "model.byte_fallback"),
        (lambda m: m["model"].update(end_of_word_suffix="</w>"), UnsupportedError, "model.end_of_word_suffix"),
        (lambda m: m.update(normalizer={"type": "Lowercase"}), UnsupportedError, "normalizer: Lowercase is not supported; NFC, NFD, .*are"),
        (lambda m: m.update(normalizer=7), UnsupportedError, "normalizer: expected steps"),
        (lambda m: m.update(pre_tokenizer=None), UnsupportedError, "pre_tokenizer: expected steps"),
        (lambda m: m.update(pre_tokenizer={"type": "Whitespace"}), UnsupportedError, "pre_tokenizer: expected one step ByteLevel"),
    ],
)
def test_damaged_or_unknown(folder: Path, change: Change, error: type[Exception], message: str) -> None:
    edit(folder / "tokenizer.json", change)
    with pytest.raises(error, match=message):
        metadata(folder)


def test_ignore_merges_off(folder: Path) -> None:
    """Said under a key of ours, since the name implies that it is on; a name that does not is taken where it would change ids."""
    edit(folder / "tokenizer.json", lambda d: d["model"].update(ignore_merges=False))
    found = tokenizer_metadata(folder, read_config(folder))
    assert (found.values["tokenizer.ggml.pre"], found.values[IGNORE_MERGES], found.notes) == ("llama-bpe", False, [])
    edit(folder / "tokenizer.json", lambda d: d["model"]["vocab"].update({"alone": 282}))
    found = tokenizer_metadata(folder, read_config(folder))
    assert (found.values["tokenizer.ggml.pre"], IGNORE_MERGES in found.values, found.notes) == ("dbrx", False, [])


def test_tokens_past_the_embedding(folder: Path) -> None:
    """Added tokens that the model was never trained with are left out; an ordinary one is a contradiction (above)."""
    more = [{"id": i, "content": f"<more {i}>", "special": i % 2 == 0, "rstrip": True} for i in range(318, 324)]
    edit(folder / "tokenizer.json", lambda d: d["added_tokens"].extend(more))
    found = tokenizer_metadata(folder, read_config(folder))
    assert len(found.values["tokenizer.ggml.tokens"]) == len(found.values["tokenizer.ggml.token_type"]) == 320
    assert found.values["bitnet.tokenizer.added.rstrip"] == [318, 319]
    assert found.notes == ["4 tokens from '<more 320>' on have no row in the embedding of 320: left out"]
    tokenizer = tokenizer_from_metadata(found.values, "made")
    assert tokenizer.encode("<more 319> x", bos=False) == [319, *tokenizer.encode("x", bos=False)]
    assert tokenizer.decode(tokenizer.encode("<more 321>")) == "<more 321>"


def test_begin_of_text(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda d: d.update(add_bos_token=False))
    assert metadata(folder)["tokenizer.ggml.add_bos_token"] is False  # the setting wins over the template
    edit(folder / "tokenizer_config.json", lambda d: d.pop("add_bos_token"))
    edit(folder / "tokenizer.json", lambda d: d.update(post_processor={"type": "Sequence", "processors": [d["post_processor"]]}))
    assert metadata(folder)["tokenizer.ggml.add_bos_token"] is True
    edit(folder / "tokenizer.json", lambda d: d.update(post_processor=None))
    # Said although it is the default of transformers: readers of llama-bpe add BOS where the file is silent.
    assert metadata(folder)["tokenizer.ggml.add_bos_token"] is False
    edit(folder / "tokenizer_config.json", lambda d: d.update(add_bos_token=True, bos_token=None))
    edit(folder / "config.json", lambda d: d.update(bos_token_id=None))
    with pytest.raises(BadFileError, match="add_bos_token: true, but neither"):
        metadata(folder)
    edit(folder / "tokenizer_config.json", lambda d: d.update(add_bos_token="yes"))
    with pytest.raises(BadFileError, match="add_bos_token: expected true or false"):
        metadata(folder)


def test_special_ids(folder: Path) -> None:
    edit(folder / "config.json", lambda d: d.update(bos_token_id=None, eos_token_id=None, pad_token_id=-1))
    edit(folder / "tokenizer_config.json", lambda d: d.update(eos_token={"content": "<|end_of_text|>"}, pad_token="<|eot_id|>"))
    values = metadata(folder)  # by name, as a string and as an object
    keys = ("bos", "eos", "eot", "padding")
    assert [values[f"tokenizer.ggml.{key}_token_id"] for key in keys] == [0, 1, 2, 2]
    edit(folder / "generation_config.json", lambda d: d.update(eos_token_id=[2, 7]))
    edit(folder / "config.json", lambda d: d.update(eos_token_id=[1, 9]))
    result = tokenizer_metadata(folder, read_config(folder))
    assert [result.values[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [1, 2, 9]
    assert result.values["tokenizer.ggml.eos_token_ids"] == [1, 9, 2, 7]
    assert result.notes == ["the model stops at 4 tokens, of which llama.cpp reads three; all are in tokenizer.ggml.eos_token_ids"]


def test_chat_template(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(folder / "tokenizer_config.json", lambda d: d.update(chat_template=named))
    found = metadata(folder)
    assert (found["tokenizer.chat_template"], found["tokenizer.chat_template.tool_use"]) == ("D", "T")
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("J ⟨", encoding="utf-8")
    assert metadata(folder)["tokenizer.chat_template"] == "J ⟨"
    assert "tokenizer.chat_templates" not in metadata(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool use.jinja").write_text("U", encoding="utf-8")
    found = metadata(folder)
    assert (found["tokenizer.chat_template"], found["tokenizer.chat_template.tool_use"]) == ("J ⟨", "U")
    assert found["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadFileError, match="not UTF-8"):
        metadata(folder)
    (folder / "chat_template.jinja").unlink()
    for bad in (7, "x" * ((1 << 20) + 1)):
        edit(folder / "tokenizer_config.json", lambda d, bad=bad: d.update(chat_template=bad))
        with pytest.raises(BadFileError, match="chat_template: expected text"):
            metadata(folder)
    edit(folder / "tokenizer_config.json", lambda d: d.pop("chat_template"))
    assert "tokenizer.chat_template" not in metadata(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadFileError, match=r"tokenizer: missing: expected tokenizer\.json or tokenizer\.model"):
        metadata(folder)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model, trained here in a tenth of a second."""
    folder = tmp_path_factory.mktemp("pieces")
    text = folder / "text"
    text.write_text("the quick brown fox jumps over the lazy dog and then the other thing\n" * 50)
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options = {"model_type": "bpe", "vocab_size": 310, "byte_fallback": True, "user_defined_symbols": ["<tool>"], "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "bpe"), hard_vocab_limit=False, **options, **identity
    )
    for name, change in (("nfkc", {"normalization_rule_name": "nmt_nfkc"}), ("spaces", {"remove_extra_whitespaces": True})):
        prefix = str(folder / name)
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=prefix, hard_vocab_limit=False, **options, **(identity | change)
        )
    options |= {"model_type": "unigram", "vocab_size": 290}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "unigram"), hard_vocab_limit=False, **options, **identity
    )
    return folder


@pytest.fixture
def spm_folder(folder: Path, pieces: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").write_bytes((pieces / "bpe.model").read_bytes())
    return folder


def test_sentencepiece(spm_folder: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    size = reference.get_piece_size()
    values = metadata(spm_folder)
    tokens, scores, types = (values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    assert values["tokenizer.ggml.model"] == "llama" and len(tokens) == len(scores) == len(types) == 320 > size
    assert tokens[:size] == [reference.id_to_piece(i) for i in range(size)]
    assert scores[:size] == [reference.get_score(i) for i in range(size)]
    flags = {2: reference.is_unknown, 3: reference.is_control, 5: reference.is_unused, 6: reference.is_byte}
    for i in range(size):
        expected = next((kind for kind, is_kind in flags.items() if is_kind(i)), 4 if tokens[i] == "<tool>" else 1)
        assert types[i] == expected
    assert {1, 2, 3, 4, 6} == set(types[:size]) and types[size:] == [5] * (320 - size)
    assert values["tokenizer.ggml.unknown_token_id"] == reference.unk_id()
    assert values["tokenizer.ggml.add_space_prefix"] is True and values["tokenizer.ggml.add_bos_token"] is True


def test_sentencepiece_with_added_tokens(spm_folder: Path) -> None:
    size = sum(t != 5 for t in metadata(spm_folder)["tokenizer.ggml.token_type"])
    edit(spm_folder / "added_tokens.json", lambda d: d.update({"<pad>": size, "<far>": size + 2}))
    added = {str(size): {"content": "<pad>", "special": True}, "1": {"content": "<s>", "special": True}}
    edit(spm_folder / "tokenizer_config.json", lambda d: d.update(added_tokens_decoder=added))
    values = metadata(spm_folder)
    assert values["tokenizer.ggml.tokens"][size : size + 3] == ["<pad>", f"[PAD{size + 1}]", "<far>"]
    assert values["tokenizer.ggml.token_type"][size : size + 3] == [3, 5, 4]
    for bad, message in (
        ({"<x>": 5}, "is not the piece with this id"),
        ({"<x>": 10**6}, "far beyond"),
        ({"<x>": -1}, "expected text and an id"),
    ):
        edit(spm_folder / "added_tokens.json", lambda d, bad=bad: (d.clear(), d.update(bad)))
        with pytest.raises(BadFileError, match=message):
            metadata(spm_folder)


def test_a_sentencepiece_vocabulary_in_both_forms_is_read_from_the_model(spm_folder: Path) -> None:
    (spm_folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "byte_fallback": true}, "pre_tokenizer": null}')
    values = metadata(spm_folder)
    assert values["tokenizer.ggml.model"] == "llama" and STEPS not in values
    # Where spaces go is in tokenizer.json; without it, `legacy` tells.
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    edit(spm_folder / "tokenizer.json", lambda d: d.update(pre_tokenizer=metaspace, normalizer=None))
    by_json = metadata(spm_folder)
    assert json.loads(by_json[STEPS]) == metaspace
    (spm_folder / "tokenizer.json").unlink()
    assert STEPS not in metadata(spm_folder)
    edit(spm_folder / "tokenizer_config.json", lambda d: d.update(legacy=False))
    assert metadata(spm_folder)[STEPS] == by_json[STEPS]


def test_sentencepiece_of_another_kind(spm_folder: Path, pieces: Path) -> None:
    (spm_folder / "tokenizer.model").write_bytes((pieces / "unigram.model").read_bytes())
    with pytest.raises(UnsupportedError, match=r"model_type: 1 is not supported; 2 \(BPE\) is"):
        metadata(spm_folder)


@pytest.mark.parametrize(("name", "message"), [("nfkc", "character map"), ("spaces", "remove_extra_whitespaces")])
def test_sentencepiece_that_changes_the_text(spm_folder: Path, pieces: Path, name: str, message: str) -> None:
    (spm_folder / "tokenizer.model").write_bytes((pieces / f"{name}.model").read_bytes())
    with pytest.raises(UnsupportedError, match=f"normalizer_spec: .*{message}"):
        metadata(spm_folder)


def test_the_reader_of_gguf_gives_the_ids_of_the_pieces(spm_folder: Path) -> None:
    ours = tokenizer_from_metadata(metadata(spm_folder), str(spm_folder))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_folder / "tokenizer.model"))
    for line in ("the quick fox", " the  other", "ærø 東京", "thing\nbrown"):
        assert list(ours.encode(line, bos=False)) == reference.encode(line)


def test_damaged_sentencepiece(spm_folder: Path) -> None:
    path = spm_folder / "tokenizer.model"
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(BadFileError, match="pieces: none"):
        metadata(spm_folder)
    refused = 0
    for size in range(1, len(good), 97):
        path.write_bytes(good[:size])
        try:
            metadata(spm_folder)
        except (BadFileError, UnsupportedError):
            refused += 1
    assert refused > len(good) // 97 * 0.9  # a cut between two fields after the trainer's leaves a whole message
    twice = good[: 2 + good[1]]  # the first piece again
    for data, message in (
        (twice + good, "one piece has two ids"),
        (b"IQ== 0\nIg== 1\n", "SentencePiece model"),
        (b"\xff" * 40, "ends within"),
    ):
        path.write_bytes(data)
        with pytest.raises(BadFileError, match=message):
            metadata(spm_folder)


def test_nothing_is_shared_between_runs(folder: Path) -> None:
    """Padding happens on lists that belong to one call."""
    first = copy.deepcopy(metadata(folder))
    assert metadata(folder) == first
