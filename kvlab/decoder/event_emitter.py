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

    def emit(self, kind: type[events.Event], job: Request, *fields: Any) -> None:
        """One event of this job, now."""
        if self.sink is not None:
            self.sink.emit(kind(job.request, time.perf_counter(), *fields))

    def prefill(self, job: Request, done: int, total: int) -> None:
        """The prompt has come this far; says nothing when it has not moved."""
        if done > job.prefilled:
            self.emit(events.Prefilled, job, done - job.prefilled, done, total)
            job.prefilled = done

    def token(self, job: Request, kv_bytes: int) -> None:
        """A token came out; with it, what its step evicted."""
        if self.sink is None:
            return
        step = len(job.tokens) - 1
        if step == 0:
            ttft, queued = job.times[0] - job.submitted, job.admitted - job.submitted
            self.emit(events.FirstToken, job, job.tokens[0], ttft, queued)
        else:
            self.emit(events.Token, job, job.tokens[-1], step, kv_bytes)
        for layer in job.layers:
            for eviction in layer.evictions:
                at = max(0, eviction.offset - len(job.prompt))
                self.emit(events.Evicted, job, layer.layer, at, np.array(eviction.positions[0]), eviction.kept)
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
