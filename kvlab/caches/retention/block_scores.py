"""``BlockScores``: of each complete block of a sequence, the rows that a scorer ranks highest stay."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.retention.base import Eviction, LayerPlace
from kvlab.caches.retention.top_scores import TopScores, level
from kvlab.policies import Module
from kvlab.policies.scorers.local import Local


class BlockScores(TopScores):
    """Compresses a block once its last token is there, from the rows of this block alone.

    The rows of complete blocks come first, the same number of each, then those of the tokens behind them.
    """

    module: ClassVar[type[Module]] = Local

    def __init__(self, module: Local, place: LayerPlace) -> None:
        super().__init__(module, place)
        self._block, self._block_rows = module.block, module.block_rows

    def room(self, offset: int) -> int:
        return self._block - offset % self._block

    def is_due(self, length: int, offset: int, count: int) -> bool:
        return offset % self._block == 0

    def evict(self, rows: KVBuffer, offset: int, scale: float) -> None:
        kept, left = self._best(rows, offset, scale)
        before = [] if self._kept is None else [self._kept]
        first = offset - self._block
        self._kept = mx.concatenate([*before, kept + first], axis=2)
        if self.place.record:
            self.evictions.append(Eviction(left + first, self.rows_of(offset), offset))
        rows.keep_of_last(self._block, kept)

    def _best(self, rows: KVBuffer, offset: int, scale: float) -> tuple[mx.array, mx.array]:
        """Return which of the block's rows stay and which leave, int32 ``[1, n_kv_heads, n]``, ascending."""
        queries = self._last_queries()
        self._queries.clear()  # the next block has queries of its own
        keys, values = rows.decode_last(self._block)
        place = mx.arange(offset - self._block, offset)
        positions = mx.broadcast_to(place, (1, keys.shape[1], self._block)).astype(mx.int32)
        scores = self._scores(self._context_of(keys, values, positions, queries, offset, scale))
        # Sorted from the newest row back, so that of rows with equal scores the newest stay.
        order = self._block - 1 - mx.argsort(-level(scores)[..., ::-1], axis=-1).astype(mx.int32)
        return mx.sort(order[..., : self._block_rows], axis=-1), mx.sort(order[..., self._block_rows :], axis=-1)

    @property
    def is_compressed(self) -> bool:
        return self._kept is not None

    @property
    def kept(self) -> mx.array | None:
        return self._kept

    def begin_with(self, kept: mx.array) -> None:
        self._kept = kept

    def rows_of(self, tokens: int) -> int:
        return tokens // self._block * self._block_rows

    def give_first(self, rows: int) -> mx.array | None:
        if (kept := self._kept) is None:
            return None
        self._kept = mx.contiguous(kept[:, :, rows:])
        return kept[:, :, :rows]
