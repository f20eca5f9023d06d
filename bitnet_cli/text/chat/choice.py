"""Which chat format a GGUF file gets, and why.

In: facts from the file's metadata. Out: a `Choice`. The file's own Jinja template is looked at, not executed: by what only templates of
one format contain. Where it says nothing that is known, the model's name and architecture decide; where they do not either, or the
template does what no format of ours does (it looks into answers for thoughts), or has to do with what the user gives (tools, its own
arguments), it is rendered, always in the sandbox. A built-in format must fit the vocabulary.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.errors import BadFileError, UsageError, option
from bitnet_cli.text.chat.jinja import JinjaTemplate
from bitnet_cli.text.chat.templates import BITNET_2B_4T, BUILT_IN, CHATML, FALCON_3, FALCON_E, LLAMA_3, PLAIN, BuiltIn, Template
from bitnet_cli.text.files import decode_text
from bitnet_cli.text.vocabulary import CONTROL, PREFIX, TOKENS, TYPES, USER_DEFINED

KEY = "tokenizer.chat_template"
OWN = "model"  # --chat-template model: the file's own, rendered
MAX_TEMPLATE = 1 << 20  # bytes of a template file

# A literal system message: `<|im_start|>system\nYou are ...<|im_end|>`, with a real or an escaped line end, and no code in it.
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>|]+)<\|im_end\|>")
# Read by templates that take thoughts out of earlier answers, which the built-in formats leave in.
_THOUGHTS = ("</think>", "reasoning_content")
_TRIMS = re.compile(r"content['\"]?\]?\s*\|\s*trim|content['\"]?\]?\.strip\(\)")
# Names of models that were trained on text alone. Their repositories often hold the tokenizer, and with it the chat template, of the model
# that was instructed afterwards. In some families the plain name is that of the base, in others (Qwen3, Bonsai) of the instructed model.
_BASE = re.compile(
    r"(?<![a-z])(base|pre-?train(ed)?|pt)(?![a-z])"
    r"|qwen-?(1\.5|2|2\.5)(?![\d.])|smollm|falcon[-_ ]?(3|e\b|edge)|(meta-)?llama[-_ ]?[23](\.\d)?[-_ ]\d+b(?!.*1\.58)"
    r"|trilm|bitnet[-_]b1[-_.]58[-_](large|xl|3b)"
)
_INSTRUCTED = re.compile(r"instruct|thinking|reasoning|assistant|(?<![a-z])(chat|it|sft|dpo|rlhf)(?![a-z])")


class Choice(NamedTuple):
    """`trained`: whether the model is believed to know the format; False for the plain transcript of a base model, also of one that has a
    template only because its instructed sibling has it."""

    template: Template
    reason: str
    trained: bool


class ChatFacts(NamedTuple):
    """What of a file decides; small, so that it can outlive the metadata."""

    path: Path
    template: str | None
    architecture: str
    name: str  # the model's name and the file's, in lower case
    tokens: int
    marked: frozenset[str]  # control and user-defined tokens
    eos: str  # text of the end token; empty where there is none
    bos: str
    more: tuple[tuple[str, str], ...] = ()  # texts of other special tokens, by the names that templates know
    tools_template: str | None = None  # of a file with a template of its own for tools


def choose(file: ChatFacts, wish: str | None = None, args: Mapping[str, Any] | None = None, *, tools: bool = False) -> Choice:
    """The format for a file.

    wish   a name from BUILT_IN, `model`, or the path of a Jinja template
    args   variables for the template, JSON's values (arguments.py); with any, the file's own template is rendered
    tools  there are calls of tools in the messages, which no built-in format knows

    UsageError: no such format or file, or a format that takes no arguments. BadFileError: the template is not text.
    """
    own = file.tools_template or file.template if tools or (args or {}).get("tools") else file.template
    if wish is None and (args or tools):
        if own is None:
            raise UsageError(f"{file.path}: has no chat template of its own, and only such a one takes arguments and tools")
        return Choice(_rendered(file, OWN, own, str(file.path), args), "the file's own, which is given arguments or tools", True)
    if wish is None:
        return _detect(file)
    if wish in BUILT_IN:
        if args:
            raise UsageError(f"the chat format {wish} takes no arguments; a template in Jinja does: {option('template')} {OWN}")
        template = BUILT_IN[wish].with_end(file.eos)
        missing = [token for token in template.needs if token not in file.marked]
        but = f"; this vocabulary has no {', '.join(missing)}" if missing else ""
        return Choice(template, f"asked for{but}", wish != PLAIN.name)
    if wish == OWN:
        if own is None:
            raise UsageError(f"{file.path}: has no chat template of its own; built in are {', '.join(BUILT_IN)}")
        return Choice(_rendered(file, OWN, own, str(file.path), args), "the file's own, asked for", True)
    return Choice(_rendered(file, Path(wish).name, _template_file(wish), wish, args), f"from {wish}", True)


def _rendered(file: ChatFacts, name: str, source: str, path: str, args: Mapping[str, Any] | None = None) -> JinjaTemplate:
    return JinjaTemplate(name, source, path, file.bos, file.eos, more_tokens=dict(file.more), args=args or {})


def _template_file(wish: str) -> str:
    path = Path(wish)
    try:
        with path.open("rb") as source:
            data = source.read(MAX_TEMPLATE + 1)
    except OSError as error:
        raise UsageError(f"{option('template')} {wish}: {error.strerror}; built in are {', '.join(BUILT_IN)}, {OWN}") from None
    if len(data) > MAX_TEMPLATE:
        raise BadFileError(path, "chat template", f"is larger than {MAX_TEMPLATE >> 20} MiB")
    return decode_text(data, wish, "chat template", "utf-8", hint=False)  # as transformers reads them


def chat_facts(metadata: Mapping[str, object], path: Path) -> ChatFacts:
    """What `choose` needs of a file's metadata."""

    def text(key: str) -> str | None:
        """An empty template would render every chat to nothing: whoever wrote it had none."""
        value = metadata.get(key)
        return value if isinstance(value, str) and value.strip() else None

    tokens, types = metadata.get(TOKENS), metadata.get(TYPES)
    names: list[str] = tokens if isinstance(tokens, list) else []
    marked = frozenset(names)
    if isinstance(types, (list, array)):
        marked = frozenset(name for name, kind in zip(names, types, strict=False) if kind in (CONTROL, USER_DEFINED))

    def token(name: str) -> str:
        number = metadata.get(f"{PREFIX}{name}_token_id")
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else ""

    known = (text("general.name") or "", text("general.basename") or "", text("general.finetune") or "", path.name)
    architecture = text("general.architecture") or ""
    more = (("unk_token", token("unknown")), ("pad_token", token("padding")))
    words = " ".join(known).lower()
    return ChatFacts(path, text(KEY), architecture, words, len(names), marked, token("eos"), token("bos"), more, text(f"{KEY}.tool_use"))


def _detect(file: ChatFacts) -> Choice:
    doubt, fits = "", True
    if file.template is not None and _BASE.search(file.name) and not _INSTRUCTED.search(file.name):
        return Choice(PLAIN, "a base model by its name, whose template is its instructed sibling's", False)
    # Microsoft's is known to be wrong, whatever it looks for.
    if file.template is not None and "BITNETAssistant" not in file.template:
        thoughts = next((word for word in _THOUGHTS if word in file.template), None)
        if thoughts:
            return Choice(
                _rendered(file, OWN, file.template, str(file.path)), f"the file's own, which looks for {thoughts} in answers", True
            )
    if file.template is not None:
        found = _by_template(file, file.template)
        missing = [token for token in found[0].needs if token not in file.marked] if found else []
        if found and not missing:
            return Choice(found[0].with_end(file.eos), found[1], True)
        fits = not missing
        doubt = f"the file's template needs {missing[0]}, not a token here; " if missing else "the file's template is of no known kind; "
    named = _by_name(file)
    if named is not None and all(token in file.marked for token in named[0].needs):
        return Choice(named[0].with_end(file.eos), doubt + named[1], True)
    if file.template is not None:
        return Choice(_rendered(file, OWN, file.template, str(file.path)), f"{doubt}it is rendered", fits)
    return Choice(PLAIN, "the file has no template: a base model", False)


def _by_template(file: ChatFacts, text: str) -> tuple[BuiltIn, str] | None:
    if "<|im_start|>" in text and "<|im_sep|>" not in text:
        return _chatml(text), "the file's template has <|im_start|>"
    if "BITNETAssistant" in text:
        return BITNET_2B_4T, "the format of the training; the file's template (Human:, BITNETAssistant:) is not it, and never stops"
    if "<|start_header_id|>" in text:
        return LLAMA_3, "the file's template has <|start_header_id|>"
    if "capitalize" in text and "<|eot_id|>" in text:
        return BITNET_2B_4T, "the file's template has capitalised roles and <|eot_id|>"
    phi_or_glm = "<|end|>" in text or "gMASK" in text
    users_end = re.search(r"<\|user\|>[^%]{0,60}eos_token", text)  # Zephyr
    if "<|assistant|>" in text and "<|user|>" in text and not phi_or_glm and not users_end and file.eos:
        return FALCON_3, "the file's template has <|user|> and <|assistant|>"
    return None


def _chatml(text: str) -> BuiltIn:
    """ChatML with what the file's template says of the default system message, of spaces and of the begin token."""
    system = _DEFAULT_SYSTEM.search(text)
    default = system[1].replace("\\n", "\n") if system else None
    return BuiltIn(
        CHATML.name,
        CHATML.turns,
        CHATML.ask,
        trim=bool(_TRIMS.search(text)),
        default_system=default,
        needs=CHATML.needs,
        bos=True if "bos_token" in text else None,
    )


def _by_name(file: ChatFacts) -> tuple[BuiltIn, str] | None:
    instructed = "instruct" in file.name or "chat" in file.name
    if re.search(r"falcon[-_ ]?(e\b|edge)", file.name) and instructed:
        return FALCON_E, "the model's name is Falcon-E"
    if re.search(r"falcon[-_ ]?3", file.name) and instructed and file.eos:
        return FALCON_3, "the model's name is Falcon3"
    if file.architecture in ("bitnet-b1.58", "bitnet-25") and file.tokens == 128_256:
        return BITNET_2B_4T, f"architecture {file.architecture} with Llama 3's vocabulary"
    if re.search(r"llama[-_ ]?3", file.name) and (instructed or "1.58" in file.name):
        return LLAMA_3, "the model's name is Llama 3"
    if re.search(r"smollm|qwen", file.name) and instructed:
        return CHATML, "the model's name is of a family that is trained on ChatML"
    return None
