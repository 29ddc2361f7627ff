"""OpenAI's endpoints."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import EventStream, until_disconnect, wants_details
from kvlab.server.openai.parse import parse_chat, parse_completions
from kvlab.server.openai.responses import ChatResponse, CompletionResponse, ResponseShape
from kvlab.server.openai.types import ChatRequest, CompletionRequest
from kvlab.server.service import Service


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""

        async def open_response() -> ResponseShape:
            def parse(model: ServedModel) -> list[GenerationRequest]:
                return parse_chat(body, model, service.settings, request.state.tenant)

            session = await service.open(body.model, parse, **_request_labels(request, "chatcmpl"))
            return ChatResponse(session, details=wants_details(request))

        return await _respond(body, request, open_response)

    @routes.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or more prompts."""

        async def open_response() -> ResponseShape:
            def parse(model: ServedModel) -> list[GenerationRequest]:
                return parse_completions(body, model, service.settings)

            session = await service.open(body.model, parse, **_request_labels(request, "cmpl"))
            return CompletionResponse(session, details=wants_details(request), echo=bool(body.echo))

        return await _respond(body, request, open_response)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """List the served models."""
        return {"object": "list", "data": [_model(service, name) for name in service.pool.sources]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one served model."""
        return _model(service, service.pool.name_of(name))

    return routes


async def _respond(body: ChatRequest | CompletionRequest, request: Request, open_response: Any) -> Response:
    if body.stream:
        # Errors before the first token are plain responses; the stream begins once the request is admitted.
        response = await until_disconnect(request, open_response())
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(response.stream(with_usage=with_usage))

    async def whole() -> dict[str, Any]:
        response = await open_response()
        answer: dict[str, Any] = await response.answer()
        return answer

    return JSONResponse(await until_disconnect(request, whole()))


def _request_labels(request: Request, kind: str) -> dict[str, str]:
    return {
        "request_id": f"{kind}-{secrets.token_hex(12)}",
        "tenant": request.state.tenant,
        "path": request.url.path,
    }


def _model(service: Service, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "kvlab"}
    if (model := service.pool.open.get(name)) is not None:
        fields |= {
            "created": model.created,
            "context_window": model.context,
            "max_model_len": model.context,
            "policy": str(model.policy),
        }
    return fields | {"loaded": model is not None}
