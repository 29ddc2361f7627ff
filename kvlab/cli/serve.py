"""``kvlab serve``: a policy as an endpoint."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kvlab.cli.main import dtype_option
from kvlab.cli.user_files import import_all, import_option
from kvlab.errors import KvlabError

DEFAULT_POLICY = "tiered"


@click.command()
@click.option("--policy", metavar="POLICY", help="What to serve; else tiered.")
@click.option(
    "--system", metavar="NAME", help="The cache design of another server in place of a policy: kvlab systems."
)
@import_option
@click.option("--model", "models", multiple=True, metavar="MODEL", help="As kvlab compare takes it; may be repeated.")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="DIR", help="Of the model; with several, one each or none."
)
@dtype_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", "keys", multiple=True, metavar="KEY", help="Let in; may be repeated. Else KVLAB_API_KEY.")
@click.option(
    "--admin-key", "admin_keys", multiple=True, metavar="KEY", help="Sees all clients' figures; may be repeated."
)
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="A web page to let in; may be repeated."
)
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A host name to answer to; may be repeated.")
@click.option("--max-connections", type=click.IntRange(1), default=512, show_default=True, help="Open at once.")
@click.option("--max-concurrency", type=click.IntRange(1), help="Decoding side by side; else 32, or the system's.")
@click.option("--queue", type=click.IntRange(0), help="Waiting beyond those, then 429; else 256, or the system's.")
@click.option("--live-memory", metavar="SIZE", help="Most live KV, such as 8GB; requests wait for room.")
@click.option("--model-memory", metavar="SIZE", help="Weights in memory together; the least recently used leave.")
@click.option("--max-tokens", type=click.IntRange(1), default=4096, show_default=True, help="When a request says none.")
@click.option("--max-body", default="8MB", show_default=True, metavar="SIZE", help="Largest request.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=900.0, show_default=True, help="Seconds.")
@click.option("--heartbeat", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds.")
@click.option(
    "--drain", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to finish at the end."
)
@click.option("--prefill-step", type=click.IntRange(1), help="Tokens between steps; else 512, or the system's.")
def serve(
    policy: str | None,
    system: str | None,
    imports: tuple[Path, ...],
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    dtype: str | None,
    host: str,
    port: int,
    keys: tuple[str, ...],
    admin_keys: tuple[str, ...],
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    max_connections: int,
    max_concurrency: int | None,
    queue: int | None,
    live_memory: str | None,
    model_memory: str | None,
    max_tokens: int,
    max_body: str,
    timeout: float,
    heartbeat: float,
    drain: float,
    prefill_step: int | None,
) -> None:
    """Serve a policy or a system to clients of OpenAI and Anthropic until interrupted; a dashboard is at /."""
    import gc

    if policy is not None and system is not None:
        raise click.UsageError(
            "--policy and --system exclude each other: a system brings its policy; leave one of them out"
        )

    from kvlab.models import BUNDLED
    from kvlab.policies import Policy, parse_bytes
    from kvlab.server.app import create_app
    from kvlab.server.http_server import HttpServer
    from kvlab.server.listening_socket import bound_socket
    from kvlab.server.logs import to_stderr
    from kvlab.server.notebook import models_by_name, with_adapters
    from kvlab.server.settings import Settings, of_system
    from kvlab.server.snippets import client_snippets
    from kvlab.systems import parse_system

    given = keys or tuple(filter(None, [os.environ.get("KVLAB_API_KEY")]))
    body = parse_bytes(max_body)
    import_all(imports)
    served = Policy.parse(policy or DEFAULT_POLICY) if system is None else parse_system(system)
    asked = {"max_concurrency": max_concurrency, "queue": queue, "prefill_step": prefill_step}
    loop = of_system(served) | {name: value for name, value in asked.items() if value is not None}
    settings = Settings(
        host=host,
        port=port,
        api_keys=tuple(given),
        admin_keys=admin_keys,
        allow_origins=origins,
        allow_hosts=hosts,
        max_connections=max_connections,
        live_memory=parse_bytes(live_memory) if live_memory else None,
        model_memory=parse_bytes(model_memory) if model_memory else None,
        max_tokens=max_tokens,
        max_body=body,
        body_memory=max(body, Settings.body_memory),
        request_seconds=timeout,
        heartbeat=heartbeat,
        drain=drain,
        **loop,
    )
    socket = bound_socket(settings.host, settings.port)
    sys.setswitchinterval(0.0005)  # the decoder's thread must not wait long for a busy event loop
    to_stderr()
    named = models_by_name(with_adapters(models or (BUNDLED,), adapters, dtype))
    app = create_app(served, named, settings)
    shown, number = socket.getsockname()[:2]
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"

    class Announcing(HttpServer):
        async def startup(self, sockets: Any = None) -> None:
            uvicorn_log = logging.getLogger("uvicorn.error")
            uvicorn_log.disabled = True  # a failed start is reported in one line, below
            try:
                await super().startup(sockets)
            finally:
                uvicorn_log.disabled = False
            if self.started:
                gc.freeze()  # what has been loaded stays: collecting garbage need not look through it
                click.echo(f"kvlab serves {served} at {url}")
                sys.stdout.flush()
                _show_clients(client_snippets(url, next(iter(named)), needs_key=bool(settings.keys)))

        async def shutdown(self, sockets: Any = None) -> None:
            await super().shutdown(sockets)
            self._captured_signals.clear()  # a requested stop ends with status 0

    try:
        Announcing(app, settings).run([socket])
    except SystemExit:  # uvicorn raises it when the start fails
        if app.state.failure is None:
            raise
    if app.state.failure is not None:
        raise KvlabError(str(app.state.failure))


def _show_clients(snippets: Mapping[str, str]) -> None:
    """Write how to reach the server to stderr: to people in lines to copy, to logs as one of their lines."""
    from kvlab.server.logs import log

    if not sys.stderr.isatty():
        log("clients", logging.INFO, **snippets)
        return
    width = max(map(len, snippets))
    lines = [f"  {client:<{width}}  {line}" for client, line in snippets.items()]
    click.echo("\n".join(["Its dashboard is at the same address. To use it from", *lines]), err=True)
