"""HTTP: event streams that end when the client disconnects, and limits on requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing, suppress
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvlab.server.access import Client, client_of
from kvlab.server.body_reader import BodyReader
from kvlab.server.errors import ApiError, shutting_down
from kvlab.server.limits import MAX_LOGGED_CHARS
from kvlab.server.logs import log
from kvlab.server.origins import AllowedOrigins, CrossOriginMiddleware
from kvlab.server.settings import Settings

T = TypeVar("T")
PATHS_WITHOUT_KEY = ("/health", "/", "/favicon.ico")
"""The dashboard is among them: it shows an empty page until its user enters a key."""
ABORT_KEY = "kvlab.abort"
"""Under this key, a request's scope has the function that closes its connection at once."""
DETAILS_HEADER = "x-kvlab"
"""The request header that asks for the ``kvlab`` field; any value but 0."""


class ClientStalled(OSError):
    """The client has not read its answer for too long; its connection is closed."""


class EventStream(Response):
    """Server-sent events from an async generator, which is closed as soon as the client disconnects.

    Args:
        events: the encoded events.
        deadline: the event loop's time at which the stream ends, whether the client has read it or not.
        on_close: called at the end, also where ``events`` was never started.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        deadline: float | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._deadline, self._on_close = events, deadline, on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_events(send))
        disconnected = asyncio.create_task(_disconnected(receive))
        try:
            left = None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()
            ended, _ = await asyncio.wait({sender, disconnected}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, disconnected):
                task.cancel()
            for task in (sender, disconnected):
                with suppress(asyncio.CancelledError, OSError):
                    await task
            if self._on_close is not None:
                await self._on_close()
        if not ended:
            await close_connection(scope)

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def close_connection(scope: Scope) -> None:
    """Close the connection of a request at once, and drop what its client has not read."""
    abort = scope.get(ABORT_KEY)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # the connection notes its end in the event loop's next turn


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
    """ASGI middleware that checks origins, keys, sizes and times of requests before they are parsed.

    Args:
        app: the application behind it.
        settings: limits and keys.
        bodies: reads the bodies.
        count_response: called with the scope and the status of every response.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, bodies: BodyReader, count_response: Callable[[Scope, int], None]
    ) -> None:
        self._app, self._settings, self._bodies, self._count_response = app, settings, bodies, count_response
        self._origins = AllowedOrigins(settings.host, settings.allow_origins, settings.allow_hosts)
        self._behind_origins = CrossOriginMiddleware(self._check_key_and_read, self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, False
        scope.setdefault("state", {})["client"] = Client("", False)

        async def send_in_time(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            try:
                async with asyncio.timeout(self._settings.send_seconds):
                    await send(message)
            except TimeoutError:
                log("stalled", path=scope["path"][:MAX_LOGGED_CHARS], seconds=self._settings.send_seconds)
                await close_connection(scope)
                raise ClientStalled from None

        headers = Headers(scope=scope)
        try:
            self._origins.check(headers.get("origin"), headers.get("host"))
        except ApiError as error:
            await _respond_with(error, scope, receive, send_in_time)
        else:
            try:
                await self._behind_origins(scope, receive, send_in_time)
            except ClientStalled:
                pass
            except asyncio.CancelledError:  # the shutdown has waited for its time
                if started:
                    with suppress(asyncio.CancelledError):  # the event loop may end meanwhile
                        await close_connection(scope)
                else:
                    await _respond_with(shutting_down(), scope, receive, send_in_time)
        finally:
            self._count_response(scope, status)

    async def _check_key_and_read(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            if request.url.path not in PATHS_WITHOUT_KEY:
                settings = self._settings
                scope["state"]["client"] = client_of(request.headers, settings.api_keys, settings.admin_keys)
            with ExitStack() as stack:
                reservation = stack.enter_context(self._bodies.memory.reservation())
                body = await self._bodies.read(request, receive, reservation)
                scope["state"] |= {"body": body, "body_bytes": len(body)}
                del body
                reserved = stack.pop_all()
        except ApiError as error:
            await _respond_with(error, scope, receive, send)
            return
        with reserved:
            await self._app(scope, _replay(scope, receive), send)


async def _respond_with(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(error.body(scope["path"]), error.status, error.headers | {"connection": "close"})
    await response(scope, receive, send)


def take_body(scope: Scope) -> bytes:
    """Return the body that was read, once: what is parsed is not held any longer."""
    body: bytes = scope["state"].pop("body", b"")
    return body


def _replay(scope: Scope, receive: Receive) -> Receive:
    is_replayed = False

    async def again() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": take_body(scope), "more_body": False}

    return again


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
