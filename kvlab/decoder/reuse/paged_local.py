"""``LocalPagedPrefixCache``: blocks that are compressed each by itself, stored and restored like any others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.compressed_blocks import CompressedBlockLoader, compressed_rows, to_compressed_blocks
from kvlab.caches.serialize import own_layers
from kvlab.decoder.prefill.message_ends import cut_at_counts
from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.paged import PagedPrefixCache
from kvlab.decoder.reuse.paged_rules import match_whole_blocks
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy
from kvlab.policies.scorers.local import Local
from kvlab.store import Match, Payload, Store


class LocalPagedPrefixCache(PagedPrefixCache):
    """Stores the rows that stayed of each complete block of a prompt, and starts other prompts from them.

    Prompts are computed block by block, so that a block is computed by the same operations on the same shapes whatever
    was restored before it: alone, what is restored equals what would be computed, bit for bit.

    Live sequences whose prompts begin with the same blocks read them from one place. Where other layers need a
    checkpoint, a request is restored from rest, and then drops the rows that another one holds.
    """

    retention: ClassVar[type[Module]] = Local

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        super().__init__(loaded, policy, store)
        if not isinstance(policy.retention, Local):
            raise PolicyError(f"'{policy.retention}' compresses no blocks: use it with paged as it is")
        self._block_rows = policy.retention.block_rows
        # Blocks of an answer were computed token by token, which rounds otherwise.
        self._reuse = replace(self._reuse, match="block", reply=False, checkpoint=self._block)
        self.piece_tokens = self._block
        self._meter = None
        shares = self.joins_running and _uses_all_layers(loaded, policy)
        self._live = PrefixTree(self._block) if shares else None
        self.prefixes = None if self.wants_checkpoints else self._live
        self.keeps_parts = not self.wants_checkpoints and self._live is None

    def limit(self, request: Request) -> int:
        return (len(request.context) - 1) // self._block * self._block

    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        if self._live is None:
            return super().restore(request, caches, live)
        self._live.remove_ended()
        self._live.remove(request)
        if self.wants_checkpoints:
            restored = super().restore(request, caches)
            self._live.join(request, request.cached)
        else:
            live = self._live.join(request, self.limit(request))
            restored = super().restore(request, caches, live)
        _compute_by_layer([one for node in request.path[:1] for one in node.requests])
        return restored

    def after_kept(self, callback: Callable[[], None]) -> None:
        self._remove_ended()  # called once an ended request has no layers any more
        super().after_kept(callback)

    def step(self) -> None:
        self._remove_ended()
        super().step()

    def settle(self) -> None:
        self._remove_ended()
        super().settle()

    def close(self) -> None:
        self._remove_ended()
        super().close()

    def _remove_ended(self) -> None:
        if self._live is not None:
            self._live.remove_ended()

    def _match(self, request: Request, limit: int) -> Match:
        space = self.namespace(request.tenant)
        return match_whole_blocks(self._store, space, request.context, limit, checkpoint=self.wants_checkpoints)

    def segments(self, request: Request) -> list[list[int]]:
        context = request.context
        return cut_at_counts(context, request.cached, range(0, len(context), self._block))

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        is_last = len(tokens) == self.limit(request)
        if len(tokens) % self._block == 0 and (is_last or len(tokens) % self._every == 0):
            self._deposit(request, caches, tokens, compressed_rows(caches), checkpoint=True)

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        if rows := compressed_rows(caches):
            self._deposit(request, caches, tokens, rows)

    def _loader(self, caches: Sequence[Any], tokens: int) -> CompressedBlockLoader:
        held = own_layers(caches)[0].offset
        return CompressedBlockLoader(caches, tokens, self._block, self._block_rows, held)

    def _cut(self, rows: Mapping[str, np.ndarray], start: int, end: int) -> list[Payload]:
        return to_compressed_blocks(rows, start, end, self._block, self._block_rows)


def _uses_all_layers(loaded: LoadedModel, policy: Policy) -> bool:
    """Return whether the model writes keys and values of a token into all layers that would share them."""
    caches = make_caches(loaded.model, policy)
    loaded.model(mx.array([[0]]), cache=caches)
    return all(layer.offset for layer in own_layers(caches))


def _compute_by_layer(requests: Sequence[Request]) -> None:
    """Compute rows that have moved, layer by layer, so that old rows are held beside new ones of one layer only."""
    for layers in zip(*(request.layers for request in requests), strict=True):
        mx.eval([layer.state for layer in layers])
