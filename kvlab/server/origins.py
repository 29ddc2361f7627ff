"""Which web pages and which host names a request may come from.

A page in a browser can send requests to this machine without its user's knowledge. It cannot hide its origin, and
cannot forge the ``Host`` header: under a name of its own that points to this machine (DNS rebinding) it sends that one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from kvlab.errors import KvlabError
from kvlab.server.errors import ApiError
from kvlab.server.loopback import is_loopback

LOCAL_SCHEMES = ("app", "tauri", "vscode-file", "vscode-webview")
"""Schemes of pages inside desktop programs. No page of the web has such an origin."""
LOCAL_DOMAINS = (".localhost", ".internal")
"""Domains that the public DNS never holds; containers reach their host as ``host.docker.internal``."""
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+|[a-z][a-z0-9+.-]*://\*|\*|null")
HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\])(:[0-9]{0,5})?")
MAX_SHOWN_CHARS = 100


class AllowedOrigins:
    """The origins and host names that a server answers to.

    Args:
        host: the address it listens on. On loopback, pages of other machines and foreign host names are refused.
        origins: further origins: ``https://example.org``, ``chrome-extension://*`` for a scheme, or ``*`` for all.
        hosts: further host names on loopback, such as that of a reverse proxy.

    Raises:
        KvlabError: an origin or a host name that cannot be one.
    """

    def __init__(self, host: str, origins: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        for origin in origins:
            if not ORIGIN.fullmatch(origin.lower()):
                raise KvlabError(f"{origin!r} is no origin: write https://example.org, chrome-extension://* or *")
        for name in hosts:
            if not HOST.fullmatch(name) or ":" in name.rpartition("]")[2]:
                raise KvlabError(f"{name!r} is no host name: write example.org, without a port")
        self._is_local = is_loopback(host)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._hosts = frozenset(name.lower().strip("[]") for name in hosts)

    def allows(self, origin: str) -> bool:
        """Whether pages of ``origin`` may read answers. Never raises: a malformed one may not."""
        origin = origin.lower()
        if "*" in self._origins or origin in self._origins:
            return True
        scheme, separator, rest = origin.partition("://")
        if origin == "file://":  # some desktop programs; browsers say null
            return True
        if not separator or not rest or not ORIGIN.fullmatch(origin):
            return False
        if f"{scheme}://*" in self._origins or scheme in LOCAL_SCHEMES:
            return True
        return scheme in ("http", "https") and _is_local_name(_host_of(origin))

    def check(self, origin: str | None, host: str | None) -> None:
        """Refuse a page of another machine, and a host name that is not this machine's.

        Raises ApiError 403, or 400 for a malformed host name. Without a header there is nothing to refuse: browsers
        send both. On other addresses than loopback a key is needed, which no foreign page has.
        """
        if not self._is_local:
            return
        if host and not HOST.fullmatch(host):
            raise ApiError(400, "the Host header is malformed: send a host name and a port")
        if host:
            name = _host_of("//" + host)
            if not _is_local_name(name) and name not in self._hosts:
                raise ApiError(
                    403,
                    f"the host name {name[:MAX_SHOWN_CHARS]!r} is refused: this server is for its own machine; "
                    "use 127.0.0.1, or start it with --allow-host",
                )
        if origin and not self.allows(origin):
            raise ApiError(
                403,
                f"requests from pages of {origin[:MAX_SHOWN_CHARS]!r} are refused: this server is for its own machine; "
                "start it with --allow-origin to let them in",
            )


class CrossOriginMiddleware(CORSMiddleware):
    """Answers preflight requests, and tells browsers which pages may read the answers."""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins) -> None:
        super().__init__(
            app,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # as asked for: the clients of OpenAI and Anthropic send a dozen of their own
            expose_headers=("retry-after",),
            allow_private_network=True,
        )
        self._allowed = origins

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether a page of this origin may read answers."""
        return self._allowed.allows(origin)


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_local_name(name: str) -> bool:
    return is_loopback(name) or name == "0.0.0.0" or name.endswith(LOCAL_DOMAINS)
