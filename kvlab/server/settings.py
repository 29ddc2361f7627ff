"""Settings of a server, checked before it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kvlab.errors import KvlabError


@dataclass(frozen=True)
class Settings:
    """Limits and access of one server.

    Args:
        host: the address to listen on. Any other than loopback needs an API key.
        port: the port of that address; 0 takes a free one.
        api_keys: the valid keys; without keys, every client is let in.
        max_concurrency: sequences that decode side by side.
        queue: requests that may wait beyond those; others get status 429.
        live_memory: most bytes of live KV of each model, see :class:`kvlab.decoder.Decoder`; None is no limit.
        model_memory: bytes of weights held at once; the least recently used model leaves first. None is no limit.
        max_tokens: most tokens of an answer when the request sets no limit.
        max_body: most bytes of a request.
        body_seconds: how long a request's body may take to arrive.
        request_seconds: how long a request may take from start to end.
        heartbeat: seconds without a token after which a stream sends a ping.
        drain: seconds that a shutdown waits for running requests.
        prefill_step: prompt tokens computed between two decode steps.

    Raises:
        KvlabError: an impossible limit, or an address open to others without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    max_concurrency: int = 32
    queue: int = 256
    live_memory: int | None = None
    model_memory: int | None = None
    max_tokens: int = 4096
    max_body: int = 32_000_000
    body_seconds: float = 30.0
    request_seconds: float = 900.0
    heartbeat: float = 5.0
    drain: float = 30.0
    prefill_step: int = 512

    def __post_init__(self) -> None:
        keys: object = self.api_keys
        if isinstance(keys, str):  # a tuple of its letters is not meant
            raise KvlabError("api_keys is a tuple of keys: write api_keys=(KEY,)")
        for name in ("max_concurrency", "max_tokens", "max_body", "prefill_step"):
            if getattr(self, name) < 1:
                raise KvlabError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("live_memory", "model_memory"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise KvlabError(f"{name}={getattr(self, name)} must be 1 byte or more")
        for name in ("body_seconds", "request_seconds", "heartbeat"):
            if getattr(self, name) <= 0:
                raise KvlabError(f"{name}={getattr(self, name)} must be above 0 seconds")
        if self.queue < 0 or self.drain < 0:
            raise KvlabError("queue and drain must be 0 or more")
        if not 0 <= self.port <= 65535:
            raise KvlabError(f"port {self.port} is out of range; use 0 to 65535, where 0 takes a free one")
        if any(not key.strip() for key in self.api_keys):
            raise KvlabError("an empty API key lets every client in; give one that is hard to guess")
        if not self.api_keys and not is_loopback(self.host):
            raise KvlabError(
                f"refusing to listen on {self.host} without a key: anyone who reaches it could use the model and read "
                "cached prompts; add --api-key KEY, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
