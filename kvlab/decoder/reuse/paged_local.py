"""``LocalPagedPrefixCache``: blocks that are compressed each by itself, stored and restored like any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from kvlab.caches.compressed_blocks import CompressedBlockLoader, compressed_rows, to_compressed_blocks
from kvlab.decoder.prefill.message_ends import cut_at_counts
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
        self.keeps_parts = not self.wants_checkpoints
        self._meter = None

    def limit(self, request: Request) -> int:
        return (len(request.context) - 1) // self._block * self._block

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
        return CompressedBlockLoader(caches, tokens, self._block, self._block_rows)

    def _cut(self, rows: Mapping[str, np.ndarray], start: int, end: int) -> list[Payload]:
        return to_compressed_blocks(rows, start, end, self._block, self._block_rows)
