"""From what the decoder does to events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kvlab.decoder.request import Request
from kvlab.recording import events


class EventSink(Protocol):
    """Whoever wants to know: the recorder."""

    def emit(self, event: events.Event) -> None: ...


class EventEmitter:
    """Emits events to a sink; without one, does nothing."""

    def __init__(self, sink: EventSink | None) -> None:
        self.sink = sink

    def emit(self, kind: type[events.Event], request: Request, *fields: Any) -> None:
        """One event of this job, now."""
        if self.sink is not None:
            self.sink.emit(kind(request.number, time.perf_counter(), *fields))

    def prefill(self, request: Request, done: int, total: int) -> None:
        """The prompt has come this far; says nothing when it has not moved."""
        if done > request.prefilled:
            self.emit(events.Prefilled, request, done - request.prefilled, done, total)
            request.prefilled = done

    def token(self, request: Request, kv_bytes: int) -> None:
        """A token came out; with it, what its step evicted."""
        if self.sink is None:
            return
        step = len(request.tokens) - 1
        if step == 0:
            ttft, queued = request.times[0] - request.submitted, request.admitted - request.submitted
            self.emit(events.FirstToken, request, request.tokens[0], ttft, queued)
        else:
            self.emit(events.Token, request, request.tokens[-1], step, kv_bytes)
        for layer in request.layers:
            for eviction in layer.evictions:
                at = max(0, eviction.offset - len(request.prompt))
                self.emit(events.Evicted, request, layer.layer, at, np.array(eviction.positions[0]), eviction.kept)
            layer.evictions.clear()

    def store(self, kind: str, what: Mapping[str, Any]) -> None:
        """The store's own news, which belong to no request."""
        if self.sink is None:
            return
        now = time.perf_counter()
        if kind == "spilled":
            self.sink.emit(events.Spilled(-1, now, what["blocks"], what["bytes"]))
        elif kind in ("evicted", "corrupt"):
            self.sink.emit(events.Dropped(-1, now, what["blocks"], what["bytes"], kind))
