"""What a server says of texts without writing any: tokens, prompts, embeddings; in the shapes of llama.cpp's server and of vLLM."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.model.embedding import normalized, pooled, token_ids
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.model.reading import Reading, Use
from bitnet_cli.serving import fields
from bitnet_cli.serving.chat import chat_prompt, template_of
from bitnet_cli.serving.errors import ApiError, too_long
from bitnet_cli.serving.models import Served
from bitnet_cli.serving.schema import tools_of
from bitnet_cli.text.chat.choice import choose

MOST_EMBEDDED = 2048  # texts of a request, as OpenAI's


def tokenize(body: dict[str, Any], model: Served) -> dict[str, Any]:
    """{content or prompt, add_special or add_special_tokens, parse_special, with_pieces} or {messages} -> {tokens, count, ..}."""
    opened = model.opened
    if body.get("messages") is not None:
        ids = prompt_of(body, model)
    else:
        name = "content" if body.get("content") is not None else "prompt"
        # llama.cpp's field is false where nothing is said, vLLM's true.
        special = fields.flag(body, "add_special") if name == "content" else fields.flag(body, "add_special_tokens", True)
        text = fields.text(body, name)
        ids = opened.tokenizer.encode(text, special=fields.flag(body, "parse_special", True), bos=None if special else False)
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": opened.engine.context}
    if fields.flag(body, "with_pieces"):
        found["tokens"] = [{"id": token, "piece": opened.tokenizer.decode([token], skip_special=False, at_start=False)} for token in ids]
    return found


def detokenize(body: dict[str, Any], model: Served) -> dict[str, Any]:
    """{tokens} -> the text, by the names that llama.cpp and vLLM have for it."""
    tokenizer = model.opened.tokenizer
    ids = fields.token_ids(body.get("tokens"), "tokens", tokenizer.vocab_size)
    text = tokenizer.decode(ids, skip_special=False)
    return {"content": text, "prompt": text}


def tokenizer_info(_body: dict[str, Any], model: Served) -> dict[str, Any]:
    """What lm-evaluation-harness asks for."""
    tokenizer, chat = model.opened.tokenizer, model.opened.chat
    more = dict(chat.more)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "eos_token": chat.eos or None,
        "bos_token": chat.bos or None,
        "pad_token": more.get("pad_token") or None,
        "unk_token": more.get("unk_token") or None,
        "add_bos_token": tokenizer.add_bos,
        "model_max_length": model.opened.engine.context,
        "chat_template": chat.template,
    }


def apply_template(body: dict[str, Any], model: Served) -> dict[str, Any]:
    """{messages, tools, chat_template_kwargs} -> {prompt, tokens}."""
    ids = prompt_of(body, model)
    return {"prompt": model.opened.tokenizer.decode(ids, skip_special=False), "tokens": ids}


def prompt_of(body: dict[str, Any], model: Served) -> list[int]:
    """The tokens of a chat that asks for an answer."""
    args = fields.object_of(body, "chat_template_kwargs")
    return chat_prompt(model.opened, fields.objects(body, "messages"), tools_of(body), args, model.answers, b"").ids


def props(model: Served) -> dict[str, Any]:
    """What a page or a client wants to know of a model."""
    opened, choice = model.opened, choose(model.opened.chat)
    config = opened.engine.config
    return {
        "model": model.name,
        "model_alias": model.name,
        "architecture": config.architecture,
        "n_ctx": opened.engine.context,
        "n_ctx_train": config.context,
        "n_vocab": opened.tokenizer.vocab_size,
        "bos_token": opened.chat.bos,
        "eos_token": opened.chat.eos,
        "chat_format": choice.template.name,
        "chat_template": template_of(opened),
        "chat_trained": choice.trained,
        "embeds": config.pooling is not None,
        "modalities": {"vision": False, "audio": False},
    }


class EmbeddingJob(NamedTuple):
    """ids of each text; pooling: `last` or `mean`; base64: how vectors are written."""

    ids: list[list[int]]
    pooling: str
    base64: bool


def embedding_job(body: dict[str, Any], opened: OpenModel) -> EmbeddingJob:
    """What POST /v1/embeddings asks for."""
    given, config = body.get("input"), opened.engine.config
    one = isinstance(given, str) or (isinstance(given, list) and given and all(type(i) is int for i in given))
    inputs = [given] if one else given
    if not isinstance(inputs, list) or not 0 < len(inputs) <= MOST_EMBEDDED:
        raise fields.wrong("input", given, f"a text, token ids, or a list of 1 to {MOST_EMBEDDED} of these")
    if fields.integer(body, "dimensions", config.hidden, 1, 1 << 20) != config.hidden:
        raise fields.wrong("dimensions", body["dimensions"], f"{config.hidden}, which is what this model gives")
    pooling = fields.text(body, "pooling", config.pooling or "")
    if pooling not in ("last", "mean"):
        raise ApiError(400, "this model is none for embeddings, and no pooling (`last` or `mean`) is given", param="pooling")
    kind = fields.text(body, "encoding_format", "float")
    if kind not in ("float", "base64"):
        raise fields.wrong("encoding_format", kind, "float or base64")
    return EmbeddingJob([_embedded_ids(one, i, opened) for i, one in enumerate(inputs)], pooling, kind == "base64")


def _embedded_ids(given: Any, number: int, opened: OpenModel) -> list[int]:
    field, context = f"input[{number}]", opened.engine.context
    if isinstance(given, str):
        try:
            ids, cut = token_ids(opened.tokenizer, given, context)
        except UsageError as error:
            raise ApiError(400, f"{field}: {error}", param="input") from None
        if cut:
            raise too_long(len(ids) + cut, context)
        return ids
    ids = fields.token_ids(given, field, opened.tokenizer.vocab_size)
    if not ids:
        raise fields.wrong(field, given, "at least one token")
    if len(ids) > context:
        raise too_long(len(ids), context)
    return ids


async def embedded(job: EmbeddingJob, model: Served, salt: bytes) -> dict[str, Any]:
    """The answer."""
    assert model.worker is not None
    rows: list[list[NDArray[np.float32]]] = [[] for _ in job.ids]

    def keep(found: list[NDArray[np.float32]]) -> Use:
        return lambda _, states: found.append(states.copy())

    reading = [Reading(ids, keep(found), states=True, salt=salt.hex()) for ids, found in zip(job.ids, rows, strict=True)]
    futures = [model.worker.read(one) for one in reading]
    try:
        await asyncio.gather(*map(asyncio.wrap_future, futures))
    finally:
        for future in futures:
            future.cancel()
    data = []
    for index, parts in enumerate(rows):
        vector = normalized(pooled(np.concatenate(parts), job.pooling))[0]
        if not np.isfinite(vector).all():
            raise BitnetError("the model produced embeddings that are not finite")
        written: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode() if job.base64 else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": written})
    tokens = sum(map(len, job.ids))
    return {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
