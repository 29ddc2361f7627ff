"""A Redis or Valkey server as a remote: values are strings, collections are hashes.

The password comes from ``KVLAB_REMOTE_PASSWORD``. A cluster's shards are not supported: values of one request must be
on one server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvlab.store.remote.client import SOCKET_TIMEOUT_S, StoredBlock
from kvlab.store.remote.errors import RemoteDown, RemoteFull, RemoteRefused, RemoteTrouble
from kvlab.store.remote.ticket_parser import TicketParser

PASSWORD_VARIABLE = "KVLAB_REMOTE_PASSWORD"
MAX_CONNECTIONS = 16
SCAN_COUNT = 500
"""Names asked of the server at a time while all of them are listed."""
FULL_ANSWERS = ("OOM", "MISCONF", "READONLY", "NOREPLICAS")
"""How answers to writes begin that the server does not take for now."""


class RedisClient:
    """Implements ``RemoteClient``."""

    def __init__(self, url: str, ttl_s: float | None) -> None:
        self._ttl_ms = None if ttl_s is None else max(1, round(1000 * ttl_s))
        self._redis: Any = redis.Redis.from_url(
            url,
            password=os.environ.get(PASSWORD_VARIABLE) or None,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # the circuit decides when to try again
            max_connections=MAX_CONNECTIONS,
            protocol=2,
            parser_class=TicketParser,
            driver_info=None,  # telling the server who asks costs each new connection two round trips
        )

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        found = self._pipeline([("STRLEN", name) for name in names])
        return {name: size for name, size in zip(names, found, strict=True) if isinstance(size, int) and size}

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        with _translated():
            values = self._redis.mget(list(names)) if names else []
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def write(self, values: Mapping[str, bytes]) -> None:
        life = () if self._ttl_ms is None else ("PX", self._ttl_ms)
        _raise_first(self._pipeline([("SET", name, value, *life) for name, value in values.items()]))

    def delete(self, names: Sequence[str]) -> None:
        if names:
            with _translated():
                self._redis.unlink(*names)

    def touch(self, names: Sequence[str]) -> None:
        command = (lambda n: ("TOUCH", n)) if self._ttl_ms is None else (lambda n: ("PEXPIRE", n, self._ttl_ms))
        self._pipeline([command(name) for name in names])

    def add(self, collection: str, member: str, value: bytes) -> None:
        commands: list[tuple[Any, ...]] = [("HSET", collection, member, value)]
        if self._ttl_ms is not None:
            commands.append(("PEXPIRE", collection, self._ttl_ms))
        _raise_first(self._pipeline(commands))

    def members(self, collection: str, limit: int) -> dict[str, bytes]:
        (found,) = self._pipeline([("HRANDFIELD", collection, limit, "WITHVALUES")])
        if not isinstance(found, list):  # another program's value under this name
            return {}
        return {member.decode(errors="replace"): value for member, value in zip(found[::2], found[1::2], strict=True)}

    def remove(self, collection: str, members: Sequence[str]) -> None:
        if members:
            self._pipeline([("HDEL", collection, *members)])

    def with_members(self, collections: Sequence[str]) -> set[str]:
        found = self._pipeline([("EXISTS", name) for name in collections])
        return {name for name, count in zip(collections, found, strict=True) if count == 1}

    def blocks(self, folder: str) -> Iterator[StoredBlock]:
        for names in self._listed(folder):
            # Both commands leave the time of the last use alone, as STRLEN would not.
            idle = self._pipeline([("OBJECT", "IDLETIME", name) for name in names])
            sizes = self._pipeline([("MEMORY", "USAGE", name) for name in names])
            for name, seconds, size in zip(names, idle, sizes, strict=True):
                if isinstance(size, int):
                    yield StoredBlock(name, size, float(seconds) if isinstance(seconds, int) else 0.0)

    def links(self, folder: str) -> Iterator[tuple[str, str]]:
        for names in self._listed(folder):
            for name, members in zip(names, self._pipeline([("HKEYS", name) for name in names]), strict=True):
                for member in members if isinstance(members, list) else ():
                    yield name, member.decode(errors="replace")

    def ping(self) -> None:
        with _translated():
            self._redis.ping()

    def close(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            self._redis.close()
            self._redis.connection_pool.disconnect()

    def _listed(self, folder: str) -> Iterator[list[str]]:
        """Yield the names that begin with ``folder``, some at a time; a name may come twice."""
        with _translated():
            names = self._redis.scan_iter(match=f"{folder}*", count=SCAN_COUNT)
            while batch := [name.decode(errors="replace") for name in itertools.islice(names, SCAN_COUNT)]:
                yield list(dict.fromkeys(batch))

    def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one go; return their answers, errors of single ones among them."""
        if not commands:
            return []
        with _translated():
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=False))


def _raise_first(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise _trouble(answer)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise _trouble(error) from error


def _trouble(error: Exception) -> RemoteTrouble:
    """Return what an error of the client or of the server means."""
    refused = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, refused) or said.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return RemoteRefused(f"the server refuses this client ({said}); set {PASSWORD_VARIABLE}")
    if isinstance(error, redis.exceptions.OutOfMemoryError) or said.startswith(FULL_ANSWERS):
        return RemoteFull(said)
    if isinstance(error, redis.ResponseError) and not isinstance(error, redis.ConnectionError):
        return RemoteFull(said)  # a write that cannot be done, such as one onto another program's value
    return RemoteDown(said)
