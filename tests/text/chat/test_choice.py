"""Which format a file gets, and why; and what the user may ask for instead."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.errors import BadFileError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.text.chat.choice import ChatFacts, Choice, chat_facts, choose
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import Message, encode_chat
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

from .test_templates import CHAT, JINJA, SMOLLM2_SYSTEM

LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Of microsoft/bitnet-b1.58-2B-4T-gguf, shortened (microsoft/BitNet, utils/convert-ms-to-gguf-bitnet.py).
MICROSOFT = "{% for message in messages %}{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}{% endfor %}"
QWEN25 = (
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{{ message.content }}"
)
ZEPHYR = "{% for message in messages %}{{ '<|user|>\n' + message['content'] + eos_token }}{{ '<|assistant|>' }}{% endfor %}"


def chosen(
    template: str | None = None,
    tokens: list[str] | None = None,
    *,
    name: str = "",
    arch: str = "llama",
    count: int = 0,
    wish: str | None = None,
    path: str = "m.gguf",
    args: dict[str, Any] | None = None,
    tools: bool = False,
) -> Choice:
    words = tokens if tokens is not None else CHATML_TOKENS + LLAMA_TOKENS
    every = [*words, *(f"w{i}" for i in range(count - len(words)))]
    metadata: dict[str, Any] = {"general.architecture": arch, "general.name": name, "tokenizer.ggml.tokens": every}
    metadata |= {"tokenizer.ggml.token_type": [3] * len(words) + [1] * (len(every) - len(words)), "tokenizer.ggml.eos_token_id": 0}
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return choose(chat_facts(metadata, Path(path)), wish, args, tools=tools)


@pytest.mark.parametrize(
    ("template", "name", "word"),
    [
        (JINJA["bitnet-2b-4t"], "bitnet-2b-4t", "capitalised"),
        (MICROSOFT, "bitnet-2b-4t", "never stops"),
        (JINJA["llama-3"], "llama-3", "start_header"),
        (JINJA["smollm2"], "chatml", "im_start"),
        (JINJA["chatml"], "chatml", "im_start"),
        (JINJA["falcon3"], "falcon3", "<|user|>"),
        (ZEPHYR, "model", "no known kind"),
        ("<|im_start|>x<|im_sep|>", "model", "no known kind"),
        ("{{ anything }}", "model", "rendered"),
        (JINJA["chatml"] + "{# </think> #}", "model", "looks for </think>"),
        (JINJA["llama-3"] + "{{ m.reasoning_content }}", "model", "reasoning_content"),
        (MICROSOFT + "</think>", "bitnet-2b-4t", "never stops"),
    ],
)
def test_by_the_files_template(template: str, name: str, word: str) -> None:
    choice = chosen(template)
    assert (choice.template.name, choice.trained) == (name, name != "plain")
    assert word in choice.reason


@pytest.mark.parametrize("template", ["", " \n"])
def test_an_empty_template_is_none(template: str) -> None:
    assert chosen(template, name="Falcon3-1B-Instruct") == chosen(name="Falcon3-1B-Instruct")
    assert "has no template" in chosen(template).reason


def test_the_default_system_message_is_the_files() -> None:
    for template, text in (
        (JINJA["smollm2"], SMOLLM2_SYSTEM),
        (QWEN25, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ):
        pieces = chosen(template).template.pieces([Message("user", "a")])
        assert (text, False) in pieces or (text, True) in pieces
        assert pieces[1] == ("<|im_start|>system\n", True)
    assert len(chosen(JINJA["chatml"]).template.pieces([Message("user", "a")])) == 5
    forged = "{{ '<|im_start|>system\n' + code + '<|im_end|>' }}"  # code, not a message
    assert chosen(forged).template.pieces([Message("user", "a")])[1] == ("<|im_start|>user\n", True)


@pytest.mark.parametrize(
    ("name", "arch", "count", "tokens", "expected"),
    [
        ("BitNet b1.58 2B4T", "bitnet-b1.58", 128_256, LLAMA_TOKENS, "bitnet-2b-4t"),
        ("", "bitnet-25", 128_256, LLAMA_TOKENS, "bitnet-2b-4t"),
        ("", "bitnet-b1.58", 128_256, [], "plain"),  # without <|eot_id|>
        ("bitnet-tiny", "bitnet-b1.58", 4096, LLAMA_TOKENS, "plain"),
        ("Llama3-8B-1.58-100B-tokens", "llama", 128_256, LLAMA_TOKENS, "llama-3"),
        ("Meta-Llama-3-8B", "llama", 128_256, LLAMA_TOKENS, "plain"),  # a base model
        ("Falcon3-7B-Instruct-1.58bit", "llama", 0, ["<|endoftext|>"], "falcon3"),
        ("Falcon3-7B-Base-1.58bit", "llama", 0, ["<|endoftext|>"], "plain"),
        ("Falcon-E-3B-Instruct", "llama", 0, [], "falcon-e"),
        ("SmolLM2-135M-Instruct", "llama", 0, CHATML_TOKENS, "chatml"),
        ("SmolLM2-135M-Instruct", "llama", 0, LLAMA_TOKENS, "plain"),
        ("Qwen2.5-0.5B-Instruct", "qwen2", 0, CHATML_TOKENS, "chatml"),
        ("", "", 0, [], "plain"),
    ],
)
def test_by_the_models_name(name: str, arch: str, count: int, tokens: list[str], expected: str) -> None:
    choice = chosen(None, tokens, name=name, arch=arch, count=count)
    assert (choice.template.name, choice.trained) == (expected, expected != "plain")
    assert choice.reason


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("Falcon3-7B-Base-1.58bit", False),
        ("Falcon3-7B-1.58bit", False),
        ("Falcon3-7B-Instruct-1.58bit", True),
        ("Falcon-E-3B-Base", False),
        ("Falcon-E-3B-Instruct", True),
        ("Qwen2.5-0.5B", False),
        ("Qwen2.5-0.5B-Instruct", True),
        ("Qwen2-1.5B", False),
        ("Qwen3-0.6B-Base", False),
        ("Qwen3-0.6B", True),
        ("Ternary-Bonsai-1.7B", True),
        ("SmolLM2-135M", False),
        ("SmolLM2-135M-Instruct", True),
        ("Meta-Llama-3-8B", False),
        ("Llama-3.2-1B", False),
        ("Llama-3.2-1B-Instruct", True),
        ("Llama3-8B-1.58-100B-tokens", True),  # from the instructed model
        ("gemma-3-1b-pt", False),
        ("gemma-3-1b-it", True),
        ("TriLM_3.9B_Unpacked", False),
        ("bitnet_b1_58-3B", False),
        ("BitNet-b1.58-2B-4T", True),
        ("database-expert-7b", True),
        ("", True),
    ],
)
def test_base_models_inherit_templates(name: str, trained: bool) -> None:
    """A template in the file of a base model is its instructed sibling's: texts are continued, and a chat is a transcript."""
    for template in (JINJA["chatml"], JINJA["llama-3"], "{{ anything }}"):
        choice = chosen(template, name=name)
        assert (choice.trained, choice.template.name == "plain") == (trained, not trained)
        assert trained or "base model" in choice.reason
    assert chosen(JINJA["chatml"], name=name, wish="model").trained
    assert chosen(JINJA["chatml"], path=f"{name}.gguf").trained == trained  # the file's name says it as well


def test_the_vocabulary_has_the_last_word() -> None:
    """Falcon-E declares ChatML; a vocabulary without its tokens cannot have been trained on it."""
    choice = chosen(JINJA["chatml"], ["<|endoftext|>"], name="Falcon-E-1B-Instruct")
    assert choice.template.name == "falcon-e"
    assert "<|im_start|>" in choice.reason
    assert chosen(JINJA["chatml"], CHATML_TOKENS, name="Falcon-E-1B-Instruct").template.name == "chatml"
    strange = chosen(JINJA["llama-3"], CHATML_TOKENS)
    assert (strange.template.name, strange.trained) == ("model", False)
    assert "needs <|begin_of_text|>" in strange.reason


def test_arguments_and_tools_are_for_the_files_own() -> None:
    for given, tools in (({"enable_thinking": False}, False), ({}, True)):
        choice = chosen(JINJA["chatml"], args=given, tools=tools)
        assert isinstance(choice.template, JinjaTemplate)
        assert (choice.template.args, choice.trained) == (given, True)
        with pytest.raises(UsageError, match="no chat template of its own"):
            chosen(None, name="SmolLM2 instruct", args=given, tools=tools)
    with pytest.raises(UsageError, match="takes no arguments"):
        chosen(JINJA["chatml"], wish="chatml", args={"a": 1})
    both = ChatFacts(Path("m"), "a", "llama", "", 0, frozenset(), "", "", tools_template="b")
    for given, tools, source in (({"a": 1}, False, "a"), ({"tools": [{}]}, False, "b"), ({}, True, "b")):
        template = choose(both, args=given, tools=tools).template
        assert isinstance(template, JinjaTemplate) and template.source == source
    own = chosen(JINJA["chatml"], wish="model", args={"a": 1}).template
    assert isinstance(own, JinjaTemplate) and own.args == {"a": 1}


def test_wishes(tmp_path: Path) -> None:
    assert chosen(JINJA["chatml"], wish="llama-3").template.name == "llama-3"
    assert "has no <|im_start|>" in chosen(None, [], wish="chatml").reason
    own = chosen(JINJA["smollm2"], wish="model")
    assert "".join(str(piece[0]) for piece in own.template.pieces(CHAT)).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    file = tmp_path / "x.jinja"
    file.write_text("{{ eos_token }}{{ messages[0].content }}")
    assert chosen(wish=str(file)).template.pieces(CHAT) == [("<|endoftext|>", True), ("Be brief.", False)]
    with pytest.raises(UsageError, match="no chat template of its own"):
        chosen(None, wish="model")
    with pytest.raises(UsageError, match="built in are bitnet-2b-4t"):
        chosen(wish="chatlm")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadFileError, match="not UTF-8"):
        chosen(wish=str(file))
    file.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BadFileError, match="larger"):
        chosen(wish=str(file))


def test_metadata_of_wrong_types_chooses_nothing() -> None:
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": 7, "tokenizer.ggml.token_type": "x", "tokenizer.chat_template": 1}
    metadata |= {"tokenizer.ggml.eos_token_id": -5, "general.name": [], "general.architecture": 3}
    assert choose(chat_facts(metadata, Path("m.gguf"))).template.name == "plain"


def test_the_real_vocabulary(shared_vocab: Path) -> None:
    """Llama 3's, as BitNet-2B-4T has it: the space after `Assistant:` is a token of its own, as transformers encodes the prompt."""
    path = shared_vocab / "ggml-vocab-llama-bpe.gguf"
    with open_gguf(path) as file:
        choice = choose(chat_facts({**file.metadata, "general.architecture": "bitnet-b1.58"}, path))
        tokenizer = tokenizer_from_metadata(file.metadata, str(path))
    assert choice.template.name == "bitnet-2b-4t"
    ids = encode_chat(tokenizer, choice.template, [Message("user", " How are you? ")])
    assert ids == [128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220]
    assert {128001, 128009} <= tokenizer.eos_ids
