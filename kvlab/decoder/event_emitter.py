"""``EventEmitter``: from what the decoder does to events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kvlab.decoder.request import Request
from kvlab.recording import events

DELAY_TOKENS = 2
"""Tokens after which an eviction's arrays have been computed: the decoder is one step ahead of what it reports."""


class EventSink(Protocol):
    """What hears of events: the recorder."""

    def emit(self, event: events.Event) -> None: ...


class EventEmitter:
    """Emits events to a sink; without one, does nothing."""

    def __init__(self, sink: EventSink | None) -> None:
        self.sink = sink

    def emit(self, kind: type[events.Event], request: Request, *fields: Any) -> None:
        """Emit one event of this request, now."""
        if self.sink is not None:
            self.sink.emit(kind(request.number, time.perf_counter(), *fields))

    def prefill(self, request: Request, done: int, total: int) -> None:
        """Tell how far the prompt has come; says nothing when it has not moved."""
        if done > request.prefilled:
            self.emit(events.Prefilled, request, done - request.prefilled, done, total)
            request.prefilled = done

    def token(self, request: Request, kv_bytes: int) -> None:
        """Tell of a token, and of what steps before it evicted."""
        if self.sink is None:
            return
        step = len(request.tokens) - 1
        if step == 0:
            ttft, queued = request.times[0] - request.submitted, request.admitted - request.submitted
            self.emit(events.FirstToken, request, request.tokens[0], ttft, queued)
        else:
            self.emit(events.Token, request, request.tokens[-1], step, kv_bytes)
        self.evictions(request)

    def evictions(self, request: Request, *, all_of_them: bool = False) -> None:
        """Tell of rows that left some tokens ago, or of all: their positions have been computed by then.

        Asked for at once they would be waited for, and the time that takes would count as the model's.
        """
        if self.sink is None:
            return
        for layer in request.layers:
            waiting = layer.retention.evictions
            request.evictions += [(len(request.tokens), layer.place.layer, one) for one in waiting]
            waiting.clear()
        while request.evictions and (all_of_them or len(request.tokens) - request.evictions[0][0] >= DELAY_TOKENS):
            _, layer_index, eviction = request.evictions.pop(0)
            at = max(0, eviction.offset - len(request.prompt))
            positions = np.array(eviction.positions[0])
            self.emit(events.Evicted, request, layer_index, at, positions, eviction.kept)

    def store(self, kind: str, what: Mapping[str, Any]) -> None:
        """Tell of what the store did on its own, for no request."""
        if self.sink is None:
            return
        now = time.perf_counter()
        if kind == "spilled":
            self.sink.emit(events.Spilled(-1, now, what["blocks"], what["bytes"]))
        elif kind in ("evicted", "corrupt"):
            self.sink.emit(events.Dropped(-1, now, what["blocks"], what["bytes"], kind))
