"""Settings of a server, checked before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvlab.decoder.config import DecoderConfig
from kvlab.errors import KvlabError
from kvlab.server.limits import MAX_KEY_CHARS, MAX_SMALL_BODY_BYTES
from kvlab.server.loopback import is_loopback
from kvlab.server.origins import AllowedOrigins
from kvlab.systems import Candidate, System

BUSY_STATUSES = (429, 503)
"""HTTP statuses of a request that finds no place in the queue."""


@dataclass(frozen=True)
class Settings:
    """Limits and access of one server. What a single request may hold besides is in :mod:`kvlab.server.limits`.

    Args:
        host: the address to listen on. Any other than loopback needs an API key.
        port: the port of that address; 0 takes a free one.
        api_keys: the valid keys; without keys, every client is let in.
        admin_keys: valid keys that see requests and figures of every client; others see their own.
        allow_origins: web pages that may use the server besides those of this machine: ``https://example.org``,
            ``chrome-extension://*``, or ``*`` for all.
        allow_hosts: host names by which the server is reached on loopback besides those of this machine.
        max_connections: open connections; beyond them the one that has been idle for longest is closed.
        max_concurrency: sequences that decode side by side.
        queue: requests that may wait beyond those; others get ``busy_status``. None is no limit.
        busy_status: 429, or 503 as some servers answer.
        live_memory: most bytes of live KV of each model, see :class:`kvlab.decoder.Decoder`; None is no limit.
        model_memory: bytes of weights held at once; the least recently used model leaves first. None is no limit.
        max_tokens: most tokens of an answer when the request sets no limit.
        max_body: most bytes of a request.
        body_memory: most bytes of all requests of more than 64 KiB that are held at once; others get status 429.
        header_seconds: how long a request's header may take to arrive.
        body_seconds: how long a request's body may take to arrive.
        request_seconds: how long a request may take from start to end: queue, prompt, grammar, answer and sending.
        send_seconds: how long a client may leave its answer unread before it is cancelled.
        heartbeat: seconds without a token after which a stream sends a ping.
        drain: seconds that a shutdown waits for running requests.
        prefill_step: prompt tokens computed between two decode steps.
        decoder: the other settings of each model's decoder.

    Raises:
        KvlabError: an impossible limit, or an address open to others without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    max_connections: int = 512
    max_concurrency: int = 32
    queue: int | None = 256
    busy_status: int = 429
    live_memory: int | None = None
    model_memory: int | None = None
    max_tokens: int = 4096
    max_body: int = 8_000_000
    body_memory: int = 128_000_000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 900.0
    send_seconds: float = 30.0
    heartbeat: float = 5.0
    drain: float = 30.0
    prefill_step: int = 512
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self) -> None:
        for name in ("api_keys", "admin_keys", "allow_origins", "allow_hosts"):
            given: object = getattr(self, name)
            if isinstance(given, str):  # a tuple of its letters is not meant
                what = name.rpartition("_")[2]
                raise KvlabError(f"{name} is a tuple of {what}: write {name}=({given!r},)")
        for name in ("max_concurrency", "max_connections", "max_tokens", "max_body", "body_memory", "prefill_step"):
            if getattr(self, name) < 1:
                raise KvlabError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("live_memory", "model_memory"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise KvlabError(f"{name}={getattr(self, name)} must be 1 byte or more")
        for name in ("header_seconds", "body_seconds", "request_seconds", "send_seconds", "heartbeat"):
            if getattr(self, name) <= 0:
                raise KvlabError(f"{name}={getattr(self, name)} must be above 0 seconds")
        if any(len(key) > MAX_KEY_CHARS for key in self.keys):
            raise KvlabError(f"an API key may have {MAX_KEY_CHARS} characters: give a shorter one")
        if self.max_body > max(self.body_memory, MAX_SMALL_BODY_BYTES):
            raise KvlabError(f"max_body={self.max_body} must be at most body_memory={self.body_memory}")
        if (self.queue is not None and self.queue < 0) or self.drain < 0:
            raise KvlabError("queue and drain must be 0 or more")
        if self.busy_status not in BUSY_STATUSES:
            raise KvlabError(
                f"busy_status={self.busy_status} is none; write one of {', '.join(map(str, BUSY_STATUSES))}"
            )
        if not 0 <= self.port <= 65535:
            raise KvlabError(f"port {self.port} is out of range; use 0 to 65535, where 0 takes a free one")
        if any(not key.strip() for key in self.keys):
            raise KvlabError("an empty API key lets every client in; give one that is hard to guess")
        AllowedOrigins(self.host, self.allow_origins, self.allow_hosts)
        if not self.keys and not is_loopback(self.host):
            raise KvlabError(
                f"refusing to listen on {self.host} without a key: anyone who reaches it could use the model and read "
                "cached prompts; add --api-key KEY, or listen on 127.0.0.1"
            )

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that lets a client in."""
        return self.api_keys + self.admin_keys


def of_system(candidate: Candidate) -> dict[str, Any]:
    """Return the settings that a system brings: how requests are run and how many may wait; none for a policy.

    Beyond the queue it answers with status 503, and the header Retry-After.
    """
    if not isinstance(candidate, System):
        return {}
    config = candidate.config
    loop = {"max_concurrency": config.max_concurrency, "decoder": config}
    loop |= {} if config.prefill_step is None else {"prefill_step": config.prefill_step}
    return {**loop, "queue": candidate.queue, "busy_status": 503}
