"""``Places``: who gets a place among the sequences that are computed side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping

from kvlab.decoder.fair_share import KEPT_SHARE, PATIENCE_S, Shares
from kvlab.decoder.request import Request


class Places:
    """Gives places to waiting requests, and says which running one gives its place away.

    Args:
        count: sequences that are computed side by side.
        is_fair: clients share the places evenly; else a place is for whoever comes first.
        can_preempt: a running request can leave its place, and continue later.
        may_take: a waiting request may get the place of a running one, which follows the time that it has waited.

    Attributes:
        may_take: as given, where places are shared evenly and a running request can leave its own.
    """

    def __init__(self, count: int, *, is_fair: bool, can_preempt: bool, may_take: bool) -> None:
        self._count, self._is_fair, self._can_preempt = count, is_fair, can_preempt
        self.may_take = may_take and is_fair and can_preempt

    def free(self, active: Mapping[int, Request]) -> int:
        """Count the places that are free beside the ``active`` requests."""
        return self._count - len(active)

    def has_one_for(self, request: Request, active: Mapping[int, Request]) -> bool:
        """Return whether a place is free for the request."""
        free = self.free(active)
        if not self._is_fair:
            return free > 0
        kept = 0 if self._can_preempt else self._count // KEPT_SHARE
        return free > kept or (free > 0 and not Shares(active.values()).holds_place(request))

    def to_take(self, request: Request, active: Mapping[int, Request]) -> Request | None:
        """Return a running request that gives its place to this one, which has waited long enough; else None."""
        if not self.may_take or time.perf_counter() - request.submitted < PATIENCE_S:
            return None
        return Shares(active.values()).over_share(request)
