"""``SlotPrefixCache``: n slots with a sequence each, and a host list of whole saved ones, as in llama.cpp's server."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.sequence_kv import SequenceKV, State, state_of
from kvlab.caches.serialize import has_state
from kvlab.decoder.prefill.message_ends import cut_at_counts, slot_checkpoints
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.base import PrefixCache
from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.slot_plan import SlotPlan, SlotStart
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy, Slots, parse_bytes
from kvlab.store import Store
from kvlab.tiers import LIVE, RAM

CELLS_MULTIPLE = 256
"""The cells of a sliding-window layer of llama.cpp's server are a multiple of so many."""


@dataclass
class _Running:
    """A request in its slot, and the states at its checkpoints so far."""

    request: Request
    slot: int
    states: dict[int, State]
    due: frozenset[int] = field(default_factory=frozenset)


class SlotPrefixCache(PrefixCache):
    """Keeps whole sequences in slots and in the host list; :class:`SlotPlan` decides, this moves the arrays."""

    module: ClassVar[type[Module]] = Slots
    joins_running = False

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        super().__init__(loaded, policy, store)
        if not isinstance(policy.reuse, Slots):
            raise PolicyError(f"'{policy}' has no slots")
        self._settings = policy.reuse
        self.plan = SlotPlan(
            policy.reuse.n,
            share=policy.reuse.share,
            unified=policy.reuse.unified,
            host=parse_bytes(policy.reuse.host),
            keep=policy.reuse.keep,
            copy=_copied,
        )
        self.places = policy.reuse.n
        self.wants_checkpoints = has_state(make_caches(loaded.model, policy))
        self._running: list[_Running] = []

    def limit(self, request: Request) -> int:
        """Return how many tokens of the request's context may be reused: all but the last, which gives the logits."""
        return max(0, len(request.context) - 1)

    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        started = time.perf_counter()
        self._free_dropped(request)
        start = self.plan.start(request.context, request.tenant)
        running = _Running(request, start.slot, {})
        self._running.append(running)
        request.cached, request.miss = start.tokens, start.miss
        looked_up = time.perf_counter()
        request.lookup_s = looked_up - started
        used = 0
        if start.source is not None:
            kv: SequenceKV = start.source.kv
            running.states = {at: state for at, state in kv.states.items() if at in _checkpoints_until(start)}
            request.by_tier = {LIVE.name if start.origin == "slot" else RAM.name: start.tokens}
            used = kv.give(caches, start.tokens, move=True)
            request.restore_s = time.perf_counter() - looked_up
        if start.saved:
            size = sum(entry.nbytes for entry in start.saved)
            self.on_stored(request, len(start.saved), size, request.lookup_s)
        if start.dropped:
            self.on_dropped(len(start.dropped), sum(entry.nbytes for entry in start.dropped))
        self.nbytes = self.plan.nbytes
        return used

    def segments(self, request: Request) -> list[list[int]]:
        context, running = request.context, self._of(request)
        if not self.wants_checkpoints or running is None or not self._settings.checkpoints:
            return [context[request.cached :]]
        counts = slot_checkpoints(
            context,
            request.cached,
            self.loaded.eos,
            spacing=self._settings.spacing,
            ubatch=self._settings.ubatch,
            before=max(running.states, default=0),
        )
        running.due = frozenset(counts)
        return cut_at_counts(context, request.cached, counts)

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        running = self._of(request)
        if running is None or len(tokens) not in running.due:
            return
        running.states[len(tokens)] = state_of(caches)
        for at in sorted(running.states)[: -self._settings.checkpoints]:
            del running.states[at]

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        running = self._of(request)
        if running is None:
            return
        self._running.remove(running)
        kv = SequenceKV.of(caches, len(tokens), running.states, copy=False)
        kept = KeptSequence(
            np.array(tokens, np.int32),
            request.tenant,
            kv.nbytes,
            cut_from=self._cut_from(kv),
            checkpoints=tuple(sorted(running.states)),
            kv=kv,
        )
        self.plan.end(running.slot, kept)
        self.nbytes = self.plan.nbytes

    def _cut_from(self, kv: SequenceKV) -> int:
        """Return the fewest tokens at which the sequence can be cut.

        A sliding-window layer of llama.cpp's server has cells for the windows of all slots that share its memory and
        for one physical batch: no farther back can it be cut, though the rows may be here, in checkpoints.
        """
        if not kv.windows:
            return kv.cut_from
        window = max(kv.windows.values())
        used = window * (self._settings.n if self._settings.unified else 1) + self._settings.ubatch
        cells = math.ceil(used / CELLS_MULTIPLE) * CELLS_MULTIPLE
        return max(kv.cut_from, kv.tokens - cells + window if kv.tokens > cells else 0)

    def _free_dropped(self, starting: Request) -> None:
        """Empty the slots of requests that were dropped without their KV, as after an error of the model."""
        for running in [one for one in self._running if one.request is starting or not one.request.caches]:
            self._running.remove(running)
            self.plan.end(running.slot, None)

    def _of(self, request: Request) -> _Running | None:
        return next((running for running in self._running if running.request is request), None)


def _copied(sequence: KeptSequence) -> KeptSequence:
    """Return a copy whose KV is memory of its own, for the host list."""
    kv: SequenceKV = sequence.kv.copied()
    return KeptSequence(
        sequence.tokens,
        sequence.tenant,
        kv.nbytes,
        cut_from=sequence.cut_from,
        checkpoints=sequence.checkpoints,
        kv=kv,
    )


def _checkpoints_until(start: SlotStart) -> tuple[int, ...]:
    """Return the checkpoints that stay: those behind the common part are of other tokens."""
    return tuple(at for at in start.source.checkpoints if at <= start.tokens) if start.source is not None else ()
