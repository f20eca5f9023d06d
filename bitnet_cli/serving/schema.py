"""A request for text -> jobs. Whatever is wrong with it is said here, before anything is computed.

Honoured are the fields of OpenAI's API that mean something for a local model, and llama.cpp's and vLLM's names of samplers beyond them;
what changes nothing (user, metadata, store, ...) is read over; what is asked for and cannot be had (images, audio) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitnet_cli.errors import UsageError
from bitnet_cli.model.chat import BASE_LIMIT
from bitnet_cli.model.constraint import constraint, grammar_of
from bitnet_cli.model.opening import OpenModel, prompt_ids
from bitnet_cli.model.sampling import RANGES, Sampling
from bitnet_cli.serving import fields
from bitnet_cli.serving.chat import Answers, Prompt, chat_prompt
from bitnet_cli.serving.errors import ApiError, too_long
from bitnet_cli.serving.forms import Thoughts, Tools, json_form, tools_form
from bitnet_cli.serving.jobs import Job
from bitnet_cli.text.chat.templates import end_ids

MOST_TEXTS = 128  # of one request: prompts times n
MOST_STOPS = 4
MOST_LOGPROBS = 20
THEIR_RANGES = {
    "top_k": (-1, 2**31 - 1),
    "seed": (-1, 2**63 - 1 - MOST_TEXTS),
}  # of requests: vLLM has -1 for all; each text has a seed of its own


@dataclass(frozen=True)
class Wanted:
    """What a request asks for.

    jobs      one a choice, by index; prompts: distinct prompts among them, for counting tokens
    n         choices a prompt
    stream    as events; usage: with a last one that counts tokens
    chat      how to read answers; None: plain text
    echo      the prompt is part of the text; echoed: its text, by choice
    """

    jobs: Sequence[Job]
    n: int = 1
    stream: bool = False
    usage: bool = False
    chat: Prompt | None = None
    echoed: Sequence[str] = ()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(job.prompt) for job in self.jobs[:: self.n])


def sampling_of(body: Mapping[str, Any], vocab: int) -> Sampling:
    """How to choose tokens: the defaults are those of `bitnet run`."""
    b, found = dict(body), dict[str, float]()
    if fields.integer(b, "mirostat", 0, 0, 2) == 1:
        raise fields.wrong("mirostat", 1, "0 (off) or 2 (Mirostat 2.0)")
    names = {"repeat_penalty": "repetition_penalty"} if b.get("repeat_penalty") is None else {}  # vLLM's
    for name, (low, high) in (RANGES | THEIR_RANGES).items():
        field, default = names.get(name, name), getattr(Sampling, name)
        if isinstance(default, int):
            found[name] = fields.integer(b, field, default, int(low), int(high))
        else:
            found[name] = fields.number(b, field, default, low, high)
    found["top_k"] = max(0, found["top_k"])
    more: dict[str, Any] = {**found, "mirostat": fields.integer(b, "mirostat", 0, 0, 2), "logit_bias": _bias(b, vocab)}
    return Sampling(**more)


def _bias(body: dict[str, Any], vocab: int) -> tuple[tuple[int, float], ...]:
    found = {}
    for name, bias in fields.object_of(body, "logit_bias").items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1
        if not 0 <= token < vocab:
            raise fields.wrong("logit_bias", name, f"token ids from 0 to {vocab - 1}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise fields.wrong("logit_bias", bias, "numbers from -100 to 100")
        found[token] = float(bias)
    return tuple(found.items())


def completion(body: dict[str, Any], opened: OpenModel, salt: bytes) -> Wanted:
    """POST /v1/completions."""
    vocab = opened.tokenizer.vocab_size
    prompts = [_prompt(one, opened, f"prompt[{i}]") for i, one in enumerate(_prompts(body.get("prompt")))]
    n, echo = fields.integer(body, "n", 1, 1, MOST_TEXTS), fields.flag(body, "echo")
    if fields.integer(body, "best_of", n, 1, MOST_TEXTS) != n:
        raise fields.wrong("best_of", body["best_of"], "the same as n")
    given = body.get("logprobs")
    logprobs = None if given is None or given is False else fields.integer(body, "logprobs", 0, 0, MOST_LOGPROBS)
    grammar = _form(body, Thoughts()) if body.get("response_format") else _own_form(body)
    limit = _limit(body, ("max_tokens", "n_predict"), BASE_LIMIT if grammar is None else -1, least=0)
    job = Job(
        (),
        sampling_of(body, vocab),
        limit,
        stop=fields.texts(body, "stop", MOST_STOPS),
        ignore_eos=fields.flag(body, "ignore_eos"),
        logprobs=logprobs,
        echo=logprobs if echo else None,
        grammar=grammar,
        salt=salt,
    )
    # A prompt that fills the context can still be echoed, and evaluation does that.
    room = 0 if echo else 1
    jobs = [one for ids in prompts for one in _repeated(_fitted(job, ids, opened, room), n, opened)]
    echoed = [opened.tokenizer.decode(one.prompt, at_start=True) for one in jobs] if echo else ()
    return Wanted(jobs, n, *_streamed(body), echoed=echoed)


def chat(body: dict[str, Any], opened: OpenModel, salt: bytes, answers: Answers) -> Wanted:
    """POST /v1/chat/completions."""
    _refuse(body)
    tools = tools_of(body)
    messages = fields.objects(body, "messages")
    args = dict(fields.object_of(body, "chat_template_kwargs"))
    prompt = chat_prompt(opened, messages, tools, args, answers, salt)
    top = fields.integer(body, "top_logprobs", 0, 0, MOST_LOGPROBS)
    wants = fields.flag(body, "logprobs")
    if top and not wants:
        raise fields.wrong("top_logprobs", top, "logprobs to be true with it")
    form = _form(body, prompt.thoughts) if tools.choice not in ("required", *(f["name"] for f in tools.functions)) else None
    if form is None:
        form = tools_form(tools, prompt.calls, prompt.thoughts) if prompt.calls else _own_form(body)
    default = -1 if prompt.choice.trained or form else BASE_LIMIT
    job = Job(
        (),
        sampling_of(body, opened.tokenizer.vocab_size),
        _limit(body, ("max_completion_tokens", "max_tokens", "n_predict"), default, least=1),
        stop=[*prompt.stops, *fields.texts(body, "stop", MOST_STOPS)],
        ends=end_ids(opened.tokenizer),
        ignore_eos=fields.flag(body, "ignore_eos"),
        logprobs=top if wants else None,
        grammar=form,
        salt=salt,
    )
    n = fields.integer(body, "n", 1, 1, MOST_TEXTS)
    return Wanted(_repeated(_fitted(job, prompt.ids, opened, 1), n, opened), n, *_streamed(body), chat=prompt)


def tools_of(body: dict[str, Any]) -> Tools:
    """`tools` and `tool_choice`, in the shape of chat completions."""
    functions = []
    for tool in fields.objects(body, "tools"):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, dict):
            raise ApiError(400, "tools: only tools of type function can be called here", param="tools")
        functions.append(checked_function(function))
    names = [one["name"] for one in functions]
    if len(set(names)) != len(names):
        raise ApiError(400, "tools: two functions have one name", param="tools")
    choice = body.get("tool_choice")
    if choice is None:
        choice = "auto" if functions else "none"
    if isinstance(choice, dict):
        named = choice.get("function", choice)
        choice = str(named.get("name")) if isinstance(named, dict) else ""
        if choice not in names:
            raise fields.wrong("tool_choice", body["tool_choice"], "the name of one of the tools")
    elif choice not in ("none", "auto", "required") or (choice == "required" and not functions):
        raise fields.wrong("tool_choice", choice, "none, auto, required (with tools) or a function's name")
    return Tools(functions, choice, fields.flag(body, "parallel_tool_calls", True))


def checked_function(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function with a name and parameters that are an object."""
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 1 <= len(name) <= 64 or not all(c.isalnum() or c in "_-." for c in name) or not name.isascii():
        raise fields.wrong("tools", name, "names of 1 to 64 letters, digits, _, - and .")
    if parameters is not None and not isinstance(parameters, dict):
        raise fields.wrong("tools", parameters, "parameters as a JSON schema")
    return {key: value for key, value in function.items() if value is not None and key in ("name", "description", "parameters")}


def _form(body: dict[str, Any], thoughts: Thoughts) -> str | None:
    """`response_format`."""
    wanted = fields.object_of(body, "response_format")
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_form(wanted.get("schema") or True, thoughts, "response_format")
    if kind != "json_schema":
        raise fields.wrong("response_format", kind, "type text, json_object or json_schema")
    named = wanted.get("json_schema", wanted)
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, (dict, bool)):
        raise fields.wrong("response_format", schema, "json_schema with a schema")
    return json_form({} if schema is True else schema, thoughts, "response_format")


def _own_form(body: dict[str, Any]) -> str | None:
    """`json_schema` and `regex`, as `bitnet run` and llama.cpp's server have them."""
    schema, regex = body.get("json_schema"), body.get("regex")
    if regex is not None and not isinstance(regex, str):
        raise fields.wrong("regex", regex, "a text")
    if schema is not None and not isinstance(schema, (dict, bool, str)):
        raise fields.wrong("json_schema", schema, "a JSON schema")
    try:
        return grammar_of(schema, regex)
    except UsageError as error:
        raise ApiError(400, str(error), param="json_schema" if regex is None else "regex", code="invalid_schema") from None


def _refuse(body: Mapping[str, Any]) -> None:
    """What other servers do and this one cannot."""
    for field in ("audio", "functions", "function_call", "web_search_options"):
        if body.get(field):
            raise ApiError(400, f"{field} is not supported here", param=field, code="unsupported_parameter")
    if any(kind != "text" for kind in body.get("modalities") or ()):
        raise fields.wrong("modalities", body["modalities"], "text alone")


def _streamed(body: dict[str, Any]) -> tuple[bool, bool]:
    return fields.flag(body, "stream"), fields.flag(fields.object_of(body, "stream_options"), "include_usage")


def _limit(body: dict[str, Any], names: Sequence[str], default: int, least: int) -> int:
    name = next((name for name in names if body.get(name) is not None), names[0])
    limit = fields.integer(body, name, default, -1, 2**31 - 1)
    if -1 < limit < least:
        raise fields.wrong(name, limit, f"{least} or more, or -1: until the context is full")
    return limit


def _prompts(given: Any) -> list[Any]:
    """A text, ids, or a list of these."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(one) is int for one in given)):
        return [given]
    if not isinstance(given, list) or not given or not all(isinstance(one, (str, list)) for one in given):
        raise fields.wrong("prompt", given, "a text, a list of token ids, or a list of these")
    if len(given) > MOST_TEXTS:
        raise ApiError(400, f"prompt has {len(given)} texts, at most {MOST_TEXTS} are written at once", param="prompt")
    return given


def _prompt(given: Any, opened: OpenModel, field: str) -> list[int]:
    if isinstance(given, list):
        if not given:
            raise fields.wrong(field, given, "at least one token")
        return fields.token_ids(given, field, opened.tokenizer.vocab_size)
    try:
        return prompt_ids(opened.tokenizer, given)
    except UsageError as error:
        raise ApiError(400, str(error), param="prompt") from None


def _fitted(job: Job, ids: list[int], opened: OpenModel, room: int) -> Job:
    context = opened.engine.context
    if len(ids) + (0 if job.limit == 0 else room) > context:
        raise too_long(len(ids), context)
    left = context - len(ids)  # what would not fit ends the text with `length`
    return replace(job, prompt=ids, limit=min(job.limit, left) if job.limit >= 0 else job.limit)


def _repeated(job: Job, n: int, opened: OpenModel) -> list[Job]:
    """n texts of a prompt, each with a seed and a form of its own."""
    seed, ends = job.sampling.seed, opened.tokenizer.eos_ids if job.ends is None else job.ends
    seeds = [seed if seed < 0 else seed + i for i in range(n)]
    samplings = [replace(job.sampling, seed=one) for one in seeds]
    try:
        forms = [constraint(opened.tokenizer, job.grammar, ends, endless=job.ignore_eos) for _ in range(n)]
    except UsageError as error:
        raise ApiError(400, str(error), param="response_format", code="invalid_schema") from None
    return [replace(job, sampling=sampling, form=form) for sampling, form in zip(samplings, forms, strict=True)]


def most_texts(jobs: int) -> None:
    """ApiError 400: more texts than one request may ask for."""
    if jobs > MOST_TEXTS:
        raise ApiError(400, f"{jobs} texts are asked for, at most {MOST_TEXTS} are written at once", param="n")
