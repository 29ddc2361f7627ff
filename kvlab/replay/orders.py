"""Make the store's replacement policies for a trace, whose clock is that of its requests."""

from __future__ import annotations

import inspect
from typing import Any

from kvlab.store.replacement import Replacement, check_replacement


class TraceClock:
    """Tells the time of the request that is replayed, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def order_for(name: str, capacity: int, clock: TraceClock) -> Replacement:
    """Make the replacement policy called ``name``; one whose class takes a ``clock`` gets that of the trace.

    Raises ``StoreError`` that lists the names.
    """
    kind = check_replacement(name)
    offered: dict[str, Any] = {"clock": clock}
    wanted = inspect.signature(kind).parameters
    return kind(capacity, **{key: value for key, value in offered.items() if key in wanted})
