"""Routes: which function answers what. One new endpoint is one method here, and its schema."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitnet_cli import __version__
from bitnet_cli.model.config import NO_TEXT
from bitnet_cli.serving import answers, anthropic, responses, schema, texts
from bitnet_cli.serving.errors import ApiError, of_exception
from bitnet_cli.serving.fields import parse_body
from bitnet_cli.serving.guard import Guard, Rules, read_body, shaped
from bitnet_cli.serving.jobs import Event
from bitnet_cli.serving.metrics import Metrics
from bitnet_cli.serving.models import Models, Served
from bitnet_cli.serving.page import FILES, HEADERS
from bitnet_cli.serving.running import Gate, events
from bitnet_cli.serving.schema import Wanted
from bitnet_cli.serving.stream import PING, EventStream, unless_gone

PREPARING = 2  # requests whose prompts are made at once: each may start a process that renders a template
QUEUE = 64  # requests that may wait, beside those that are computed
T = TypeVar("T")


class Bodies(Protocol):
    """What makes JSON of events: answers.Chat, answers.Completion, responses.Responses, anthropic.Messages."""

    @property
    def answers(self) -> list[answers.Answer]: ...

    def stream(self, events: AsyncIterator[tuple[int, Event] | None]) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""

    def take(self, index: int, event: Event) -> None:
        """One event of a text, where all is wanted at once."""

    def body(self) -> dict[str, Any]:
        """All of it."""


@dataclass
class Settings:
    """parallel: texts that are computed together; seconds: that a request may take."""

    rules: Rules = field(default_factory=Rules)
    parallel: int = 4
    seconds: float = 600.0
    queue: int = QUEUE


class Api:
    """The server without its sockets: `app` is an ASGI application."""

    def __init__(self, models: Models, settings: Settings, metrics: Metrics):
        self.models, self.settings, self.metrics = models, settings, metrics
        self.gate = Gate(settings.parallel + settings.queue, settings.seconds)
        self.ready = False
        self._preparing = anyio.CapacityLimiter(PREPARING)
        handlers: Any = {ApiError: self._failed, HTTPException: self._not_found, Exception: self._failed}
        routes = self._routes()
        self._known = {route.path for route in routes}
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        self.app = Guard(inner, settings.rules, self._answered)

    def _answered(self, path: str, status: int) -> None:
        # Each label is kept for ever, so paths that somebody makes up have one together.
        self.metrics.answered(path if path in self._known else "other", status)

    def cancel_all(self) -> None:
        """End all texts: their clients hear that the server is shutting down."""
        for model in self.models.served:
            if model.worker is not None:
                model.worker.cancel_all()

    def _routes(self) -> list[Route]:
        def both(path: str, endpoint: Callable[..., Any], method: str) -> list[Route]:
            return [Route(prefix + path, endpoint, methods=[method]) for prefix in ("/v1", "")]

        return [
            *both("/chat/completions", self.chat, "POST"),
            *both("/completions", self.completions, "POST"),
            *both("/responses", self.responses, "POST"),
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
            *both("/embeddings", self.embeddings, "POST"),
            *both("/models", self.list_models, "GET"),
            *both("/models/{name:path}", self.one_model, "GET"),
            *both("/health", self.health, "GET"),
            Route("/props", self.props, methods=["GET"]),
            Route("/metrics", self.numbers, methods=["GET"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info, methods=["GET"]),
            Route("/apply-template", self.apply_template, methods=["POST"]),
            *(Route(path, self.file, methods=["GET"]) for path in FILES),
        ]

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.models.watch_idle())
        self.ready = True
        try:
            yield
        finally:
            watching.cancel()
            await self.models.close()

    # Text

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions."""

        return await self._chat(request, answers.Chat, lambda body: body)

    async def responses(self, request: Request) -> Any:
        """POST /v1/responses."""
        return await self._chat(request, responses.Responses, responses.as_chat)

    async def messages(self, request: Request) -> Any:
        """POST /v1/messages."""
        return await self._chat(request, anthropic.Messages, anthropic.as_chat)

    async def _chat(self, request: Request, kind: Callable[..., Bodies], as_chat: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
        def wanted(body: dict[str, Any], model: Served) -> Wanted:
            return schema.chat(as_chat(body), model.opened, request.state.salt, model.answers)

        return await self._write(request, wanted, kind)

    async def completions(self, request: Request) -> Any:
        """POST /v1/completions."""

        def wanted(body: dict[str, Any], model: Served) -> Wanted:
            return schema.completion(body, model.opened, request.state.salt)

        return await self._write(request, wanted, answers.Completion)

    async def _write(self, request: Request, wanted_of: Callable[[dict[str, Any], Served], Wanted], kind: Callable[..., Bodies]) -> Any:
        body = parse_body(await read_body(request))
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.gate.enter())
            model = await stack.enter_async_context(self.models.use(body.get("model")))
            if model.opened.engine.config.pooling is not None:
                raise ApiError(400, f"{model.name}: {NO_TEXT}", param="model")
            wanted = await self._prepare(lambda: wanted_of(body, model))
            schema.most_texts(len(wanted.jobs))
            bodies = kind(model.name, wanted, model.opened.tokenizer)
            if wanted.stream:
                return EventStream(self._stream(model, wanted, bodies), stack.pop_all())
            await unless_gone(request, lambda: self._collect(model, wanted, bodies))
            return JSONResponse(bodies.body())

    async def _collect(self, model: Served, wanted: Wanted, bodies: Bodies) -> None:
        async with contextlib.aclosing(events(model, wanted, self.gate, self.metrics)) as found:
            async for one in found:
                assert one is not None
                bodies.take(*one)
        self._remember(model, wanted, bodies)

    async def _stream(self, model: Served, wanted: Wanted, bodies: Bodies) -> AsyncGenerator[bytes, None]:
        found = events(model, wanted, self.gate, self.metrics, PING)
        async with contextlib.aclosing(found), contextlib.aclosing(bodies.stream(found)) as pieces:
            async for piece in pieces:
                yield piece
        self._remember(model, wanted, bodies)

    @staticmethod
    def _remember(model: Served, wanted: Wanted, bodies: Bodies) -> None:
        """Answers of a chat, for its next turn."""
        for answer in bodies.answers if wanted.chat else ():
            if answer.finish == "stop" and answer.stopped_by is None and answer.content and not answer.reasoning:
                model.answers.remember(wanted.jobs[0].salt, answer.content, answer.ids)

    async def _prepare(self, work: Callable[[], T]) -> T:
        """What takes longer than an event loop should wait, in a thread."""
        return await to_thread.run_sync(work, limiter=self._preparing)

    # Numbers and words

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens."""
        return await self._with_model(
            request, lambda body, model: {"input_tokens": len(texts.prompt_of(anthropic.as_chat(body, count=True), model))}
        )

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        body = parse_body(await read_body(request))
        with self.gate.enter():
            async with self.models.use(body.get("model")) as model:
                job = await self._prepare(lambda: texts.embedding_job(body, model.opened))
                found = await unless_gone(request, lambda: texts.embedded(job, model, request.state.salt))
                return JSONResponse(found or {})

    async def _with_model(self, request: Request, work: Callable[[dict[str, Any], Served], dict[str, Any]]) -> Response:
        body = parse_body(await read_body(request)) if request.method == "POST" else dict(request.query_params)
        async with self.models.use(body.get("model")) as model:
            return JSONResponse(await self._prepare(lambda: work(body, model)))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        return await self._with_model(request, texts.tokenize)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        return await self._with_model(request, texts.detokenize)

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info."""
        return await self._with_model(request, texts.tokenizer_info)

    async def apply_template(self, request: Request) -> Response:
        """POST /apply-template."""
        return await self._with_model(request, texts.apply_template)

    # The server itself

    async def health(self, _request: Request) -> Response:
        """GET /health."""
        fine = self.ready and not self.app.draining
        return JSONResponse({"status": "ok" if fine else "shutting down"}, status_code=200 if fine else 503)

    @staticmethod
    def _listed(model: Served) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": model.created, "owned_by": "bitnet"}

    async def list_models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._listed(model) for model in self.models.served]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        found = next((model for model in self.models.served if model.name == name), None)
        if found is None:
            raise ApiError(404, f"there is no model {name!r:.80} here", param="model", code="model_not_found")
        return JSONResponse(self._listed(found))

    async def props(self, request: Request) -> Response:
        """GET /props: what the server and a model can do."""

        def facts(_body: dict[str, Any], model: Served) -> dict[str, Any]:
            return texts.props(model) | {"total_slots": self.settings.parallel, "build_info": f"bitnet {__version__}"}

        return await self._with_model(request, facts)

    async def numbers(self, _request: Request) -> Response:
        """GET /metrics."""
        if not self.metrics.kind:
            raise ApiError(404, "there are no metrics without --metrics")
        self.metrics.inside(self.gate.inside)
        return Response(self.metrics.text(), media_type=self.metrics.kind)

    async def file(self, request: Request) -> Response:
        """GET /: the page and what belongs to it."""
        data, kind = FILES[request.url.path]
        return Response(data, media_type=kind, headers=HEADERS)

    async def _failed(self, request: Request, error: Exception) -> Response:
        known = of_exception(error)
        return JSONResponse(shaped(request.url.path, known, request.state.id), known.status, headers=dict(known.headers()))

    async def _not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "there is nothing here by that name", 405: "this address does not answer that method"}.get(error.status_code)
        return await self._failed(request, ApiError(error.status_code, message or str(error.detail)))
