"""``TieredCounts``: what RAM over SSD hit of a trace, what was written, and what requests waited."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvlab.replay.capacity import Capacity
from kvlab.replay.serving import QueuedRequest, first_token_s
from kvlab.replay.statistics import ratio
from kvlab.replay.trace import BlockTrace
from kvlab.replay.waits import load, prefill_s, queue_s, service_s
from kvlab.speed import Speed

SECONDS_A_YEAR = 365.25 * 86_400


@dataclass(frozen=True, eq=False)
class TieredCounts:
    """Holds the hits of each request by tier, and how much entered, left and was written.

    Attributes:
        trace: what was replayed.
        replace: name of the replacement policy.
        ram, ssd: capacities in tokens; an SSD of none is no tier.
        ram_tokens, ssd_tokens: tokens of each request that were restored from the tier, int64 ``[requests]``.
        spurned_tokens: tokens that were stored and computed all the same, which was quicker, int64 ``[requests]``.
        written_tokens: tokens written to SSD for each request and behind it, int64 ``[requests]``.
        evictions: blocks that left a tier for good.
        after: the request that computed the end of what each one restores, int64 ``[requests]``, -1 for none; None:
            that is not known.
    """

    trace: BlockTrace
    replace: str
    ram: Capacity
    ssd: Capacity | None
    ram_tokens: np.ndarray
    ssd_tokens: np.ndarray
    spurned_tokens: np.ndarray
    written_tokens: np.ndarray
    evictions: int
    after: np.ndarray | None = None

    @cached_property
    def cached(self) -> np.ndarray:
        """Tokens of each request's prompt that are not computed, int64 ``[requests]``."""
        return self.ram_tokens + self.ssd_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of all requests that are not computed."""
        return int(self.cached.sum())

    @property
    def recomputed(self) -> np.ndarray:
        """Tokens of each request's prompt that are computed, int64 ``[requests]``."""
        return self.trace.input_tokens - self.cached

    @property
    def by_token(self) -> float:
        """Tokens not computed over the tokens of all prompts."""
        return ratio(self.cached_tokens, self.trace.input_tokens.sum())

    @property
    def of_infinite(self) -> float:
        """Tokens not computed over those that a tier without limit would not compute; 1 where it has none either."""
        known = self.trace.known_tokens
        return self.cached_tokens / known if known else 1.0

    def bytes_written(self, token_bytes: int) -> int:
        """Return the bytes written to SSD."""
        return int(self.written_tokens.sum()) * token_bytes

    def ssd_years(self, token_bytes: int, endurance: int) -> float:
        """Return the years after which writing as in the trace has written ``endurance`` bytes; NaN where unknown."""
        times = self.trace.times
        span, written = (float(times[-1] - times[0]) if len(times) else 0.0), self.bytes_written(token_bytes)
        if not span:
            return math.nan
        return endurance / written * span / SECONDS_A_YEAR if written else math.inf

    def service_s(self, speed: Speed, token_bytes: int) -> np.ndarray:
        """Return the seconds of each request to its first token, were it alone, float64 ``[requests]``."""
        return service_s(self.trace, self.ram_tokens, self.ssd_tokens, speed, token_bytes)

    def ttft_s(self, speed: Speed, token_bytes: int, places: int | None = None) -> np.ndarray:
        """Return the time to first token of each request, others waited for, float64 ``[requests]``.

        With ``places`` so many requests are served side by side (:func:`first_token_s`); else one after the other, each
        until its first token, and answers hold nobody up.
        """
        alone = self.service_s(speed, token_bytes)
        if places is None:
            return alone + queue_s(self.trace.times, alone)
        prompts = prefill_s(self.trace, self.cached, speed)
        after = np.full(len(self.trace), -1) if self.after is None else self.after
        columns = (self.trace.times, alone - prompts, prompts, np.maximum(self.trace.output_tokens - 1, 0), after)
        jobs = [QueuedRequest(*one) for one in zip(*(column.tolist() for column in columns), strict=True)]
        return first_token_s(jobs, speed, places)

    def load(self, speed: Speed, token_bytes: int) -> float:
        """Return the share of the time in which the server is at work; above 1 it cannot keep up."""
        return load(self.trace.times, self.service_s(speed, token_bytes))
