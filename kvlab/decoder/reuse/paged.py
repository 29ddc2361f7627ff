"""``PagedPrefixCache``: restores hashed blocks from a store into live caches, and stores the KV of requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from kvlab.backends import current
from kvlab.caches import make_caches, serialize
from kvlab.caches.cache_loader import CacheLoader
from kvlab.caches.codecs import make_codec
from kvlab.caches.compressed_blocks import CompressedBlockLoader
from kvlab.caches.packed_blocks import PackedBlockLoader
from kvlab.decoder.prefill.message_ends import cut_at_counts
from kvlab.decoder.prefill.segments import checkpoint_segments
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.base import PrefixCache
from kvlab.decoder.reuse.deposits import Deposits
from kvlab.decoder.reuse.drive_timing import DriveTimer, time_prompts
from kvlab.decoder.reuse.hot_sequence import HotSequence
from kvlab.decoder.reuse.paged_rules import match_whole_pieces, opening_of_answers, tokens_to_store
from kvlab.decoder.reuse.read_patience import MIN_TOKENS_FOR_SPEED, ReadPatience
from kvlab.decoder.reuse.remote_meter import RemoteMeter
from kvlab.decoder.reuse.restore_meter import RestoreMeter
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel, code_fingerprint
from kvlab.policies import Module, Paged, Policy, Scorer
from kvlab.policies.slots import inner_fields
from kvlab.policies.tiers import ALWAYS, AUTO
from kvlab.store import Match, Namespace, Payload, Store
from kvlab.store import keys as k
from kvlab.tiers import REMOTE

MAX_BAD_CHECKPOINTS = 16
"""Bad checkpoints in a row after which a request is computed from its first token."""

PACKAGE_NAME = __name__.partition(".")[0]
BLOCK_ID_BYTES = 8
"""Of a block's key that events hold: it names the block, and says nothing of its tokens."""
CODE_DIGITS = 16
"""Digits of the digest of a module's code in a block key."""

Loader = CacheLoader | CompressedBlockLoader | PackedBlockLoader
BlockCutter = Callable[[int, int], list[Payload]]
"""Cuts rows of the tokens from one count to another into blocks."""

log = logging.getLogger("kvlab.decoder")


class PagedPrefixCache(PrefixCache):
    """Finds hashed blocks in a store, restores them into live caches and puts back what was computed."""

    module: ClassVar[type[Module]] = Paged

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        super().__init__(loaded, policy, store)
        if store is None or not isinstance(policy.reuse, Paged):
            raise PolicyError(
                f"'{policy}' has no store to find blocks in: give the decoder one, or tiers to the policy"
            )
        self._store = store
        self._deposits = Deposits(in_background=current().copies_in_background)
        self._fingerprint = loaded.fingerprint  # a model that is changed gets another prefix cache
        self._policy_key = policy_key(policy)
        self._block = policy.reuse.block
        self._every = policy.reuse.checkpoint
        self._reuse = policy.reuse
        self._opening = [] if policy.reuse.opening else opening_of_answers(loaded)
        self._hot = HotSequence() if policy.reuse.hot else None
        self.joins_running = policy.reuse.live
        self.wants_checkpoints = serialize.has_state(make_caches(loaded.model, policy))
        self.keeps_parts = policy.retention.is_lossless and not self.wants_checkpoints
        may_compute = getattr(policy.tiers, "restore", ALWAYS) == AUTO and not self.wants_checkpoints
        self._meter = RestoreMeter() if may_compute else None
        self._remote = RemoteMeter(self._meter) if self._meter is not None else None
        self._waits = REMOTE.name in store.tiers_bytes()
        self._speed = self._meter if self._meter is not None else RestoreMeter()
        self._timer = DriveTimer(self._meter, store, self.namespace()) if self._meter is not None else None
        if self._meter is not None and self._timer is not None and self._timer.run():
            time_prompts(loaded, lambda: make_caches(loaded.model, policy), self._meter)

    def namespace(self, tenant: str = "") -> Namespace:
        return Namespace(self._fingerprint, self._policy_key, self.loaded.dtype, self._block, tenant)

    def set_busy(self, is_busy: bool) -> None:
        self._store.set_background_priority(is_busy)

    def limit(self, request: Request) -> int:
        """Return how many tokens of the request's context may be reused.

        The last one is always computed, for its logits. A scorer chooses when it sees the last token that it may know
        of, so that is computed too; for one that reads the last queries, so are those tokens. One that adds up over all
        queries, or reads all of them, needs every token.
        """
        if isinstance(scorer := self.policy.retention, Scorer):
            needs_all = scorer.accumulates or scorer.reads_all_queries
            return 0 if needs_all else max(0, request.compress_after - max(1, scorer.window))
        return max(0, len(request.context) - 1)

    def stored(self, request: Request) -> int:
        return self._store.stored(self.namespace(request.tenant), request.context[: self.limit(request)])

    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        self._await_deposits()
        self._name_blocks(request, request.context, kept=False)
        started = time.perf_counter()
        limit = self.limit(request)
        found = self._match(request, limit)  # holds the pins of all its blocks
        match = found.shortened(self.agree(found.tokens))
        request.miss = match.miss
        if live:
            request.cached, request.by_tier = live, {"live": live}
        if self._hot is not None:
            hot, miss = self._hot.take(request, caches, limit, match.tokens)
            if hot:
                live = request.cached = request.stored = hot
                request.by_tier, request.miss = {"live": hot}, miss
        if live >= match.tokens:
            self._store.release(match)
            request.lookup_s = time.perf_counter() - started
            return 0
        looked_up = time.perf_counter()
        loader = self._loader(caches, limit)
        checkpoint, match = self._read(request, limit, match, loader)
        match = match.shortened(self.agree(match.tokens))
        request.miss = match.miss
        if match.tokens > live:  # of a match with bad blocks, less may be left than is live
            try:
                loader.finish(match.tokens, checkpoint)
            except serialize.PayloadError as error:
                log.warning("kvlab: stored KV is not used: %s", error)
                match, request.miss = nothing_of(match, "corrupt"), "corrupt"
            else:
                mx.eval([cache.state for cache in caches])
                request.cached = request.stored = match.tokens
                request.by_tier = beyond(match.by_tier, live)
        request.lookup_s = looked_up - started
        request.restore_s = time.perf_counter() - looked_up
        state = sum(array.nbytes for array in (checkpoint or {}).values())
        return loader.nbytes(match.tokens) + state if match.tokens > live else 0

    def _await_deposits(self) -> None:
        """Wait for KV of requests that have just ended, so that it is found."""
        self._deposits.settle()

    def _loader(self, caches: Sequence[Any], tokens: int) -> Loader:
        """Return what loads at most ``tokens`` stored tokens into caches."""
        return CacheLoader(caches, tokens)

    def _match(self, request: Request, limit: int) -> Match:
        if self._reuse.match != "token":
            space, context = self.namespace(request.tenant), request.context
            return match_whole_pieces(
                self._store, space, context, limit, self._reuse, checkpoint=self.wants_checkpoints
            )
        return self._store.match(
            self.namespace(request.tenant), request.context[:limit], checkpoint=self.wants_checkpoints
        )

    def _read(
        self, request: Request, limit: int, match: Match, loader: Loader
    ) -> tuple[serialize.Payload | None, Match]:
        """Load a match, or the best one that is left without bad blocks; return its checkpoint and the match."""
        corrupt = ""
        if self._meter is not None and self._remote is not None:
            whole, match = match, self._remote.shortened(match)  # `whole` holds the pins of all its blocks
            timed = self._remote.timed(match, loader)
            if match is not whole:
                self._store.missed(match.miss)
            patience = ReadPatience(self._speed, match)
            match = self._store.read_into(match, timed, self._meter.watch(len(request.context)), patience)
            timed.finish()
            del whole
            return None, match
        for _ in range(MAX_BAD_CHECKPOINTS):
            match = self._store.read_into(match, loader, patience=ReadPatience(self._speed, match))
            if not self.wants_checkpoints:
                return None, match
            checkpoint = self._store.read_checkpoint(match)
            if checkpoint is not None or match.checkpoint is None:
                miss = corrupt or match.miss
                return checkpoint, replace(match, miss=miss) if checkpoint is not None else nothing_of(match, miss)
            corrupt = "corrupt"
            match = self._match(request, limit)
        self._store.release(match)
        return None, nothing_of(match, corrupt)

    def segments(self, request: Request) -> list[list[int]]:
        context = request.context
        if not self.wants_checkpoints:
            return [context[request.cached :]]
        if self._reuse.match == "block":
            return cut_at_counts(context, request.cached, range(0, len(context), self._every))
        return checkpoint_segments(context, request.cached, self.loaded.eos, self._every)

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        self._deposit(request, caches, tokens, serialize.token_rows(caches), checkpoint=True)

    def keep_prompt(self, request: Request, caches: Sequence[Any]) -> None:
        rows = serialize.token_rows(caches, prompt=True)
        for layer in serialize.own_layers(caches):
            layer.retention.prompt_rows = None
        self._deposit(request, caches, request.prompt[: request.compress_after], rows)

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        computed = len(request.prompt) - request.cached
        if request.times and (self._meter is not None or (self._waits and computed >= MIN_TOKENS_FOR_SPEED)):
            spent = request.times[0] - request.admitted - request.lookup_s - request.restore_s
            self._speed.computed(request.cached, computed, spent)
            if self._meter is not None and self._timer is not None and self._meter.is_due:
                self._timer.start()
        own = serialize.own_layers(caches)
        if any(layer.retention.prompt_rows is not None for layer in own):
            self.keep_prompt(request, caches)
        elif not any(layer.retention.is_compressed for layer in own):
            # Rows that were computed after an eviction differ from those of another request.
            checkpoint = self.wants_checkpoints and len(tokens) > request.cached
            self._deposit(request, caches, tokens, serialize.token_rows(caches), checkpoint=checkpoint)
        if self._hot is not None and not self.wants_checkpoints:
            self._hot.keep(request, caches, tokens)

    def after_kept(self, callback: Callable[[], None]) -> None:
        self._deposits.call_after(callback)

    def step(self) -> None:
        self._deposits.step()

    def settle(self) -> None:
        self._deposits.settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.close()
        self._deposits.close()

    def _deposit(
        self,
        request: Request,
        caches: Sequence[Any],
        tokens: Sequence[int],
        rows: Mapping[str, mx.array],
        *,
        checkpoint: bool = False,
    ) -> None:
        """Put ``rows`` of ``tokens`` into the store, and the state of all other layers at exactly ``tokens``."""
        most = tokens_to_store(self._reuse, len(tokens), request.prompt, self._opening)
        space, context = self.namespace(request.tenant), list(tokens[:most])
        checkpoint = checkpoint and most == len(tokens)
        self._name_blocks(request, context, kept=True)
        kept = self._captured(rows) if len(context) > request.stored else None
        request.stored = max(request.stored, len(context))
        arrays, others = serialize.checkpoint_state(caches) if checkpoint else ({}, {})
        state = serialize.as_bits(arrays)
        if kept is None and not checkpoint:
            return

        def prepare() -> Callable[[], None]:
            cut = None if kept is None else self._cutter(kept, space, context)
            states = {name: np.asarray(array) for name, array in state.items()}
            return lambda: self._put(request, space, context, cut, others | states if checkpoint else None)

        self._deposits.add([*(kept or {}).values(), *state.values()], prepare)

    def _captured(self, rows: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return arrays to compute, which do not change when the caches of ``rows`` go on."""
        return serialize.as_bits(rows)

    def _cutter(self, rows: Mapping[str, mx.array], space: Namespace, tokens: Sequence[int]) -> BlockCutter:
        """Return what cuts computed rows of ``tokens`` into blocks. Decoder thread; any thread may call the result."""
        memory = {name: np.asarray(array) for name, array in rows.items()}
        return lambda start, end: self._cut(memory, start, end)

    def _name_blocks(self, request: Request, tokens: Sequence[int], *, kept: bool) -> None:
        if self.on_chain is not None:
            keys = k.chain_all(self.namespace(request.tenant).root(), k.as_tokens(tokens), self._block)
            ids = np.frombuffer(b"".join(key[:BLOCK_ID_BYTES] for key in keys), "<i8")
            self.on_chain(request, self._block, kept, ids)

    def _put(
        self,
        request: Request,
        space: Namespace,
        tokens: Sequence[int],
        cut: BlockCutter | None,
        state: Mapping[str, np.ndarray] | None,
    ) -> None:
        """Copy rows and state into the store. Any thread may: it only reads memory of computed arrays."""
        started, blocks, size = time.perf_counter(), 0, 0
        if cut is not None:
            # Looked up each time: since the match, blocks may have been evicted, or stored by other requests.
            start = self._store.stored(space, tokens)
            put = self._store.put(space, tokens, start, cut(start, len(tokens)))
            blocks, size = put.blocks, put.bytes
        if state is not None:
            copies = {name: serialize.copied(array) for name, array in state.items()}
            put = self._store.put_checkpoint(space, tokens, copies)
            blocks, size = blocks + put.blocks, size + put.bytes
        if blocks:
            self.on_stored(request, blocks, size, time.perf_counter() - started)

    def _cut(self, rows: Mapping[str, np.ndarray], start: int, end: int) -> list[Payload]:
        """Cut rows of the tokens ``start`` to ``end`` into blocks; the arrays are copies of their own."""
        return serialize.to_blocks(rows, start, end, self._block)


def policy_key(policy: Policy) -> str:
    """Return the policy's part of the block key: its storage key, and the code of modules that are not kvlab's own.

    A codec that is defined anew under its name, as in a notebook, may write other rows.
    """
    kinds = [kind for module in (policy.retention, policy.codec) if module.storage_key for kind in _kinds(module)]
    if policy.codec.storage_key:
        kinds.append(type(make_codec(policy.codec)))
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] != PACKAGE_NAME]
    return f"{policy.storage_key}#{code_fingerprint(*own)[:CODE_DIGITS]}" if own else policy.storage_key


def _kinds(module: Module) -> Iterator[type]:
    """Yield the class of a module, and those of the modules in its parentheses."""
    yield type(module)
    for name in inner_fields(type(module)):
        if (inner := getattr(module, name)) is not None:
            yield from _kinds(inner)


def nothing_of(match: Match, miss: str) -> Match:
    """Return the match without its tokens."""
    return replace(match, tokens=0, pieces=(), by_tier={}, checkpoint=None, miss=miss)


def beyond(by_tier: Mapping[str, int], live: int) -> dict[str, int]:
    """Return the tokens by tier, where the first ``live`` of them came from another live sequence."""
    out = {"live": live} if live else {}
    for tier, tokens in by_tier.items():
        taken = min(tokens, live)
        live -= taken
        if tokens > taken:
            out[tier] = tokens - taken
    return out
