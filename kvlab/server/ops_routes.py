"""Health, metrics and the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from kvlab.server.access import Client
from kvlab.server.errors import ApiError
from kvlab.server.http import EventStream, sse
from kvlab.server.limits import MAX_FOLLOWERS
from kvlab.server.service import Service

STATE_SECONDS = 1.0
"""Between two states that a follower is sent."""
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
}


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter()
    followers = 0
    sent: dict[Client, tuple[float, bytes]] = {}

    def state_event(client: Client) -> bytes:
        """Return the state of this half second, encoded once for all followers that see the same."""
        now = asyncio.get_running_loop().time()
        for other in [other for other, (made, _) in sent.items() if now - made >= STATE_SECONDS / 2]:
            del sent[other]
        if client not in sent:
            sent[client] = now, sse(service.metrics.state(client))
        return sent[client][1]

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """Report whether the server accepts requests."""
        if service.limit.closed:
            return JSONResponse({"status": "closing"}, 503)  # type: ignore[return-value]
        return {"status": "ok", "models": list(service.pool.open)}

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Return the metrics that this client sees for Prometheus."""
        text = service.metrics.prometheus_text(request.state.client)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        page = (files("kvlab.server") / "dashboard.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @routes.get("/kvlab/state")
    async def state(request: Request) -> JSONResponse:
        """Return the state that the dashboard shows to this client."""
        return JSONResponse(service.metrics.state(request.state.client))

    @routes.get("/kvlab/events", include_in_schema=False)
    async def state_events(request: Request) -> Response:
        """Send that state every second, as server-sent events, until the server shuts down."""
        nonlocal followers
        if followers >= MAX_FOLLOWERS:
            raise ApiError(429, f"{followers} clients follow the state, and no more may; read /kvlab/state")
        followers += 1

        async def leave() -> None:
            nonlocal followers
            followers -= 1

        async def states() -> AsyncGenerator[bytes, None]:
            while not service.limit.closed:
                yield state_event(request.state.client)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STATE_SECONDS):
                        await service.limit.closing.wait()

        return EventStream(states(), on_close=leave)

    return routes
