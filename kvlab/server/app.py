"""The application: its routes, its error responses, its start and its end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kvlab.errors import KvlabError
from kvlab.models import LoadedModel, ModelSource
from kvlab.policies import Full
from kvlab.server import kv_files, ops_routes
from kvlab.server.anthropic import routes as anthropic_routes
from kvlab.server.anthropic.types import CountRequest, MessagesRequest
from kvlab.server.body_parsing import body_schemas
from kvlab.server.errors import ApiError
from kvlab.server.generation.model_pool import ModelPool
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import AccessMiddleware
from kvlab.server.limits import MAX_LOGGED_CHARS
from kvlab.server.logs import log
from kvlab.server.metrics import ServerMetrics
from kvlab.server.openai import routes as openai_routes
from kvlab.server.openai.types import ChatRequest, CompletionRequest
from kvlab.server.service import Service
from kvlab.server.settings import Settings
from kvlab.systems import Candidate, policy_of
from kvlab.version import __version__


def create_app(
    served: Candidate, sources: Mapping[str, str | Path | ModelSource | LoadedModel], settings: Settings
) -> FastAPI:
    """Make an ASGI application that serves ``sources`` (models to load, by name) under one policy or system.

    The first model is loaded before the application accepts requests. ``app.state.service`` is the Service.
    """

    def open_model(loaded: LoadedModel) -> ServedModel:
        policy = policy_of(served, loaded)
        # A completion counts all events but evictions from live KV: those are counted as they come.
        return ServedModel(loaded, policy, settings, None if isinstance(policy.retention, Full) else metrics)

    pool = ModelPool(sources, open_model, settings.model_memory)
    metrics = ServerMetrics(pool.open)
    service = Service(settings, pool, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with pool.use(None):
                pass
        except KvlabError as error:
            app.state.failure = error
            raise
        following = asyncio.create_task(metrics.history.follow())
        yield
        following.cancel()
        log("closing", models=len(pool.open))
        service.close()

    app = FastAPI(title="kvlab", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.failure = None
    app.include_router(openai_routes.router(service))
    app.include_router(anthropic_routes.router(service))
    app.include_router(kv_files.router(service))
    app.include_router(ops_routes.router(service))
    _add_error_handlers(app)
    _describe_bodies(app)

    def count_response(scope: Mapping[str, Any], status: int) -> None:
        route = scope.get("route")
        metrics.responded(scope["state"]["client"].tenant, getattr(route, "path", "other"), status)

    app.add_middleware(AccessMiddleware, settings=settings, bodies=service.bodies, count_response=count_response)
    return app


def _describe_bodies(app: FastAPI) -> None:
    """Add to the OpenAPI description the bodies that routes parse themselves."""
    describe = app.openapi

    @functools.cache  # making the schemas takes longer than most answers
    def with_bodies() -> dict[str, Any]:
        made = describe()
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        schemas |= body_schemas([ChatRequest, CompletionRequest, MessagesRequest, CountRequest])
        return made

    app.openapi = with_bodies  # type: ignore[method-assign]


def _add_error_handlers(app: FastAPI) -> None:
    """Write every error in the form of the request's protocol."""

    def respond(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(request.url.path), error.status, error.headers)

    @app.exception_handler(KvlabError)
    async def user_error(request: Request, error: KvlabError) -> JSONResponse:
        return respond(request, error if isinstance(error, ApiError) else ApiError(400, str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first: Mapping[str, Any] = (error.errors() or [{}])[0]
        field = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
        message = f"{field}: {first.get('msg')}" if field else str(first.get("msg", "the request cannot be read"))
        return respond(request, ApiError(400, message, param=field or None))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        messages = {
            404: f"no such path: {request.url.path[:MAX_LOGGED_CHARS]}",
            405: f"{request.method} is not answered here",
        }
        message = messages.get(error.status_code, str(error.detail))
        return respond(request, ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        log("failed", level=40, path=request.url.path[:MAX_LOGGED_CHARS], error=f"{type(error).__name__}")
        return respond(request, ApiError(500, "the server failed; its log says how"))
