"""Anthropic's endpoints."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvlab.server.anthropic_messages import Answer, ask_messages, conversation
from kvlab.server.anthropic_types import CountRequest, MessagesRequest
from kvlab.server.ask import Ask
from kvlab.server.model import Model
from kvlab.server.openai_routes import wants_details
from kvlab.server.service import Service
from kvlab.server.wire import EventStream, unless_gone


def router(service: Service) -> APIRouter:
    """Routes over ``service``."""
    routes = APIRouter(prefix="/v1/messages")

    @routes.post("")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation."""

        def make(model: Model) -> list[Ask]:
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

        def count(model: Model) -> int:
            told, tools, options = conversation(body)
            if not model.loaded.tokenizer.has_thinking:
                options = {}
            hidden = body.tool_choice is not None and body.tool_choice.type == "none"
            return len(model.prompts.render(told, [] if hidden else tools, options).ids)

        async with service.pool.use(body.model) as model:
            return {"input_tokens": await service.off_loop(count, model)}

    return routes
