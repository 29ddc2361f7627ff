"""An object store as a remote: S3 and what speaks its protocol, Google Cloud Storage, Azure, or a folder.

Credentials and endpoints come from the environment, by the names that each service's own tools use, such as
``AWS_ACCESS_KEY_ID`` and ``AWS_ENDPOINT_URL``. A member of a collection is an object below the collection's name.

Object stores end no object's life by themselves here: one that is older than the time to live is passed over, and
removed when the budget is looked after. Ages are told by the service's clock, never by this machine's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, from_url

from kvlab.errors import StoreError
from kvlab.store.remote.client import SOCKET_TIMEOUT_S, StoredBlock
from kvlab.store.remote.errors import RemoteDown, RemoteFull, RemoteRefused, RemoteTrouble

PARALLEL_REQUESTS = 16
CLOCK_FOLDER = "clock/"
PING_NAME = "clock/ping"

T = TypeVar("T")


class ObjectClient:
    """Implements ``RemoteClient``."""

    def __init__(self, url: str, ttl_s: float | None) -> None:
        self._store, self._ttl_s = _opened(url), ttl_s
        self._pool = ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="kvlab-objects")
        self._clock_ahead_s: float | None = None

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        found = zip(names, self._each(self._head, names), strict=True)
        return {name: meta["size"] for name, meta in found if meta is not None and self._lives(meta)}

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        found = zip(names, self._each(self._get, names), strict=True)
        return {name: data for name, data in found if data is not None}

    def write(self, values: Mapping[str, bytes]) -> None:
        self._each(lambda item: self._put(*item), list(values.items()))

    def delete(self, names: Sequence[str]) -> None:
        self._each(self._delete, names)

    def touch(self, names: Sequence[str]) -> None:
        """Do nothing: an object store keeps no note of uses."""

    def add(self, collection: str, member: str, value: bytes) -> None:
        self._put(f"{collection}/{member}", value or b"\0")  # some stores take no empty object

    def members(self, collection: str, limit: int) -> dict[str, bytes]:
        names = [meta["path"] for meta in itertools.islice(self._list(f"{collection}/"), limit)]
        return {name.rpartition("/")[2]: data for name, data in self.read(names).items()}

    def remove(self, collection: str, members: Sequence[str]) -> None:
        self.delete([f"{collection}/{member}" for member in members])

    def with_members(self, collections: Sequence[str]) -> set[str]:
        found = self._each(lambda name: next(self._list(f"{name}/", 1), None), collections)
        return {name for name, meta in zip(collections, found, strict=True) if meta is not None}

    def blocks(self, folder: str) -> Iterator[StoredBlock]:
        for meta in self._list(folder):
            yield StoredBlock(meta["path"], meta["size"], self._age_s(meta))

    def links(self, folder: str) -> Iterator[tuple[str, str]]:
        for meta in self._list(folder):
            collection, _, member = meta["path"].rpartition("/")
            yield collection, member

    def ping(self) -> None:
        with _translated():
            self._head(PING_NAME)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- single requests ------------------------------------------------------------------------------------------

    def _head(self, name: str) -> Any:
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            return obstore.head(self._store, name)

    def _get(self, name: str) -> bytes | None:
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            got = obstore.get(self._store, name)
            return bytes(got.bytes()) if self._lives(got.meta) else None
        return None

    def _put(self, name: str, data: bytes) -> None:
        try:
            obstore.put(self._store, name, data)
        except (BaseError, OSError) as error:
            trouble = _trouble(error)
            raise trouble if isinstance(trouble, RemoteRefused) else RemoteFull(str(trouble)) from error

    def _delete(self, name: str) -> None:
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, name)

    def _list(self, folder: str, chunk: int = 1000) -> Iterator[Any]:
        """Yield what is known of each object below ``folder``, which ends with a slash or within a name."""
        with _translated():
            for part in obstore.list(self._store, folder, chunk_size=chunk):
                yield from part

    def _each(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """Ask for all items at the same time; raise the first trouble once all have ended."""
        if len(items) == 1:
            with _translated():
                return [ask(items[0])]
        futures = [self._pool.submit(ask, item) for item in items]
        with _translated():
            return [future.result() for future in futures]

    # -- ages -----------------------------------------------------------------------------------------------------

    def _lives(self, meta: Any) -> bool:
        return self._ttl_s is None or self._age_s(meta) <= self._ttl_s

    def _age_s(self, meta: Any) -> float:
        """Return the seconds since an object was written, by the service's clock."""
        if self._clock_ahead_s is None:
            self._clock_ahead_s = self._measured_clock()
        return max(0.0, time.time() + self._clock_ahead_s - meta["last_modified"].timestamp())

    def _measured_clock(self) -> float:
        """Return the seconds that the service's clock is ahead of this machine's: write an object, look at its time."""
        name = f"{CLOCK_FOLDER}{secrets.token_hex(8)}"
        try:
            self._put(name, b"\0")
            meta = self._head(name)
            self._delete(name)
        except (RemoteTrouble, BaseError, OSError):
            return 0.0  # a reader without the right to write trusts its own clock
        return 0.0 if meta is None else meta["last_modified"].timestamp() - time.time()


def _opened(url: str) -> Any:
    """Return obstore's store of a URL. Raises ``StoreError`` for settings that cannot work."""
    timeout = f"{round(1000 * SOCKET_TIMEOUT_S)}ms"
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = unquote(parts.path)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            return LocalStore(folder)
        options = {"timeout": timeout, "connect_timeout": timeout, "allow_http": _may_use_http()}
        return from_url(url, client_options=options, retry_config={"max_retries": 0})
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(
            f"the remote {url} cannot be used ({_line(error)}); check its name and its settings"
        ) from error


def _may_use_http() -> bool:
    """Tell whether the environment allows connections without TLS, which options given here would overrule."""
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    return any(os.environ.get(name, "").lower() in ("true", "1") for name in names)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise _trouble(error) from error


def _trouble(error: Exception) -> RemoteTrouble:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return RemoteRefused(f"the service refuses this client ({_line(error)}); check its credentials")
    return RemoteDown(_line(error))


def _line(error: Exception) -> str:
    """Return the first line of an error's text: the rest is obstore's own debugging."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
