"""``WireStream``: a streamed answer line by line, for what a tolerant client would not notice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from kvlab.audit.client import AuditClient

SSE_FIELDS = ("data", "event", "id", "retry")
"""Fields of server-sent events; a line that begins with a colon is a comment."""


@dataclass(frozen=True)
class WireStream:
    """Lines of one streamed answer.

    Attributes:
        events: JSON of all ``data`` lines, in order.
        bad_lines: Lines that are no server-sent event, or whose data is no JSON object.
        ended: Whether the last event is ``[DONE]``.
        error: Why the stream could not be read; empty where it could.
    """

    status: int
    content_type: str
    events: tuple[Mapping[str, Any], ...]
    bad_lines: tuple[str, ...]
    ended: bool
    error: str = ""

    @property
    def deltas(self) -> list[Mapping[str, Any]]:
        """What each event adds to the first choice."""
        return [choice.get("delta") or {} for choice in self.choices]

    @property
    def choices(self) -> list[Mapping[str, Any]]:
        """The first choice of each event that has one."""
        return [event["choices"][0] for event in self.events if event.get("choices")]

    @property
    def text(self) -> str:
        """The content, joined."""
        return "".join(delta.get("content") or "" for delta in self.deltas)


def read_wire(client: AuditClient, path: str, body: Mapping[str, Any]) -> WireStream:
    """Stream the answer to ``body`` and return its lines. Never raises for what the server does."""
    told = {**body, **client.stream_fields}
    told |= {"model": client.model} if client.model is not None else {}
    lines: list[str] = []
    status, kind, error = 0, "", ""
    try:
        with client.http.stream("POST", client.url + path, json=told) as response:
            status, kind = response.status_code, response.headers.get("content-type", "")
            lines += response.iter_lines()
    except httpx.HTTPError as failed:
        error = f"{type(failed).__name__}: {failed}".rstrip(": ")
    if status not in (0, 200):
        error = error or f"status {status}: {' '.join(lines)[:200]}"
    return _parse(lines, status, kind, error)


def _parse(lines: Sequence[str], status: int, kind: str, error: str) -> WireStream:
    events: list[Mapping[str, Any]] = []
    bad: list[str] = []
    ended = False
    for line in lines if not error else ():
        field, _, value = line.partition(":")
        if not line or not field:
            continue
        if field not in SSE_FIELDS:
            bad.append(line)
        elif field == "data":
            ended = value.strip() == "[DONE]"
            if not ended:
                _add_event(value, line, events, bad)
    return WireStream(status, kind, tuple(events), tuple(bad), ended, error)


def _add_event(value: str, line: str, events: list[Mapping[str, Any]], bad: list[str]) -> None:
    try:
        event = json.loads(value)
    except ValueError:
        event = None
    if isinstance(event, dict):
        events.append(event)
    else:
        bad.append(line)
