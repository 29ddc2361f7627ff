"""``Admission``: the queue of requests, and when each may start: memory, and prefixes that are being computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np

from kvlab.decoder.fair_share import Shares
from kvlab.decoder.memory_budget import LiveMemoryBudget
from kvlab.decoder.prefill.segments import MIN_TOKENS_AFTER_CHECKPOINT
from kvlab.decoder.prefix_tree import MIN_SHARED_TOKENS, PrefixTree, common_prefix
from kvlab.decoder.request import Request
from kvlab.decoder.reuse import PrefixCache


def _uncomputed(active: Mapping[int, Request]) -> int:
    """Count tokens of admitted requests that have no storage yet."""
    missing = (
        request.computed + request.to_compute - request.layers[0].room for request in active.values() if request.layers
    )
    return sum(max(0, tokens) for tokens in missing)


class Admission:
    """Queues requests by priority and then by age, and decides when each may start. Decoder thread only.

    Attributes:
        is_fair: clients share the places evenly; else they go by priority and age.

    Args:
        prefixes: those that live requests share; None: those of ``reuse``, if any.
    """

    def __init__(
        self,
        budget: LiveMemoryBudget | None,
        prefixes: PrefixTree | None,
        reuse: PrefixCache | None,
        *,
        is_fair: bool = True,
    ) -> None:
        self.is_fair = is_fair
        self._budget, self._reuse = budget, reuse
        self._prefixes = reuse.prefixes if prefixes is None and reuse is not None else prefixes
        self._waiting: deque[Request] = deque()

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._waiting))

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Request) -> None:
        """Queue a request behind all of a higher priority, and behind those of its own that were submitted earlier."""
        behind = (i for i, other in enumerate(self._waiting) if other.rank > request.rank)
        self._waiting.insert(next(behind, len(self._waiting)), request)

    def in_turn(self, active: Mapping[int, Request]) -> list[Request]:
        """Return the waiting requests in the order of service beside the ``active`` ones."""
        return Shares(active.values()).in_turn(self._waiting) if self.is_fair else list(self._waiting)

    def remove(self, request: Request) -> None:
        """Take a request out of the queue. Raises ValueError where it is not in it."""
        self._waiting.remove(request)

    def has_room(self, request: Request, active: Mapping[int, Request], live_bytes: int) -> bool:
        """Return whether live memory has room for the request beside the ``active`` ones.

        Args:
            live_bytes: bytes of all live KV now.
        """
        if self._budget is None:
            return True
        answer = request.max_tokens - len(request.tokens)
        reserved = sum(self._budget.whole(len(other.prompt), other.max_tokens) for other in active.values())
        shared = 0
        if self._prefixes and self._reuse:
            source, common = self._prefixes.source(request, self._reuse.limit(request))
            shared = min(common, source.computed) if source else 0
        tokens = len(request.context) - (shared if shared >= MIN_SHARED_TOKENS else 0)
        whole = self._budget.whole(len(request.context), answer)
        return self._budget.has_room(live_bytes, reserved, len(active), tokens + _uncomputed(active), whole)

    def waits_for_prefix(self, request: Request, active: Mapping[int, Request]) -> bool:
        """Return whether another request's prefill will compute a prefix that this request can then start from.

        A request whose source has ended, has failed or was cancelled looks for another one.
        """
        while True:
            source = request.waits_for_prefix_of
            is_there = source is not None and source.uid in active and not source.discarded
            if source is not None and is_there and self._shared(source) < request.waits_for_tokens:
                return True
            source, request.waits_for_tokens = self._next_source(request, active)
            request.waits_for_prefix_of = source
            if source is None:
                return False

    def _shared(self, source: Request) -> int:
        """Return how many leading tokens of a request that is computed now others can start from."""
        return source.computed if self._prefixes is not None else source.checkpointed

    def _next_source(self, request: Request, active: Mapping[int, Request]) -> tuple[Request | None, int]:
        """Return the active request that will compute the longest useful prefix of this one, and its tokens."""
        source, tokens = None, 0
        if self._reuse is not None and self._prefixes is not None:
            source, tokens = self._prefixes.source(request, self._reuse.limit(request))
            if source is None or tokens < source.computed + MIN_SHARED_TOKENS:
                source = None
        elif (
            self._reuse is not None
            and self._reuse.joins_running
            and (self._reuse.wants_checkpoints or self._reuse.keeps_parts)
        ):
            source, tokens = self._source_at_rest(request, active, self._reuse)
        is_computed = source is not None and source.uid in active and self._shared(source) < tokens
        return (source, tokens) if is_computed else (None, 0)

    def most_awaited(self, source: Request) -> int:
        """Return the largest number of tokens of ``source`` that a request waits for; 0 where none does."""
        return max((one.waits_for_tokens for one in self._waiting if one.waits_for_prefix_of is source), default=0)

    @staticmethod
    def _source_at_rest(
        request: Request, active: Mapping[int, Request], reuse: PrefixCache
    ) -> tuple[Request | None, int]:
        """Return the active request whose prefill will keep the longest part of a common prefix, and its tokens.

        That part ends at a checkpoint where the model needs one, and at any token before the last one elsewhere.
        """
        best, longest, shared = None, 0, 0
        context = np.array(request.context[: reuse.limit(request)], np.int32)
        for other in active.values():
            if other.tenant != request.tenant or other.discarded:
                continue
            common = common_prefix(context, other.context_array)
            ahead = min(common, len(other.context_array) - 1)
            if reuse.wants_checkpoints:
                ahead = max((at for at in other.checkpoints if at <= common), default=0)
            known = max(other.cached, other.checkpointed)
            if ahead > longest and ahead >= known + MIN_TOKENS_AFTER_CHECKPOINT:
                best, longest, shared = other, ahead, common
        if best is not None and reuse.stored(request) > shared:
            return None, 0  # earlier KV goes on as this request does, behind what the two share
        return best, longest
