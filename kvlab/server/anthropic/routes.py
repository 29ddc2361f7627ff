"""Anthropic's endpoints."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.anthropic.messages import Answer, ask_messages, conversation
from kvlab.server.anthropic.types import CountRequest, MessagesRequest
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import EventStream, unless_gone
from kvlab.server.openai.routes import wants_details
from kvlab.server.service import Service


def router(service: Service) -> APIRouter:
    """Routes over ``service``."""
    routes = APIRouter(prefix="/v1/messages")

    @routes.post("")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation."""

        def make(model: ServedModel) -> list[GenerationRequest]:
            return ask_messages(body, model, service.settings)

        async def answer() -> Answer:
            session = await service.open(
                body.model,
                make,
                request=f"msg_{secrets.token_hex(12)}",
                tenant=request.state.tenant,
                path=request.url.path,
            )
            return Answer(session, details=wants_details(request))

        async def whole() -> dict[str, Any]:
            return await (await answer()).whole()

        if body.stream:
            return EventStream((await unless_gone(request, answer())).stream())
        return JSONResponse(await unless_gone(request, whole()))

    @routes.post("/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        """How many tokens the model would get."""

        def count(model: ServedModel) -> int:
            told, tools, options = conversation(body)
            if not model.loaded.tokenizer.has_thinking:
                options = {}
            hidden = body.tool_choice is not None and body.tool_choice.type == "none"
            return len(model.prompts.render(told, [] if hidden else tools, options).ids)

        async with service.pool.use(body.model) as model:
            return {"input_tokens": await service.off_loop(count, model)}

    return routes
