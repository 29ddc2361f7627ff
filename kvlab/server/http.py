"""HTTP: event streams that end when the client disconnects, and limits on requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvlab.server.access import check_origin, tenant_of
from kvlab.server.errors import ApiError
from kvlab.server.settings import Settings

T = TypeVar("T")
PATHS_WITHOUT_KEY = ("/health", "/", "/favicon.ico")
"""The dashboard is among them: it shows an empty page until its user enters a key."""
DETAILS_HEADER = "x-kvlab"
"""The request header that asks for the ``kvlab`` field; any value but 0."""


class EventStream(Response):
    """Server-sent events from an async generator, which is closed as soon as the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_events(send))
        disconnected = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sender, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, disconnected):
                task.cancel()
            for task in (sender, disconnected):
                with suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``; cancel it and raise ApiError 408 when the client disconnects before."""
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(408, "the client left")
        return task.result()
    finally:
        for started in (task, disconnected):
            started.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    """Encode one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"{f'event: {event}' + chr(10) if event else ''}data: {text}\n\n".encode()


def wants_details(request: Request) -> bool:
    """Whether the client asks for the ``kvlab`` field."""
    return request.headers.get(DETAILS_HEADER, "0").lower() not in ("", "0", "false", "no")


class AccessMiddleware:
    """ASGI middleware that checks keys, origins, sizes and times of requests before they are parsed."""

    def __init__(self, app: ASGIApp, settings: Settings, count_response: Any) -> None:
        self._app, self._settings, self._count_response = app, settings, count_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        status = 500
        started = False

        async def send_and_note_status(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            check_origin(request.headers, self._settings.host)
            scope.setdefault("state", {})["tenant"] = (
                "" if request.url.path in PATHS_WITHOUT_KEY else tenant_of(request.headers, self._settings.api_keys)
            )
            body = await self._body(request, receive)
            await self._app(scope, _replay(body, receive), send_and_note_status)
        except ApiError as error:
            if started:
                raise
            response = JSONResponse(error.body(request.url.path), error.status, error.headers | {"connection": "close"})
            await response(scope, receive, send_and_note_status)
        finally:
            self._count_response(scope, status)

    async def _body(self, request: Request, receive: Receive) -> bytes:
        """Read the whole body. Raises ApiError 400, 408 or 413."""
        limit = self._settings.max_body
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise ApiError(413, f"the request is larger than {limit} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client left before its request was complete")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise ApiError(413, f"the request is larger than {limit} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, "the request's body took too long to arrive") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    is_replayed = False

    async def again() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
