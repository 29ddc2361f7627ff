"""Make the store's replacement policies for a trace: with its clock, and for Belady's optimum with its future."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from kvlab.replacement_names import replacement_names
from kvlab.replay.belady import Belady, Future
from kvlab.replay.errors import TraceError
from kvlab.store.replacement import Replacement, replacements

BELADY = "belady"
Uses = Callable[[], Iterable[Iterable[Hashable]]]
"""Returns the keys that each request of a trace uses."""


class TraceClock:
    """Tells the time of the request that is replayed, in seconds, and goes on to the next request."""

    now: float = 0.0
    future: Future | None = None

    def __call__(self) -> float:
        return self.now

    def begin(self, now: float) -> None:
        """Begin the next request."""
        self.now = now
        if self.future is not None:
            self.future.advance()


def policy_class(name: str) -> type[Replacement]:
    """Return the policy of this name, those for replays only included. Raises ``TraceError`` that lists the names."""
    known: dict[str, type[Replacement]] = {**replacements(), BELADY: Belady}
    if name not in known:
        raise TraceError(f"replace={name!r} is not known; use one of {', '.join((*replacement_names(), BELADY))}")
    return known[name]


def order_for(name: str, capacity: int, clock: TraceClock, uses: Uses) -> Replacement:
    """Make the policy called ``name`` for a tier of ``capacity``.

    A class that takes a ``clock`` gets that of the trace, one that takes a ``future`` the uses of the trace. Raises
    ``TraceError``.
    """
    kind = policy_class(name)
    wanted = inspect.signature(kind).parameters
    given: dict[str, Any] = {}
    if "clock" in wanted:
        given["clock"] = clock
    if "future" in wanted:
        given["future"] = clock.future = clock.future or Future(uses())  # several tiers have one future
    return kind(capacity, **given)
