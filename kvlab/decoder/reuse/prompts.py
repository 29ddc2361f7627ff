"""``PromptPrefixCache``: the last whole sequences in a trie, of which requests start from copies, as in mlx-lm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from kvlab.caches.sequence_kv import SequenceKV
from kvlab.decoder.prefill.message_ends import cut_at_counts, message_ends
from kvlab.decoder.prefill.user_opening import user_opening
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.base import PrefixCache
from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.prompt_plan import PromptPlan
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy, WholePrompts, parse_bytes
from kvlab.store import Store
from kvlab.tiers import RAM

LAST_ROLE_TAG = "last_role"
"""Label of a request that says whose its last message is; a request without it counts as the user's."""
MAX_THINKING_TAIL_TOKENS = 11
"""Most tokens of a prompt's end that open the thinking part of an answer."""


class PromptPrefixCache(PrefixCache):
    """Keeps whole sequences; :class:`PromptPlan` decides, this copies the arrays.

    Sequences are also kept behind the system prompt, before the user's words, and behind the user's message, before the
    last token or the opening of a thinking part. Where all layers can be cut, the whole sequence replaces these when it
    ends. Deviation: a system prompt is what the first message is, and messages are told apart by the tokens that end
    them; mlx-lm's server has the messages.
    """

    module: ClassVar[type[Module]] = WholePrompts
    joins_running = False
    wants_checkpoints = True

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        super().__init__(loaded, policy, store)
        if not isinstance(policy.reuse, WholePrompts):
            raise PolicyError(f"'{policy}' keeps no prompts")
        limit = None if policy.reuse.bytes is None else parse_bytes(policy.reuse.bytes)
        self.plan = PromptPlan(policy.reuse.count, limit, refresh=policy.reuse.order == "lru")
        self._kinds: dict[Request, dict[int, str]] = {}
        self._opening = user_opening(loaded)

    def limit(self, request: Request) -> int:
        """Return how many tokens of the request's context may be reused: all but the last, which gives the logits."""
        return max(0, len(request.context) - 1)

    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        started = time.perf_counter()
        start = self.plan.look_up(request.context, request.tenant)
        request.cached, request.miss = start.tokens, start.miss
        looked_up = time.perf_counter()
        request.lookup_s = looked_up - started
        if start.source is None:
            return 0
        kv: SequenceKV = start.source.kv
        request.by_tier = {RAM.name: start.tokens}
        used = kv.give(caches, start.tokens, move=False)
        request.restore_s = time.perf_counter() - looked_up
        return used

    def segments(self, request: Request) -> list[list[int]]:
        context = request.context
        kinds = self._cuts(request, context)
        self._kinds = {other: held for other, held in self._kinds.items() if other.caches} | {request: kinds}
        return cut_at_counts(context, request.cached, kinds)

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        kind = self._kinds.get(request, {}).get(len(tokens), "assistant")
        self._insert(request, caches, tokens, kind)

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        self._kinds.pop(request, None)
        self._insert(request, caches, tokens, "assistant")

    def keep_cancelled(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        """Keep nothing more: what was kept within the prompt stays."""
        self._kinds.pop(request, None)

    def _insert(self, request: Request, caches: Sequence[Any], tokens: Sequence[int], kind: str) -> None:
        started = time.perf_counter()
        kv = SequenceKV.of(caches, len(tokens), {}, copy=True)
        kept = KeptSequence(
            np.array(tokens, np.int32), request.tenant, kv.nbytes, cut_from=kv.cut_from, kind=kind, kv=kv
        )
        victims = self.plan.insert(kept)
        self.nbytes = self.plan.nbytes
        if kept not in victims:
            self.on_stored(request, 1, kv.nbytes, time.perf_counter() - started)
        if left := [one for one in victims if one is not kept]:
            self.on_dropped(len(left), sum(one.nbytes for one in left))

    def _cuts(self, request: Request, context: Sequence[int]) -> dict[int, str]:
        """Return the token counts at which a sequence is kept, with its kind."""
        ends = message_ends(context, self.loaded.eos)
        if not ends or request.tags.get(LAST_ROLE_TAG, "user") != "user":
            return {}
        cuts = {ends[0] + self._opening: "system"} if len(ends) > 1 else {}
        return cuts | {self._tail_start(context): "user"}

    def _tail_start(self, context: Sequence[int]) -> int:
        """Return the tokens before the opening of a thinking part; where there is none, all but the last."""
        tokenizer = self.loaded.tokenizer
        if getattr(tokenizer, "has_thinking", False):
            at = tokenizer.rfind_think_start(context, start=len(context) - MAX_THINKING_TAIL_TOKENS)
            if at >= 0:
                return int(at)
        return len(context) - 1
