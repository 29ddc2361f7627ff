"""OpenAI's endpoints."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.body_parsing import described_body
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import EventStream, until_disconnect, wants_details
from kvlab.server.openai.parse import count_prompts, parse_chat, parse_completions
from kvlab.server.openai.responses import ChatResponse, CompletionResponse, ResponseShape
from kvlab.server.openai.types import ChatRequest, CompletionRequest
from kvlab.server.service import Service


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/chat/completions", openapi_extra=described_body(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        labels = service.labels(request, "chatcmpl-")
        body = await service.read_body(ChatRequest, request)

        async def open_response() -> ResponseShape:
            def parse(model: ServedModel) -> list[GenerationRequest]:
                return parse_chat(body, model, service.settings, labels.tenant)

            session = await service.open(body.model, parse, places=body.n or 1, labels=labels)
            return ChatResponse(session, details=wants_details(request))

        return await _respond(body, request, open_response)

    @routes.post("/completions", openapi_extra=described_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue one or more prompts."""
        labels = service.labels(request, "cmpl-")
        body = await service.read_body(CompletionRequest, request)

        async def open_response() -> ResponseShape:
            def parse(model: ServedModel) -> list[GenerationRequest]:
                return parse_completions(body, model, service.settings)

            places = count_prompts(body.prompt) * (body.n or 1)
            session = await service.open(body.model, parse, places=places, labels=labels)
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
        events, session = response.stream(with_usage=with_usage), response.session
        return EventStream(events, deadline=session.send_deadline, on_close=session.aclose)

    async def whole() -> dict[str, Any]:
        response = await open_response()
        answer: dict[str, Any] = await response.answer()
        return answer

    return JSONResponse(await until_disconnect(request, whole()))


def _model(service: Service, name: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "kvlab"}
    if (model := service.pool.open.get(name)) is not None:
        fields |= {
            "created": model.created,
            "context_window": model.context,
            "max_model_len": model.context,
            "policy": str(model.policy),
            "tool_calls": model.tool_format.family,
        }
    return fields | {"loaded": model is not None}
