"""``EventEmitter``: emits the events of the decoder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kvlab.decoder.request import Request
from kvlab.recording import events

EVICTION_DELAY_TOKENS = 2
"""Tokens after which an eviction's arrays have been computed: the decoder is one step ahead of its reports."""


class EventSink(Protocol):
    """Receives events, as the recorder does."""

    def emit(self, event: events.Event) -> None:
        """Take one event; called on the thread of its cause."""
        ...


class EventEmitter:
    """Emits events to a sink; without one, does nothing."""

    def __init__(self, sink: EventSink | None) -> None:
        self.sink = sink

    def emit(self, kind: type[events.Event], request: Request, *fields: Any) -> None:
        """Emit one event of this request, with the present time."""
        if self.sink is not None:
            self.sink.emit(kind(request.number, time.perf_counter(), *fields))

    def prefill(self, request: Request, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` prompt tokens are computed; does nothing when there are no new ones."""
        if done > request.prefilled:
            self.emit(events.Prefilled, request, done - request.prefilled, done, total)
            request.prefilled = done

    def token(self, request: Request, kv_bytes: int) -> None:
        """Report the latest token, and evictions of earlier steps. ``kv_bytes`` are those of the request's live KV."""
        if self.sink is None:
            return
        step = len(request.tokens) - 1
        if step == 0:
            ttft, queued = request.times[0] - request.submitted, request.admitted - request.submitted
            self.emit(events.FirstToken, request, request.tokens[0], ttft, queued)
        else:
            self.emit(events.Token, request, request.tokens[-1], step, kv_bytes)
        self.evictions(request)

    def evictions(self, request: Request, *, include_latest: bool = False) -> None:
        """Report rows that were evicted some tokens ago, whose positions have been computed, or all evicted rows.

        Reading positions at once would wait for the device, and that time would count as the model's.
        """
        if self.sink is None:
            return
        for layer in request.layers:
            new = layer.retention.evictions
            request.evictions += [(len(request.tokens), layer.place.layer, one) for one in new]
            new.clear()
        while request.evictions and (
            include_latest or len(request.tokens) - request.evictions[0][0] >= EVICTION_DELAY_TOKENS
        ):
            _, layer_index, eviction = request.evictions.pop(0)
            at = max(0, eviction.offset - len(request.prompt))
            positions = np.array(eviction.positions[0])
            self.emit(events.Evicted, request, layer_index, at, positions, eviction.kept)

    def store(self, kind: str, amounts: Mapping[str, Any]) -> None:
        """Report work of the store that belongs to no request: ``amounts`` are ``blocks`` and ``bytes``."""
        if self.sink is None:
            return
        now = time.perf_counter()
        if kind == "spilled":
            self.sink.emit(events.Spilled(-1, now, amounts["blocks"], amounts["bytes"]))
        elif kind in ("evicted", "corrupt"):
            self.sink.emit(events.Dropped(-1, now, amounts["blocks"], amounts["bytes"], kind))
