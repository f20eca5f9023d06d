"""Chats in files, for `/save` and `/load`: JSON of a version, written whole or not at all, readable by its owner only.

    {"format": "bitnet-chat", "version": 1, "model": {"name", "vocab_size"}, "template", "sampling": {...}, "first",
     "messages": [{"role", "content", "ids"}]}

`ids` are an answer's tokens as the model gave them: with them, a loaded chat goes on as if it had never ended. They count only if they
decode to the content with this model's vocabulary and hold no control token, so that a file cannot forge the end of a turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_cli.checkpoint.strict_json import open_regular
from bitnet_cli.errors import BadFileError, BitnetError, UsageError
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.templates import Message, checked_messages
from bitnet_cli.text.tokenizer import Tokenizer
from bitnet_cli.text.vocabulary import replace_surrogates

FORMAT, VERSION = "bitnet-chat", 1
MAX_BYTES = 64 << 20


class Saved(NamedTuple):
    model: str
    template: str
    sampling: Sampling
    messages: list[Message]
    first: int  # oldest turn that the model still saw
    exact: bool  # whether every answer came with its tokens


def chat_path(name: str) -> Path:
    """The file that a name means: `.json` is added where there is no suffix."""
    path = Path(name).expanduser()
    return path if path.suffix else path.with_suffix(".json")


def save(path: Path, tokenizer: Tokenizer, *, model: str, template: str, sampling: Sampling, messages: list[Message], first: int) -> None:
    """Write a chat. UsageError: a file is there that is none of ours, or the folder cannot be written."""
    listed = [m.as_dict() | ({"ids": list(m.ids)} if m.ids is not None else {}) for m in messages]
    value = {"format": FORMAT, "version": VERSION, "model": {"name": model, "vocab_size": tokenizer.vocab_size}, "template": template}
    value |= {"sampling": asdict(sampling), "first": first, "messages": listed}
    if path.exists():
        try:
            _read(path)
        except BitnetError:
            raise UsageError(f"{path}: is there already, and is not a saved chat") from None
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(replace_surrogates(json.dumps(value, ensure_ascii=False, indent=1)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def load(path: Path, tokenizer: Tokenizer) -> Saved:
    """Read a chat. BadFileError: not a saved chat, or a damaged one. UsageError: no such file."""
    value = _read(path)
    model = value.get("model")
    name, vocab = (model.get("name"), model.get("vocab_size")) if isinstance(model, dict) else (None, None)
    listed, first = value.get("messages"), value.get("first", 0)
    if not isinstance(listed, list) or not all(isinstance(m, dict) for m in listed):
        raise BadFileError(path, "messages", "is not a list of objects")
    if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first <= len(listed):
        raise BadFileError(path, "first", f"is {first!r:.40}, expected 0 to {len(listed)}")
    try:
        given = ({k: v for k, v in m.items() if k != "ids"} for m in listed)
        messages = [replace(m, content=replace_surrogates(m.content)) for m in checked_messages(given)] if listed else []
        sampling = _sampling(value.get("sampling"))
    except UsageError as error:
        raise BadFileError(path, "saved chat", str(error)) from None
    for i, (message, stored) in enumerate(zip(messages, listed, strict=True)):
        if "ids" in stored and message.role == "assistant" and vocab == tokenizer.vocab_size:
            ids = _checked_ids(stored["ids"], message.content, tokenizer)
            messages[i] = replace(message, ids=ids)
    exact = all(m.ids is not None for m in messages if m.role == "assistant")
    return Saved(replace_surrogates(str(name)), replace_surrogates(str(value.get("template"))), sampling, messages, first, exact)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BadFileError(path, "saved chat", f"is larger than {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadFileError(path, "saved chat", "is not JSON") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BadFileError(path, "format", f"is not {FORMAT}: this is not a saved chat")
    if value.get("version") != VERSION:
        raise BadFileError(path, "version", f"is {value.get('version')!r:.40}, expected {VERSION}")
    return value


def _sampling(value: Any) -> Sampling:
    """What is known of the stored settings; UsageError: a value out of range or of a wrong type."""
    if not isinstance(value, dict):
        raise UsageError("sampling is not an object")
    known = {field.name: value[field.name] for field in fields(Sampling) if field.name in value}
    if "logit_bias" in known:
        known["logit_bias"] = _logit_bias(known["logit_bias"])
    return Sampling(**known)


def _logit_bias(stored: Any) -> tuple[tuple[int, float], ...]:
    """Pairs are lists in JSON."""
    pairs: list[Any] = stored if isinstance(stored, list) else [None]
    for pair in pairs:
        good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) and isinstance(pair[1], (int, float))
        if not good or any(isinstance(number, bool) for number in pair) or not (pair[0] < 2**63 and -1e300 <= pair[1] <= 1e300):
            raise UsageError(f"sampling: logit_bias is {stored!r:.40}")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _checked_ids(ids: Any, content: str, tokenizer: Tokenizer) -> tuple[int, ...] | None:
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        return None
    if not all(0 <= i < tokenizer.vocab_size for i in ids) or not tokenizer.control_ids.isdisjoint(ids):
        return None
    return tuple(ids) if tokenizer.decode(ids, at_start=False).strip() == content.strip() else None
