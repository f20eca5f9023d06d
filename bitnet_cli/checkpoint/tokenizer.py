"""Tokenizer files of a folder -> GGUF metadata `tokenizer.*`, from which alone the file's reader builds the tokenizer.

    tokenizer.json          byte-level BPE      byte_bpe.py         tokenizer.ggml.model = gpt2
    tokenizer.json          SentencePiece BPE   spaced_bpe.py       tokenizer.ggml.model = llama
    tokenizer.model         SentencePiece       sentencepiece.py    tokenizer.ggml.model = llama

This module chooses, pads the vocabulary to the rows of the embedding, and adds what does not depend on the kind: ids of special tokens,
whether text starts with BOS, the chat template. Ids come from config.json first, as they do when a model generates.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint import byte_bpe, sentencepiece, spaced_bpe
from bitnet_cli.checkpoint.config import FolderConfig
from bitnet_cli.checkpoint.ends import Ends, Template, find_ends
from bitnet_cli.checkpoint.strict_json import MEGABYTE, read_bytes, read_object
from bitnet_cli.checkpoint.vocabulary import FolderVocabulary
from bitnet_cli.errors import BadFileError
from bitnet_cli.gguf_file.metadata import Typed, ValueType
from bitnet_cli.text.files import decode_text

MAX_TEMPLATE = MEGABYTE
MORE_TEMPLATES = "additional_chat_templates"  # a folder: transformers has the templates there that are not the default
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("added_tokens.json", "generation_config.json", "chat_template.jinja", f"{MORE_TEMPLATES}/tool_use.jinja"),
)


@dataclass(frozen=True)
class TokenizerMetadata:
    """`notes`: what the reader of the summary should know and the file cannot say."""

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def tokenizer_metadata(folder: Path, config: FolderConfig) -> TokenizerMetadata:
    """Raises BadFileError where files are missing, damaged or disagree, UnsupportedError for a tokenizer that GGUF readers do not know."""
    settings_path = folder / "tokenizer_config.json"
    settings = read_object(settings_path) if settings_path.exists() else {}
    vocabulary = _read_vocabulary(folder, settings)
    vocabulary.pad(config.vocab_size, config.path)
    values: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
    }
    values |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary.extra.items()} | vocabulary.own
    if values.get("tokenizer.ggml.merges") == []:  # a list without items does not say what it is a list of
        values["tokenizer.ggml.merges"] = Typed([], ValueType.ARRAY, ValueType.STRING)
    templates = _templates(folder, settings)
    template = templates.get("default")
    bos = config.bos if config.bos is not None else _named(settings, "bos_token", vocabulary)
    ends = _ends(folder, settings, vocabulary, config, template, bos)
    padding = config.pad if config.pad is not None else _named(settings, "pad_token", vocabulary)
    ids = {"bos_token_id": bos} | ends.keys | {"unknown_token_id": vocabulary.unknown, "padding_token_id": padding}
    values |= {f"tokenizer.ggml.{name}": value for name, value in ids.items() if value is not None}
    for key, default in (("add_bos_token", vocabulary.adds_bos), ("add_eos_token", None)):
        value = settings.get(key, default)
        if key == "add_eos_token" and vocabulary.adds_eos is not None:
            value = True  # the template of tokenizer.json is what transformers' fast tokenizers go by
        if value is not None:
            if type(value) is not bool:
                raise BadFileError(settings_path, key, "expected true or false")
            values[f"tokenizer.ggml.{key}"] = value
    if values.get("tokenizer.ggml.add_bos_token") and bos is None:
        raise BadFileError(settings_path, "add_bos_token", "true, but neither config.json nor tokenizer_config.json names a BOS token")
    return TokenizerMetadata(values | _template_keys(templates), [*vocabulary.notes, *ends.notes])


def _read_vocabulary(folder: Path, settings: dict[str, Any]) -> FolderVocabulary:
    fast, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    data: dict[str, Any] = {}
    if fast.exists():
        data = read_object(fast, 256 * MEGABYTE)
        # SentencePiece vocabularies are often saved in both forms; only tokenizer.model has the types and scores.
        if byte_bpe.is_byte_level(data) or not pieces.exists():
            return spaced_bpe.read(fast, data, settings) if spaced_bpe.is_spaced(data) else byte_bpe.read(fast, data)
    if pieces.exists():
        added = folder / "added_tokens.json"
        vocabulary = sentencepiece.read(pieces, settings, read_object(added) if added.exists() else {})
        if data and vocabulary.extra["add_space_prefix"]:  # tokenizer.json is what transformers goes by
            spaced_bpe.replace_spaces(vocabulary, data)
        return vocabulary
    raise BadFileError(folder, "tokenizer", "missing: expected tokenizer.json or tokenizer.model in the folder")


def _ends(
    folder: Path, settings: dict[str, Any], vocabulary: FolderVocabulary, config: FolderConfig, template: str | None, bos: int | None
) -> Ends:
    """What ends a text. A token that every text ends with has to be the one that readers append, and they append eos."""
    generation = folder / "generation_config.json"
    more = read_object(generation).get("eos_token_id") if generation.exists() else None
    named = _named(settings, "eos_token", vocabulary)
    said = [vocabulary.adds_eos, *config.eos, *(more if isinstance(more, list) else [more]), named]
    begin = vocabulary.tokens[bos] if bos is not None else ""
    end = vocabulary.tokens[named] if named is not None else ""
    return find_ends(said, vocabulary, Template(template, begin, end, folder))


def _named(settings: dict[str, Any], key: str, vocabulary: FolderVocabulary) -> int | None:
    """Id of a special token that tokenizer_config.json names, as a string or as an object with `content`."""
    value = settings.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    return vocabulary.find(text) if isinstance(text, str) else None


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Name -> chat template, as transformers finds them: chat_template.jinja and the folder with others, else tokenizer_config.json, which
    has one text (`default`) or a list. Never run here."""
    path, others = folder / "chat_template.jinja", folder / MORE_TEMPLATES
    files = {"default": path} if path.exists() else {}
    files |= {other.stem: other for other in sorted(others.glob("*.jinja"))}
    texts = {name: decode_text(read_bytes(p, MAX_TEMPLATE), str(p), "chat template", "utf-8", hint=False) for name, p in files.items()}
    value = None if path.exists() else settings.get("chat_template")
    named = {"default": value}
    if isinstance(value, list):
        named = {t["name"]: t.get("template") for t in value if isinstance(t, dict) and isinstance(t.get("name"), str)}
    for name, template in named.items():
        if template is None or name in texts:
            continue
        path = folder / "tokenizer_config.json"
        if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
            raise BadFileError(path, "chat_template", f"expected text of at most {MAX_TEMPLATE} characters")
        if any("\ud800" <= c <= "\udfff" for c in template):
            raise BadFileError(path, "chat_template", "half of a surrogate pair")
        texts[name] = template
    return texts


def _template_keys(texts: dict[str, str]) -> dict[str, Any]:
    """The keys of llama.cpp's converter (gguf-py, add_chat_template): the default one, others under their names, and a list of these."""
    keys: dict[str, Any] = {"tokenizer.chat_template": texts["default"]} if texts.get("default") else {}
    more = {re.sub("[^A-Za-z0-9]", "_", name[:64]): text for name, text in texts.items() if name not in ("", "default") and text}
    keys |= {f"tokenizer.chat_template.{name}": text for name, text in more.items()}
    return keys | ({"tokenizer.chat_templates": sorted(more)} if more else {})
