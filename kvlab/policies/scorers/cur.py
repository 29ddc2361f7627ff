"""``CUR``: keep the rows with the largest approximate leverage of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.real_rows import filling_first, real_first

ABOVE_ANY_LEVERAGE = 2.0
"""Score of the sinks: a product of two shares is at most 1."""
MIN_SUM = 1e-30
"""Smallest sum that squared norms are divided by, so that a window of zeros has no share."""


@dataclass(frozen=True)
class CUR(Scorer):
    """Rows with large keys and values, beside their ``local`` neighbours, stay; so do the first rows. Needs no queries.

    Follows CurDKV (Sengupta et al. 2025), in the approximation that kvpress takes by default. The leverage of a row is
    its share of the squared norms of keys in its window, times its share of those of values. Windows are ``local`` rows
    each, from the first row on; the last window may be shorter, which raises its shares. Deviations: keys and values
    are not projected at random before the norms are taken; while decoding, the windows are made of the rows that are
    still held.

    Args:
        local: rows of a window.
        sinks: first tokens of the sequence that always stay.
    """

    name: ClassVar[str] = "cur"
    paper: ClassVar[str] = "Value-Guided KV Compression via Approximated CUR Decomposition, arXiv:2509.15038"
    local: int = 16
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local < 1:
            raise PolicyError(f"cur: local={self.local} must be 1 row or more")
        if self.sinks < 0:
            raise PolicyError(f"cur: sinks={self.sinks} is negative; write sinks=0 or more")

    def score(self, context: ScoreContext) -> mx.array:
        shares = [self._shares(side, context.positions) for side in (context.keys, context.values)]
        leverage = filling_first(shares[0] * shares[1], context.positions)
        is_sink = (context.positions >= 0) & (context.positions < self.sinks)
        return mx.where(is_sink, ABOVE_ANY_LEVERAGE, leverage)

    def _shares(self, side: mx.array, positions: mx.array) -> mx.array:
        """Return each row's share of the squared norms of its window; filling is behind the rows."""
        squares = real_first((side.astype(mx.float32) ** 2).sum(axis=-1), positions)
        _, heads, length = squares.shape
        windows = mx.pad(squares, [(0, 0), (0, 0), (0, -length % self.local)]).reshape(1, heads, -1, self.local)
        shares = windows / mx.maximum(windows.sum(axis=-1, keepdims=True), MIN_SUM)
        return shares.reshape(1, heads, -1)[..., :length]
