"""``SlotPrefixCache``: n slots with a sequence each, and a host list of whole saved ones, as in llama.cpp's server."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.sequence_kv import SequenceKV, State, largest_window, state_of
from kvlab.caches.serialize import has_state
from kvlab.decoder.prefill.message_ends import TOKENS_BEFORE_END, cut_at_counts, slot_checkpoints
from kvlab.decoder.prefill.user_opening import user_opening
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.base import PrefixCache
from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.slot_plan import SlotPlan
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy, Slots, parse_bytes
from kvlab.store import Store
from kvlab.tiers import LIVE, RAM

CELLS_MULTIPLE = 256
"""The cells of a sliding-window layer of llama.cpp's server are a multiple of so many."""


@dataclass
class _Running:
    """A request in its slot, and its states so far by token count.

    ``checkpoints`` are those of them that stay; others only hold rows of a sliding window. Those in ``due`` come next.
    """

    request: Request
    slot: int
    states: dict[int, State] = field(default_factory=dict)
    checkpoints: set[int] = field(default_factory=set)
    due: frozenset[int] = frozenset()
    rows_due: frozenset[int] = frozenset()


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
            copy=self._copied,
        )
        self.places = policy.reuse.n
        caches = make_caches(loaded.model, policy)
        self.wants_checkpoints = has_state(caches)
        self._window = largest_window(caches)
        self._opening = user_opening(loaded) if self.wants_checkpoints else 0
        self._running: list[_Running] = []

    def limit(self, request: Request) -> int:
        """Return how many tokens of the request's context may be reused: all but the last, which gives the logits."""
        return max(0, len(request.context) - 1)

    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        started = time.perf_counter()
        self._free_dropped(request)
        start = self.plan.start(request.context, request.tenant)
        running = _Running(request, start.slot)
        self._running.append(running)
        request.cached, request.miss = start.tokens, start.miss
        looked_up = time.perf_counter()
        request.lookup_s = looked_up - started
        used = 0
        if start.source is not None:
            kv: SequenceKV = start.source.kv
            running.checkpoints = {at for at in start.source.checkpoints if at <= start.tokens}
            running.states = {at: state for at, state in kv.states.items() if at <= start.tokens}
            if self.wants_checkpoints:
                running.states[start.tokens] = kv.state_at(start.tokens)
                self._keep_start(running, kv, start.tokens)
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
        if not self.wants_checkpoints or running is None:
            return [context[request.cached :]]
        if self._settings.checkpoints:
            counts = slot_checkpoints(
                context,
                request.cached,
                self.loaded.eos,
                spacing=self._settings.spacing,
                ubatch=self._settings.ubatch,
                before=max(running.checkpoints, default=0),
                opening=self._opening,
            )
            running.due = frozenset(at - self._before for at in counts)
        if self._window:
            last = len(context) - TOKENS_BEFORE_END
            first = max(request.cached, len(context) - self._cells)
            running.rows_due = frozenset(range(last, first, -self._window))
        return cut_at_counts(context, request.cached, running.due | running.rows_due)

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        running, at = self._of(request), len(tokens)
        if running is None or at not in running.due | running.rows_due:
            return
        running.states[at] = state_of(caches)
        if at in running.due:
            running.checkpoints.add(at)
            running.checkpoints -= set(sorted(running.checkpoints)[: -self._settings.checkpoints])

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        running = self._of(request)
        if running is None:
            return
        self._running.remove(running)
        live_from = len(tokens) - self._cells if self._window else len(tokens)
        states = {at: state for at, state in running.states.items() if at in running.checkpoints or at > live_from}
        kv = SequenceKV.of(caches, len(tokens), states, copy=False)
        # The last sampled token is not kept, unless the state of recurrent layers holds it.
        most = min(len(tokens), len(request.prompt) + max(0, len(request.tokens) - 1))
        length = most if kv.cut_from <= most else len(tokens)
        kept = KeptSequence(
            np.array(tokens[:length], np.int32),
            request.tenant,
            kv.nbytes,
            cut_from=self._cut_from(kv, length),
            checkpoints=tuple(sorted(running.checkpoints)),
            kv=kv,
        )
        self.plan.end(running.slot, kept)
        self.nbytes = self.plan.nbytes

    def _keep_start(self, running: _Running, kv: SequenceKV, start: int) -> None:
        """Keep a checkpoint where a request starts, if that is near the end of its prompt."""
        near_end = len(running.request.context) - TOKENS_BEFORE_END - self._settings.ubatch
        at = start - self._before
        if self._settings.checkpoints and start >= near_end and (at in kv.states or kv.cut_from <= at):
            running.states[at] = kv.state_at(at)
            running.checkpoints.add(at)

    @property
    def _before(self) -> int:
        """Tokens between a checkpoint and where a request starts from it: one more of a window is computed again."""
        return 1 if self._window else 0

    def _cut_from(self, kv: SequenceKV, tokens: int) -> int:
        """Return the fewest tokens at which a sequence of ``tokens`` can be cut.

        No farther back than the cells of a sliding-window layer reach, though the rows may be here, in checkpoints; and
        behind the first window in any case, as llama.cpp's server asks for a row before it.
        """
        if not self._window:
            return kv.cut_from
        return max(kv.cut_from, max(0, tokens - self._cells) + self._window + 1)

    @property
    def _cells(self) -> int:
        """Tokens whose rows a sliding-window layer of llama.cpp's server holds.

        The windows of all slots that share its memory, and one physical batch.
        """
        used = self._window * (self._settings.n if self._settings.unified else 1) + self._settings.ubatch
        return math.ceil(used / CELLS_MULTIPLE) * CELLS_MULTIPLE

    def _copied(self, sequence: KeptSequence) -> KeptSequence:
        """Return a copy whose KV is memory of its own, for the host list.

        Of a sliding window, llama.cpp's server saves one window, which is too little to cut it anywhere.
        """
        kv: SequenceKV = sequence.kv.copied()
        return KeptSequence(
            sequence.tokens,
            sequence.tenant,
            kv.nbytes,
            cut_from=len(sequence) + 1 if self._window else sequence.cut_from,
            checkpoints=sequence.checkpoints,
            kv=kv,
        )

    def _free_dropped(self, starting: Request) -> None:
        """Empty the slots of requests that were dropped without their KV, as after an error of the model."""
        for running in [one for one in self._running if one.request is starting or not one.request.caches]:
            self._running.remove(running)
            self.plan.end(running.slot, None)

    def _of(self, request: Request) -> _Running | None:
        return next((running for running in self._running if running.request is request), None)
