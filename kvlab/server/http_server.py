"""uvicorn, as kvlab runs it."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from kvlab.server.connections import Connections, connection_limit
from kvlab.server.listening_socket import BACKLOG
from kvlab.server.settings import Settings

ACCEPTED_PER_TURN = 16
"""Connections accepted in one turn of the event loop: the others' data are read in between."""
KEEP_ALIVE_SECONDS = 30


class HttpServer(uvicorn.Server):
    """A server without a log of its own: connections are limited, and a shutdown closes what would never end."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._service = app.state.service
        connections = Connections(settings, connection_limit(settings))
        self._service.metrics.limited.add(
            "connections", "Open connections.", lambda: (len(connections), connections.limit)
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=connections.protocol,  # type: ignore[arg-type]
                loop="asyncio",  # another one would accept connections in a way of its own
                ws="none",
                log_config=None,
                log_level="error",
                access_log=False,
                lifespan="on",
                backlog=ACCEPTED_PER_TURN,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(settings.drain)),
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(BACKLOG)  # uvicorn has set the number that is accepted in one turn

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.begin_closing()
        await super().shutdown(sockets)
