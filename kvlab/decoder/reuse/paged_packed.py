"""``PackedPagedPrefixCache``: blocks that are encoded at rest, and decoded when they are restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from kvlab.caches import make_caches, serialize
from kvlab.caches.packed_blocks import PackedBlockLoader, PackedBlocks
from kvlab.caches.storage_codec import KVTransform, StorageCodec
from kvlab.decoder.prefill.message_ends import cut_at_counts
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.paged import BlockCutter, PagedPrefixCache, policy_key
from kvlab.decoder.reuse.paged_rules import match_whole_blocks
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Kvtc, Module, Policy
from kvlab.store import Match, Namespace, Payload, Store

TRIAL_TOKENS = (0, 1, 2, 3, 4, 5)
"""Tokens whose rows show whether the transform is that of the model; the first four stay as they are."""


class PackedPagedPrefixCache(PagedPrefixCache):
    """Encodes rows of prompts and answers on the thread that stores them; a block is used whole or not at all."""

    codec: ClassVar[type[Module]] = Kvtc

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        super().__init__(loaded, policy, store)
        if not isinstance(policy.codec, Kvtc):
            raise PolicyError(f"'{policy.codec}' packs no blocks: use it with paged as it is")
        policy.codec.digest()  # says what to write where there is no file
        transform = KVTransform.load(Path(policy.codec.transform or "").expanduser())
        if policy_key(policy) != self._policy_key:
            raise PolicyError(f"{policy.codec.transform} was written while it was read: start again")
        self._blocks = PackedBlocks(StorageCodec.of(loaded.model, transform))
        caches = make_caches(loaded.model, policy)
        loaded.model(mx.array([TRIAL_TOKENS]), cache=caches)
        self._blocks.check(caches, serialize.token_rows(caches))
        # Of a code, no part can be read; state of other layers must lie at the end of one.
        self._every = max(1, self._every // self._block) * self._block
        if self.wants_checkpoints:
            self._reuse = replace(self._reuse, match="block", checkpoint=self._every)
        elif self._reuse.match == "token":
            self._reuse = replace(self._reuse, match="tail")

    def _match(self, request: Request, limit: int) -> Match:
        if not self.wants_checkpoints:
            return super()._match(request, limit)
        return match_whole_blocks(self._store, self.namespace(request.tenant), request.context, limit, checkpoint=True)

    def segments(self, request: Request) -> list[list[int]]:
        if not self.wants_checkpoints:
            return super().segments(request)
        context = request.context
        last = (len(context) - 1) // self._block * self._block
        return cut_at_counts(context, request.cached, [*range(0, last, self._every), last])

    def _await_deposits(self) -> None:
        """Wait for nothing: encoding takes so long that running sequences would notice.

        A request has ended once its own blocks are stored, so that the next turn of a conversation finds them.
        """

    def _loader(self, caches: Sequence[Any], tokens: int) -> PackedBlockLoader:
        return PackedBlockLoader(caches, tokens, self._blocks)

    def _captured(self, rows: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return {name: array[...] for name, array in rows.items()}

    def _cutter(self, rows: Mapping[str, mx.array], space: Namespace, tokens: Sequence[int]) -> BlockCutter:
        known = self._store.stored(space, tokens)
        waiting = self._blocks.plain(rows, known, len(tokens), self._block)

        def cut(start: int, end: int) -> list[Payload]:
            # Blocks that have left since are missed once, and computed and stored by the next request.
            skipped = (start - known) // self._block
            return [self._blocks.pack(plain) for plain in waiting[skipped:]] if skipped >= 0 else []

        return cut
