"""Who starts next: the queue, room for one more, and who had better wait for a prefix that is being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from kvlab.decoder.memory_budget import LiveMemoryBudget
from kvlab.decoder.prefix_tree import WORTH, PrefixTree
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.paged import PagedPrefixCache


def _uncomputed(active: Mapping[int, Request]) -> int:
    """Tokens that were admitted and have no storage yet."""
    each = (len(job.prompt) + len(job.tokens) - job.layers[0].room for job in active.values() if job.layers)
    return sum(max(0, tokens) for tokens in each)


class Admission:
    """The waiting jobs, by priority and then by age, and what decides when each may start. Decoder thread only."""

    def __init__(
        self, budget: LiveMemoryBudget | None, prefixes: PrefixTree | None, rest: PagedPrefixCache | None
    ) -> None:
        self._budget, self._prefixes, self._rest = budget, prefixes, rest
        self._waiting: deque[Request] = deque()

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._waiting))

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Request) -> None:
        """Behind those of its priority or a higher one that came before it."""
        behind = (i for i, other in enumerate(self._waiting) if other.rank > job.rank)
        self._waiting.insert(next(behind, len(self._waiting)), job)

    def remove(self, job: Request) -> None:
        self._waiting.remove(job)

    def has_room(self, job: Request, active: Mapping[int, Request], live_bytes: int) -> bool:
        """True when the job fits beside the ``active`` ones, as far as live memory goes."""
        if self._budget is None:
            return True
        answer = job.max_tokens - len(job.tokens)
        promised = sum(self._budget.whole(len(other.prompt), other.max_tokens) for other in active.values())
        shared = 0
        if self._prefixes and self._rest:
            donor, common = self._prefixes.donor(job, self._rest.limit(job))
            shared = min(common, donor.computed) if donor else 0
        tokens = len(job.context) - (shared if shared >= WORTH else 0)
        whole = self._budget.whole(len(job.context), answer)
        return self._budget.has_room(live_bytes, promised, len(active), tokens + _uncomputed(active), whole)

    def is_held(self, job: Request, active: Mapping[int, Request]) -> bool:
        """True while another job's prefill is about to compute a prefix that this one can then share."""
        if self._prefixes is None or self._rest is None:
            return False
        if job.held_by is None:
            donor, job.held_until = self._prefixes.donor(job, self._rest.limit(job))
            if donor is None or job.held_until < donor.computed + WORTH:
                return False
            job.held_by = donor
        if job.held_by.uid in active and job.held_by.computed < job.held_until:
            return True
        job.held_by = None
        return False
