"""Anthropic's endpoints."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.anthropic.messages import MessageResponse
from kvlab.server.anthropic.parse import conversation, parse_messages
from kvlab.server.anthropic.types import CountRequest, MessagesRequest
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.generation.tool_choice import is_none
from kvlab.server.http import EventStream, until_disconnect, wants_details
from kvlab.server.service import Service


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter(prefix="/v1/messages")

    @routes.post("")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation."""

        def parse(model: ServedModel) -> list[GenerationRequest]:
            return parse_messages(body, model, service.settings, request.state.tenant)

        async def respond() -> MessageResponse:
            session = await service.open(
                body.model,
                parse,
                request_id=f"msg_{secrets.token_hex(12)}",
                tenant=request.state.tenant,
                path=request.url.path,
            )
            return MessageResponse(session, details=wants_details(request))

        async def whole() -> dict[str, Any]:
            return await (await respond()).whole()

        if body.stream:
            return EventStream((await until_disconnect(request, respond())).stream())
        return JSONResponse(await until_disconnect(request, whole()))

    @routes.post("/count_tokens")
    async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
        """Count the tokens of the prompt."""

        def count(model: ServedModel) -> int:
            messages, tools, options = conversation(body)
            if not model.loaded.tokenizer.has_thinking:
                options = {}
            hidden = is_none(body.tool_choice)
            prompt = model.prompts.render(messages, [] if hidden else tools, options, tenant=request.state.tenant)
            return len(prompt.ids)

        async with service.pool.use(body.model) as model:
            return {"input_tokens": await service.run_in_worker(count, model)}

    return routes
