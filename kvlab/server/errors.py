"""Error responses: a status and one clear message, in the form of the client's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvlab.errors import KvlabError
from kvlab.server.limits import MAX_ERROR_CHARS, MAX_NAME_CHARS

OPENAI_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    507: "server_error",
}
ANTHROPIC_ERROR_TYPES = OPENAI_ERROR_TYPES | {
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    507: "api_error",
}


class ApiError(KvlabError):
    """An error response. ``param`` names the wrong field, ``code`` is for programs; what is quoted at length is cut."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = _cut(message, MAX_ERROR_CHARS)
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = None if param is None else _cut(param, MAX_NAME_CHARS)
        self.headers = dict(headers or {})

    def body(self, path: str) -> dict[str, Any]:
        """Return the error object of the protocol that ``path`` belongs to."""
        if path.startswith("/v1/messages"):
            kind = ANTHROPIC_ERROR_TYPES.get(self.status, "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = OPENAI_ERROR_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shutting_down() -> ApiError:
    """Make the error of a request that this server will not answer, and another one soon may."""
    return ApiError(503, "the server is shutting down", headers={"retry-after": "10"})


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
