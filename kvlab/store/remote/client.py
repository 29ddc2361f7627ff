"""What the remote tier asks of a service that stores bytes by name: one protocol, and the service of a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kvlab.errors import StoreError
from kvlab.remote_urls import REDIS_SCHEMES, url_problem

SOCKET_TIMEOUT_S = 2.0
"""Seconds after which a thread gives up a request; callers wait less long (``RemoteConfig.wait_s``)."""


@dataclass(frozen=True)
class StoredBlock:
    """Describes a block in a remote: its name, its bytes there, and the seconds since it was used.

    An object store does not note uses; there the seconds are those since it was written.
    """

    name: str
    nbytes: int
    unused_s: float


class RemoteClient(Protocol):
    """Reads and writes values by name, and small members of collections. Thread-safe.

    Every method may block for :data:`SOCKET_TIMEOUT_S` and more, and raises ``RemoteTrouble``. A value is written
    whole or not at all. Values and collections vanish after the client's time to live.
    """

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Return the bytes of those values that exist."""
        ...

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return those values that exist."""
        ...

    def write(self, values: Mapping[str, bytes]) -> None:
        """Write values, replacing those of the same name."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete values; those that are not there are passed over."""
        ...

    def touch(self, names: Sequence[str]) -> None:
        """Note a use of values, where the service keeps such notes, and renew their time to live."""
        ...

    def add(self, collection: str, member: str, value: bytes) -> None:
        """Add a member to a collection, or replace it."""
        ...

    def members(self, collection: str, limit: int) -> dict[str, bytes]:
        """Return up to ``limit`` members with their values."""
        ...

    def remove(self, collection: str, members: Sequence[str]) -> None:
        """Remove members from a collection."""
        ...

    def with_members(self, collections: Sequence[str]) -> set[str]:
        """Return those collections that have a member."""
        ...

    def blocks(self, folder: str) -> Iterator[StoredBlock]:
        """Yield every value whose name begins with ``folder``."""
        ...

    def links(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield every collection whose name begins with ``folder``, with each of its members."""
        ...

    def ping(self) -> None:
        """Return when the service has answered."""
        ...

    def close(self) -> None:
        """Close all connections. Idempotent."""
        ...


def check_url(url: str) -> None:
    """Raise ``StoreError`` for a URL that names no remote, or holds a password."""
    if problem := url_problem(url):
        raise StoreError(problem)


def connect(url: str, ttl_s: float | None) -> RemoteClient:
    """Return the client of a URL, connected when it is first used. Raises ``StoreError`` without its package."""
    check_url(url)
    try:
        if urlsplit(url).scheme in REDIS_SCHEMES:
            from kvlab.store.remote.redis_client import RedisClient

            return RedisClient(url, ttl_s)
        from kvlab.store.remote.object_client import ObjectClient

        return ObjectClient(url, ttl_s)
    except ImportError as error:
        raise StoreError(
            f"a remote tier needs packages beside kvlab's own: pip install 'kvlab[remote]' ({error})"
        ) from error
