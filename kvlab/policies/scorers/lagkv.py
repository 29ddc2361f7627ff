"""``LagKV``: keep the rows that stand out against the part of the sequence that follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.real_rows import filling_first, real_first

SINK, LATEST = 3.0, 2.0
"""Scores of rows that stay for their place: ranks within a part are below 1."""
STEPS = 1 << 16
"""Steps of a mean softmax score: rows that differ by less are equal, whatever the batch rounds, and the newer stays."""
MIN_RANGE = 1e-12
"""Smallest range of a channel that values are divided by."""


@dataclass(frozen=True)
class LagKV(Scorer):
    """Rows whose keys and values spread most, in the range of the next ``lag`` tokens, stay. Needs no queries.

    Follows Liang et al. 2025. Behind the ``sinks``, the sequence is cut into parts of ``lag`` rows. Each channel of a
    key is scaled by the least and the largest value of that channel in the next part, (x - min) / (max - min); the
    standard deviation over the channels of a row goes through a softmax over the part; values likewise. The mean of
    both is ranked within the part, so that each part keeps the same share. The sinks stay, and so does what has no
    complete next part: the last complete part and the rest; where the budget has no room for these, the newest stay.
    So does the newer row of two with the same rank. Deviations: while decoding, the parts are made of the rows that are
    still held (the paper compresses each part once); in a channel that is constant in the next part, the range is
    1e-12 in place of 0.

    Args:
        lag: rows of a part.
        sinks: first rows that always stay.
    """

    name: ClassVar[str] = "lagkv"
    paper: ClassVar[str] = "LagKV, arXiv:2504.04704"
    lag: int = 128
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 2:
            raise PolicyError(f"lagkv: lag={self.lag} must be 2 rows or more, such as 128")
        if self.sinks < 0:
            raise PolicyError(f"lagkv: sinks={self.sinks} is negative; write sinks=0 or more")

    def score(self, context: ScoreContext) -> mx.array:
        _, heads, length, _ = context.keys.shape
        place = mx.arange(length)
        count = (context.positions >= 0).sum(axis=-1, keepdims=True)
        scores = mx.full((1, heads, length), LATEST)
        parts = (length - self.sinks) // self.lag
        if parts > 1:
            sides = [self._spread(side, context.positions, parts) for side in (context.keys, context.values)]
            # A softmax over a part is 1 / lag on average.
            rounded = mx.round((sides[0] + sides[1]) * (self.lag * STEPS / 2))
            ranks = mx.argsort(mx.argsort(rounded, axis=-1), axis=-1) / self.lag
            ranks = ranks.reshape(1, heads, -1)
            after = length - self.sinks - ranks.shape[-1]
            ranks = mx.pad(ranks, [(0, 0), (0, 0), (self.sinks, after)])
            # A head that is filled up has fewer complete parts than the others.
            latest = self.sinks + ((count - self.sinks) // self.lag - 1) * self.lag
            scores = mx.where(place < latest, ranks, scores)
        return filling_first(mx.where(place < self.sinks, SINK, scores), context.positions)

    def _spread(self, side: mx.array, positions: mx.array, parts: int) -> mx.array:
        """Return the softmax, over each part but the last, of its rows' deviations: ``[1, heads, parts - 1, lag]``."""
        rows = real_first(side, positions)[:, :, self.sinks : self.sinks + parts * self.lag].astype(mx.float32)
        rows = rows.reshape(1, rows.shape[1], parts, self.lag, rows.shape[3])
        least = rows[:, :, 1:].min(axis=3, keepdims=True)
        span = rows[:, :, 1:].max(axis=3, keepdims=True) - least
        scaled = (rows[:, :, :-1] - least) / mx.maximum(span, MIN_RANGE)
        return mx.softmax(mx.std(scaled, axis=-1, ddof=1), axis=-1)
