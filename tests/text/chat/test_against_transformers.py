"""Renderings and ids beside Hugging Face's `apply_chat_template`: own templates of every kind; and a folder of published ones, where
BITNET_TEMPLATES names one (llama.cpp's models/templates, which its Python package's source carries, has some 70)."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.errors import BadFileError
from bitnet_cli.text.byte_bpe import BYTE_OF
from bitnet_cli.text.chat.arguments import checked_args
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Said, checked_messages, encode_chat
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

from .conversations import CHATS
from .own_templates import OWN_TEMPLATES

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.live, pytest.mark.slow]

BOS, EOS = "<|begin|>", "<|end_of_all|>"
SPECIAL = re.compile(r"<\|?[^<>\s'\"{}()+~]{1,40}>|\[/?[A-Z_]{3,20}\]")


def both_tokenizers(source: str) -> tuple[Any, Tokenizer]:
    """The same vocabulary, bytes and control tokens for all that looks like one in a template, as Hugging Face reads it and as we do."""
    import tokenizers

    names = sorted({BOS, EOS, *SPECIAL.findall(source)})
    alphabet = list(BYTE_OF)
    library = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in names])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token=BOS, eos_token=EOS)
    theirs.chat_template = source
    k = "tokenizer.ggml."
    metadata: dict[str, Any] = {k + "model": "gpt2", k + "pre": "gpt-2", k + "tokens": alphabet + names, k + "merges": []}
    metadata |= {k + "token_type": [1] * 256 + [3] * len(names), k + "add_bos_token": False}
    metadata |= {k + "bos_token_id": 256 + names.index(BOS), k + "eos_token_id": 256 + names.index(EOS)}
    return theirs, tokenizer_from_metadata(metadata, "both.gguf")


def ours(source: str, chat: str) -> tuple[JinjaTemplate, list[Any]]:
    messages, args = CHATS[chat]
    template = JinjaTemplate("t", source, "t.jinja", BOS, EOS, args=checked_args(args))
    return template, checked_messages(messages)


def compare(source: str, chat: str, theirs: Any, tokenizer: Tokenizer) -> str:
    """`same`, or `refused` by both; anything else fails. Ids too."""
    messages, args = CHATS[chat]
    template, checked = ours(source, chat)
    try:
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **args)
    except Exception as error:
        with pytest.raises(BadFileError) as refusal:
            template.pieces(checked)
        if type(error).__name__ == "TemplateError":  # raise_exception
            assert str(error)[:200] in str(refusal.value)
        return "refused"
    pieces = template.pieces(checked)
    assert "".join(piece[0] for piece in pieces if isinstance(piece, tuple)) == text
    assert not any(isinstance(piece, (list, Said)) for piece in pieces)
    # What a message spells stays text here, and is a token there.
    spelled = re.compile("|".join(map(re.escape, {"<b>", "</b>", "<think>", "</think>", "<later>"})))
    if not any(spelled.search(str(message)) for message in [messages, args]):
        expected = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False, **args)
        assert encode_chat(tokenizer, template, checked) == expected
    return "same"


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_own_templates(name: str) -> None:
    theirs, tokenizer = both_tokenizers(OWN_TEMPLATES[name])
    results = Counter(compare(OWN_TEMPLATES[name], chat, theirs, tokenizer) for chat in CHATS)
    assert results["same"] >= 5


FOLDER = os.environ.get("BITNET_TEMPLATES", "")
PUBLISHED = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []


@pytest.mark.skipif(not FOLDER, reason="BITNET_TEMPLATES names no folder of templates")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    theirs, tokenizer = both_tokenizers(source)
    results = {chat: compare(source, chat, theirs, tokenizer) for chat in CHATS}
    print(path.stem, dict(Counter(results.values())))
