"""Access: API keys, the tenants they stand for, and origins of web pages."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from kvlab.server.errors import ApiError
from kvlab.server.settings import is_loopback


def tenant_of(headers: Mapping[str, str], keys: Sequence[str]) -> str:
    """Return the tenant of a request: a salt made of its API key, so that keys never share KV; "" without keys.

    Raises ApiError 401. Every key is compared, in constant time, so that response times reveal no key.
    """
    if not keys:
        return ""
    given = headers.get("x-api-key") or ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        given = token.strip()
    digest = _digest(given)
    matches = [hmac.compare_digest(digest, _digest(key)) for key in keys]
    if not any(matches):
        what = "this API key is not known" if given else "an API key is needed"
        raise ApiError(
            401,
            f"{what}; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return hashlib.sha256(b"kvlab tenant\0" + digest).hexdigest()[:32]


def check_origin(headers: Mapping[str, str], host: str) -> None:
    """Refuse requests from web pages of other sites. Raises ApiError 403."""
    origin = headers.get("origin")
    if not origin or not is_loopback(host):
        return
    if not is_loopback(urlsplit(origin).hostname or ""):
        raise ApiError(403, f"requests from pages of {origin} are refused: this server is for its own machine")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
