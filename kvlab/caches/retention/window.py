"""``Window``: the first and the latest rows stay."""

from __future__ import annotations

import functools
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.retention.base import Eviction, LayerPlace, Mask, Retention
from kvlab.policies import Module, Rotating


class Window(Retention):
    """Keeps the first and the latest rows; evicts rows in groups, so that the copy that frees them is rare."""

    module: ClassVar[type[Module]] = Rotating

    def __init__(self, module: Rotating, place: LayerPlace) -> None:
        super().__init__(module, place)
        self._sinks, self._window = module.sinks, module.window
        self._group = max(1, module.window // 8)

    def mask(self, length: int, offset: int, count: int) -> Mask:
        if length <= self._window and length == offset:
            return None if count == 1 else "causal"
        return _window_mask(length, offset, count, self._sinks, self._window)

    def positions(self, length: int, offset: int) -> mx.array:
        return mx.array(_window_positions(length, offset, self._sinks))[None, None]

    @property
    def visible(self) -> tuple[int, int] | None:
        return self._sinks, self._window

    def is_due(self, length: int, offset: int, count: int) -> bool:
        return length >= self._sinks + self._window + self._group

    def evict(self, rows: KVBuffer, offset: int, scale: float) -> None:
        held = rows.length
        if self.place.record:
            gone = self.positions(held, offset)[:, :, self._sinks : held - self._window]
            heads = rows.state[0].shape[1]
            gone = mx.broadcast_to(gone, (1, heads, gone.shape[2]))
            self.evictions.append(Eviction(gone, self._sinks + self._window, offset))
        rows.keep_spans((0, self._sinks), (held - self._window, held))
        rows.expect(self._group)


def _window_positions(held: int, offset: int, sinks: int) -> np.ndarray:
    first = min(sinks, held)
    return np.concatenate([np.arange(first), np.arange(offset - held + first, offset)]).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _window_mask(held: int, offset: int, count: int, sinks: int, window: int) -> mx.array:
    """Return which rows are visible, bool ``[1, 1, count, held]``; made on the host, once for all layers of a step."""
    at = np.arange(offset - count, offset)[:, None]
    row = _window_positions(held, offset, sinks)
    return mx.array(((row <= at) & ((row < sinks) | (row > at - window)))[None, None])
