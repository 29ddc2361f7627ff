"""The decoder's own notes on one request."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches import LayerCache
from kvlab.decoder.stream import Completion, Stream

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]


@dataclass(eq=False)
class Job:
    """One request from its submission to its end. Times are ``time.perf_counter`` seconds."""

    stream: Stream
    prompt: list[int]
    max_tokens: int
    sampler: Sampler | None
    processors: Sequence[Processor]
    stop: Sequence[Sequence[int]]
    tags: Mapping[str, Any]
    tenant: str
    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    lookup_s: float = 0.0
    restore_s: float = 0.0
    uid: int | None = None
    caches: list[Any] = field(default_factory=list)
    layers: list[LayerCache] = field(default_factory=list)
    stored: int = 0
    cached: int = 0
    by_tier: Mapping[str, int] = field(default_factory=dict)
    miss: str = ""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prefilled: int = 0
    path: list[Any] = field(default_factory=list)
    held_by: Job | None = None
    held_until: int = 0

    @functools.cached_property
    def prompt_array(self) -> np.ndarray:
        """The prompt as int32."""
        return np.array(self.prompt, np.int32)

    @property
    def request(self) -> int:
        return self.stream.request

    def completion(self, reason: str, kv_bytes: int, end_tokens: frozenset[int]) -> Completion:
        """The figures of this job, which ended for ``reason``."""
        ended = reason == "stop" and self.tokens[-1] in end_tokens
        tokens = self.tokens[:-1] if ended else self.tokens
        gaps = [1e3 * (b - a) for a, b in zip(self.times, self.times[1:], strict=False)]
        first = self.times[0] if self.times else None
        begun = self.admitted + self.lookup_s + self.restore_s
        return Completion(
            request=self.request,
            tokens=tuple(tokens),
            finish_reason=reason,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            cached_by_tier=dict(self.by_tier),
            miss=self.miss,
            queue_ms=1e3 * ((self.admitted or time.perf_counter()) - self.submitted),
            lookup_ms=1e3 * self.lookup_s,
            restore_ms=1e3 * self.restore_s,
            prefill_ms=1e3 * (first - begun) if first is not None else 0.0,
            ttft_ms=1e3 * (first - self.submitted) if first is not None else 0.0,
            tpot_ms=sum(gaps) / len(gaps) if gaps else 0.0,
            itl_ms=tuple(gaps),
            kv_bytes_live=kv_bytes,
            tags=self.tags,
        )
