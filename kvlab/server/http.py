"""The HTTP side: event streams that notice when nobody listens, and limits on what comes in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvlab.errors import KvlabError
from kvlab.server.access import check_origin, tenant_of
from kvlab.server.errors import ApiError
from kvlab.server.settings import Settings

T = TypeVar("T")
OPEN = ("/health", "/", "/favicon.ico")
"""Paths that need no key: the dashboard is an empty page until its reader gives one."""


class EventStream(Response):
    """Server-sent events from an async generator, which is closed at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            for task in (pump, gone):
                with suppress(asyncio.CancelledError, OSError):
                    await task

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled as soon as the client leaves. Raises ApiError 408 then."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(408, "the client left")
        return task.result()
    finally:
        for started in (task, gone):
            started.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"{f'event: {event}' + chr(10) if event else ''}data: {text}\n\n".encode()


class AccessMiddleware:
    """ASGI middleware: keys, origins, sizes and times of requests, before anything is parsed."""

    def __init__(self, app: ASGIApp, settings: Settings, counted: Any) -> None:
        self._app, self._settings, self._counted = app, settings, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        status = 500
        started = False

        async def watched(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        try:
            check_origin(request.headers, self._settings.host)
            scope.setdefault("state", {})["tenant"] = (
                "" if request.url.path in OPEN else tenant_of(request.headers, self._settings.api_keys)
            )
            body = await self._body(request, receive)
            await self._app(scope, _replay(body, receive), watched)
        except ApiError as error:
            if started:
                raise
            response = JSONResponse(error.body(request.url.path), error.status, error.headers | {"connection": "close"})
            await response(scope, receive, watched)
        finally:
            self._counted(scope, status)

    async def _body(self, request: Request, receive: Receive) -> bytes:
        """The whole body. Raises ApiError 400, 408 or 413."""
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
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_api_error(error: Exception) -> ApiError:
    """Any error of kvlab as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, KvlabError):
        return ApiError(400, str(error))
    raise error
