"""Anthropic's endpoints."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.anthropic.messages import MessageResponse
from kvlab.server.anthropic.parse import conversation, parse_messages
from kvlab.server.anthropic.types import CountRequest, MessagesRequest
from kvlab.server.body_parsing import described_body
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.generation.tool_choice import is_none
from kvlab.server.http import EventStream, until_disconnect, wants_details
from kvlab.server.service import Service


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter(prefix="/v1/messages")

    @routes.post("", openapi_extra=described_body(MessagesRequest))
    async def messages(request: Request) -> Response:
        """Answer a conversation."""
        labels = service.labels(request, "msg_")
        body = await service.read_body(MessagesRequest, request)

        def parse(model: ServedModel) -> list[GenerationRequest]:
            return parse_messages(body, model, service.settings, labels.tenant)

        async def respond() -> MessageResponse:
            session = await service.open(body.model, parse, places=1, labels=labels)
            return MessageResponse(session, details=wants_details(request))

        async def whole() -> dict[str, Any]:
            return await (await respond()).whole()

        if body.stream:
            response = await until_disconnect(request, respond())
            session = response.session
            return EventStream(response.stream(), deadline=session.send_deadline, on_close=session.aclose)
        return JSONResponse(await until_disconnect(request, whole()))

    @routes.post("/count_tokens", openapi_extra=described_body(CountRequest))
    async def count_tokens(request: Request) -> dict[str, int]:
        """Count the tokens of the prompt."""
        labels = service.labels(request, "count_")
        body = await service.read_body(CountRequest, request)

        def count(model: ServedModel) -> int:
            messages, tools, options = conversation(body)
            if not model.prompts.thinks:
                options = {}
            hidden = is_none(body.tool_choice)
            prompt = model.prompts.render(messages, [] if hidden else tools, options, tenant=labels.tenant)
            return len(prompt.ids)

        counted = service.count(body.model, count, labels)
        return {"input_tokens": await until_disconnect(request, counted)}

    return routes
