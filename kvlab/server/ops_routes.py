"""Health, metrics and the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from kvlab.server.http import EventStream, sse
from kvlab.server.service import Service

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
}


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """Report whether the server accepts requests."""
        if service.limit.closed:
            return JSONResponse({"status": "closing"}, 503)  # type: ignore[return-value]
        return {"status": "ok", "models": list(service.pool.open)}

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Return all metrics for Prometheus."""
        return Response(service.metrics.prometheus_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        page = (files("kvlab.server") / "dashboard.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @routes.get("/kvlab/state")
    async def state() -> JSONResponse:
        """Return the state that the dashboard shows."""
        return JSONResponse(service.metrics.state())

    @routes.get("/kvlab/events", include_in_schema=False)
    async def state_events() -> Response:
        """Send that state every second, as server-sent events."""

        async def states() -> AsyncGenerator[bytes, None]:
            while not service.limit.closed:
                yield sse(service.metrics.state())
                await asyncio.sleep(1)

        return EventStream(states())

    return routes
