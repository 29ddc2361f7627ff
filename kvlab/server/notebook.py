"""``kvlab.serve(policy)``: start a server from a notebook."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kvlab.counts import counted
from kvlab.errors import KvlabError
from kvlab.models import BUNDLED, LoadedModel, ModelSource, is_gguf, load
from kvlab.models.adapters import adapter_folder
from kvlab.policies import Module, Policy, parse_bytes
from kvlab.server.listening_socket import bound_socket
from kvlab.server.settings import Settings, of_system
from kvlab.systems import Candidate, System

Source = str | Path | ModelSource | LoadedModel
SIZE_SETTINGS = ("live_memory", "model_memory", "max_body", "body_memory")


def serve(
    policy: Policy | Module | System | str = "tiered",
    model: Source | Mapping[str, Source] | tuple[Any, ...] | None = None,
    *,
    port: int = 0,
    **settings: Any,
) -> Handle:
    """Serve a policy from this process and return at once; the returned handle stops the server.

    Args:
        policy: a Policy or its spec, or a System (``kvlab.System.parse("omlx")``), whose settings count as given.
        model: whatever :func:`kvlab.load` takes, a loaded model, or several by name; None is the
            bundled model.
        port: the port to listen on; 0 takes a free one.
        settings: the other fields of :class:`Settings`, such as ``api_keys`` or ``max_concurrency``; sizes may be
            text, such as ``live_memory="8GB"``.

    Raises:
        KvlabError: an impossible policy, model or setting, or a port that is in use.
    """
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(set(settings) - set(known)):
        raise KvlabError(f"no setting {unknown[0]!r}; there are {', '.join(known)}")
    served = policy if isinstance(policy, System) else Policy.parse(policy)
    sizes = {name: parse_bytes(settings[name]) for name in SIZE_SETTINGS if isinstance(settings.get(name), str)}
    return Handle(served, served_models(model), Settings(port=port, **{**of_system(served), **settings, **sizes}))


class Handle:
    """A running server. ``url`` is its address; :meth:`stop` ends it. A context manager."""

    def __init__(self, policy: Candidate, models: Mapping[str, Source], settings: Settings) -> None:
        from kvlab.server.app import create_app
        from kvlab.server.http_server import HttpServer

        self.policy, self.settings = policy, settings
        self.models = tuple(models)
        self._socket = bound_socket(settings.host, settings.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.app = create_app(policy, models, settings)
        self._server = HttpServer(self.app, settings)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kvlab-server", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            self._socket.close()
            reason = getattr(self.app.state, "failure", None) or self._error
            raise KvlabError(f"the server did not start: {reason or 'see its log'}")

    def stop(self) -> None:
        """Finish running requests, store their KV, and free the port. Idempotent."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run([self._socket])
        except BaseException as error:  # noqa: BLE001 - a failed start raises SystemExit
            self._error = error

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "stopped"
        return f"<kvlab server {self.url} {state}: {self.policy} over {', '.join(self.models)}>"

    def _repr_html_(self) -> str:
        running = self._thread.is_alive()
        link = f'<a href="{self.url}" target="_blank">{self.url}</a>' if running else f"<s>{self.url}</s>"
        base = f"{self.url}/v1"
        key = "KEY" if self.settings.keys else "-"
        return (
            f"<div><b>kvlab server</b> {link} · {'running' if running else 'stopped'}<br>"
            f"policy <code>{html.escape(str(self.policy))}</code> · models "
            f"<code>{html.escape(', '.join(self.models))}</code><br>"
            f'<code>OpenAI(base_url="{base}", api_key="{key}")</code> · '
            f'<code>Anthropic(base_url="{self.url}", api_key="{key}")</code></div>'
        )


def served_models(model: Source | Mapping[str, Source] | tuple[Any, ...] | None) -> dict[str, Source]:
    """Return models by the name that requests use. Raises KvlabError for two of one name."""
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, tuple):  # what mlx_lm.load returns
        model = load(model)
    return models_by_name([BUNDLED if model is None else model])


def with_adapters(models: Sequence[str], adapters: Sequence[str], dtype: str | None = None) -> list[Source]:
    """Give each model its adapter, in this order; ``none`` is no adapter. Raises KvlabError where numbers differ.

    ``dtype`` is that of all of them; None as they are loaded without.
    """
    if not adapters:
        return list(models) if dtype is None else [ModelSource(model, dtype=dtype) for model in models]
    if len(adapters) != len(models):
        raise KvlabError(
            f"{counted(len(models), 'model')} and {counted(len(adapters), 'adapter')}; write one --adapter a --model, "
            "in the same order, or --adapter none"
        )
    return [
        model
        if adapter == "none" and dtype is None
        else ModelSource(model, None if adapter == "none" else adapter, dtype)
        for model, adapter in zip(models, adapters, strict=True)
    ]


def _name(model: str | Path) -> str:
    """The last part of a folder or GGUF file; a hub id or a name of ``kvlab models`` as it is."""
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and is_gguf(path)):
        return path.resolve().name.removesuffix(".gguf")
    return str(model)


def models_by_name(models: list[Source]) -> dict[str, Source]:
    """Name each model: hub ids as they are, paths by their last part. Raises KvlabError for two of one name."""
    made: dict[str, Source] = {}
    for model in models:
        if isinstance(model, LoadedModel):
            name = model.name
        elif isinstance(model, ModelSource):
            [(name, _)] = models_by_name([BUNDLED if model.model is None else model.model]).items()
            name = name if model.adapter is None else f"{name}+{adapter_folder(model.adapter).name}"
        else:
            name = _name(model)
        if name in made:
            raise KvlabError(f"two models are called {name}; rename one folder")
        made[name] = model
    return made
