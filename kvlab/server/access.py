"""Access: API keys, the tenants they stand for, and what each of them may see."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvlab.server.errors import ApiError


class Client(NamedTuple):
    """Who sends a request. ``tenant`` is a salt made of its API key, so that keys never share KV; "" without keys.

    ``sees_all``: the requests and figures of every tenant, not only its own.
    """

    tenant: str
    sees_all: bool


def client_of(headers: Mapping[str, str], keys: Sequence[str], admin_keys: Sequence[str] = ()) -> Client:
    """Return the client of a request. Raises ApiError 401.

    Who sees all: the admin keys; the only key where there is one; everyone where there is none. Every key is compared,
    in constant time, so that response times reveal no key.
    """
    if not keys and not admin_keys:
        return Client("", True)
    given = headers.get("x-api-key") or ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given = token.strip()
    digest = _digest(given)
    is_user = _matches(digest, keys)
    is_admin = _matches(digest, admin_keys)
    if not is_user and not is_admin:
        what = "this API key is not known" if given else "an API key is needed"
        raise ApiError(
            401,
            f"{what}; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    is_alone = len({*keys, *admin_keys}) == 1
    return Client(hashlib.sha256(b"kvlab tenant\0" + digest).hexdigest()[:32], is_admin or is_alone)


def _matches(digest: bytes, keys: Sequence[str]) -> bool:
    return any([hmac.compare_digest(digest, _digest(key)) for key in keys])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
