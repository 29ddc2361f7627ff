"""``CacheMaker``: how the live KV of a model is held under a policy, and the caches of each sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvlab.backends import Backend
from kvlab.caches import batching, can_share, make_caches, own_caches
from kvlab.caches.context_shift import ContextShift, check_layers
from kvlab.caches.factory import layerwise_model
from kvlab.caches.serialize import has_state
from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.context_limit import ContextLimit
from kvlab.decoder.memory_budget import LiveMemoryBudget, measure
from kvlab.decoder.request import Request
from kvlab.models import LoadedModel
from kvlab.policies import Policy


class CacheMaker:
    """Decides once how live KV is held, and makes the caches of each sequence.

    Args:
        keeps_kv: the policy keeps KV at rest.
        shifts: rows of a sequence may be moved at the context limit.
        record: evictions are recorded.

    Attributes:
        owns: caches are those whose rows sequences may share; else each sequence has its own.
        batching: whether sequences are computed side by side or one by one, and why.
        layerwise: the model, computed layer by layer; None where it is computed as a whole.
        needs_segments: chunks must begin where checkpoints would be, or answers differ with a store.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy,
        config: DecoderConfig,
        backend: Backend,
        *,
        keeps_kv: bool,
        shifts: bool,
        record: bool,
    ) -> None:
        self._loaded, self._policy, self._config = loaded, policy, config
        self._backend, self._record = backend, record
        # Sharing needs rows that stay as they are, and a hook in every layer.
        keeps_all = policy.retention.is_lossless and (keeps_kv or policy.lossless)
        self.owns = keeps_all and (keeps_kv or backend.owns_attention or shifts) and can_share(loaded.model)
        self.batching = batching(loaded.model, own=self.owns or not policy.lossless)
        # Chunks begin at segment ends. Prompts are cut in the same places without a store, or answers would differ.
        self.needs_segments = not keeps_kv and has_state(make_caches(loaded.model, policy))
        self.layerwise = layerwise_model(loaded.model) if self.owns else None

    def make(self, prompt_tokens: int) -> list[Any]:
        """Make empty caches for one sequence whose prompt has so many tokens."""
        return self._make(prompt_tokens, None)

    def make_for(self, request: Request) -> list[Any]:
        """Make empty caches for a request, whose tokens scorers may read."""
        return self._make(len(request.prompt) if self.owns else request.compress_after, request)

    def context_shift(self, limit: ContextLimit) -> ContextShift | None:
        """Return what moves rows at the context limit; None where answers end there. Raises ModelError."""
        if limit.context is None or not limit.shifts:
            return None
        check_layers(self.make(1), self._policy)
        return ContextShift(self._loaded.model, limit.context)

    def budget(self, *, preempts: bool) -> LiveMemoryBudget | None:
        """Return the budget of live memory; None where it has no limit."""
        if self._config.live_bytes is None:
            return None
        cost = measure(self._loaded, self.make(2))
        return LiveMemoryBudget(self._config.live_bytes, cost, self._policy.retention, preempts=preempts)

    def _make(self, prompt_tokens: int, request: Request | None) -> list[Any]:
        model, record = self._loaded.model, self._record
        token_ids = None if request is None else lambda: request.context
        if not self.owns:
            return make_caches(model, self._policy, prompt_tokens=prompt_tokens, record=record, token_ids=token_ids)
        rule = self._backend.buckets
        if self._config.live_bytes is not None:  # padding is memory that no request asked for
            rule = replace(rule, buckets=None)
        return own_caches(
            model, self._policy, prompt_tokens=prompt_tokens, record=record, backend=self._backend, buckets=rule
        )
