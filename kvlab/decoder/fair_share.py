"""Fair shares of the decoder's places: between tenants, and between the groups of requests of one tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kvlab.decoder.request import Request

PATIENCE_S = 0.25
"""So long a request waits for a place to fall free before another one's is taken: most answers end soon."""
KEPT_SHARE = 8
"""One place of so many is kept for groups that have none, where no running request can be preempted."""


class Shares:
    """How many places each tenant and each group holds.

    Args:
        active: the requests that hold a place.
    """

    def __init__(self, active: Iterable[Request]) -> None:
        self._active = list(active)
        self._of_tenant = Counter(request.tenant for request in self._active)
        self._of_group = Counter((request.tenant, request.group) for request in self._active)

    def holds_place(self, request: Request) -> bool:
        """Return whether the request's group holds a place."""
        return self._of_group[request.tenant, request.group] > 0

    def in_turn(self, waiting: Sequence[Request]) -> list[Request]:
        """Return waiting requests in the order of service.

        By higher priority; then tenants in turn, those with fewer places first; then so the groups of a tenant; then by
        age. ``waiting`` is in the order of priority and age.
        """
        groups, turns = Counter(self._of_group), {}
        for request in waiting:
            turns[request] = groups[request.tenant, request.group]
            groups[request.tenant, request.group] += 1
        by_group = sorted(waiting, key=lambda request: (-request.priority, turns[request], request.number))
        tenants = Counter(self._of_tenant)
        for request in by_group:
            turns[request] = tenants[request.tenant]
            tenants[request.tenant] += 1
        return sorted(by_group, key=lambda request: (-request.priority, turns[request]))

    def over_share(self, request: Request) -> Request | None:
        """Return the running request whose place makes shares fairer when ``request`` gets it, if there is one.

        It is the latest one of the tenant, and of its group, with most places. None where that tenant or group would
        then have fewer places than that of ``request``.
        """
        able = [one for one in self._active if one.priority <= request.priority and one.is_reported]
        fairer = [one for one in able if self._is_fairer(request, one)]
        return max(
            fairer,
            key=lambda one: (self._of_tenant[one.tenant], self._of_group[one.tenant, one.group], one.rank),
            default=None,
        )

    def _is_fairer(self, request: Request, other: Request) -> bool:
        if request.tenant != other.tenant:
            return self._of_tenant[other.tenant] >= self._of_tenant[request.tenant] + 2
        return self._of_group[other.tenant, other.group] >= self._of_group[request.tenant, request.group] + 2
