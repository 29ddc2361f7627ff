"""What requests wait for their first token, by a speed: restoring, computing, and the requests before them."""

from __future__ import annotations

import numpy as np

from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed


def service_s(trace: BlockTrace, ram: np.ndarray, ssd: np.ndarray, speed: Speed, token_bytes: int) -> np.ndarray:
    """Return the seconds from the start of each request to its first token, float64 ``[requests]``.

    Args:
        ram, ssd: tokens of each prompt that are restored from a tier, int64 ``[requests]``; the last token of a prompt
            is computed in any case.
    """
    prefill = prefill_s(trace, ram + ssd, speed)
    restore = token_bytes * (ram / speed.memory + ssd / speed.ssd) + speed.restore_s * (ram + ssd > 0)
    return speed.base_s + restore + prefill


def prefill_s(trace: BlockTrace, cached: np.ndarray, speed: Speed) -> np.ndarray:
    """Return the seconds in which the rest of each prompt is computed, alone, float64 ``[requests]``."""
    tokens = np.maximum(trace.input_tokens, 1).astype(np.float64)
    known = np.minimum(cached, tokens - 1)
    found: np.ndarray = speed.token_s * (tokens - known) + speed.token2_s * (tokens**2 - known**2)
    return found


def queue_s(times: np.ndarray, service: np.ndarray) -> np.ndarray:
    """Return the seconds that each request waits for those before it, float64 ``[requests]``.

    One server, first in, first out: a request is served until its first token, then the next one. Answers are decoded
    beside and hold nobody up. Lindley, "The theory of queues with a single server", Math. Proc. Camb. Phil. Soc. 1952.

    Args:
        times: arrivals in seconds, never falling.
        service: seconds of each request.
    """
    before = np.cumsum(service) - service
    return np.maximum.accumulate(times - before) + before - times


def load(times: np.ndarray, service: np.ndarray) -> float:
    """Return the share of the trace's time in which the server is at work; above 1 the queue grows to the end."""
    span = float(times[-1] - times[0]) if len(times) else 0.0
    return float(service.sum()) / span if span else float("inf")
