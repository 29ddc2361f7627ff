"""OpenAI's endpoints."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import EventStream, unless_gone
from kvlab.server.openai.parse import ask_chat, ask_completions
from kvlab.server.openai.responses import ChatResponse, CompletionResponse, ResponseShape
from kvlab.server.openai.types import ChatRequest, CompletionRequest
from kvlab.server.service import Service

DETAILS = "x-kvlab"
"""The request header that asks for the ``kvlab`` field; any value but 0."""


def router(service: Service) -> APIRouter:
    """Routes over ``service``."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""

        async def shaped() -> ResponseShape:
            def make(model: ServedModel) -> list[GenerationRequest]:
                return ask_chat(body, model, service.settings)

            session = await service.open(body.model, make, **_facts(request, "chatcmpl"))
            return ChatResponse(session, details=wants_details(request))

        return await _answered(body, request, shaped)

    @routes.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or more prompts."""

        async def shaped() -> ResponseShape:
            def make(model: ServedModel) -> list[GenerationRequest]:
                return ask_completions(body, model, service.settings)

            session = await service.open(body.model, make, **_facts(request, "cmpl"))
            return CompletionResponse(session, details=wants_details(request), echo=bool(body.echo))

        return await _answered(body, request, shaped)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """The models that may be asked."""
        return {"object": "list", "data": [_model(service, name) for name in service.pool.sources]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(service, service.pool.name_of(name))

    return routes


def wants_details(request: Request) -> bool:
    """Whether the client asks for the ``kvlab`` field."""
    return request.headers.get(DETAILS, "0").lower() not in ("", "0", "false", "no")


async def _answered(body: ChatRequest | CompletionRequest, request: Request, shaped: Any) -> Response:
    if body.stream:
        # Errors before the first token are plain answers; the stream begins once the request is admitted.
        shape = await unless_gone(request, shaped())
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(shape.stream(with_usage=with_usage))

    async def whole() -> dict[str, Any]:
        shape = await shaped()
        made: dict[str, Any] = await shape.answer()
        return made

    return JSONResponse(await unless_gone(request, whole()))


def _facts(request: Request, kind: str) -> dict[str, str]:
    return {
        "request": f"{kind}-{secrets.token_hex(12)}",
        "tenant": request.state.tenant,
        "path": request.url.path,
    }


def _model(service: Service, name: str) -> dict[str, Any]:
    made: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "kvlab"}
    if (model := service.pool.open.get(name)) is not None:
        made |= {
            "created": model.created,
            "context_window": model.context,
            "max_model_len": model.context,
            "policy": str(model.policy),
        }
    return made | {"loaded": model is not None}
